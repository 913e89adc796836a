"""What an engine gives back without having run it, or lost: queued again, or ended. See outcomes."""

import dataclasses
from collections import Counter
from collections.abc import Set

from picloud_jupyter.protocol.ids import to_ranges
from picloud_jupyter.protocol.jobs import EndReason, Status
from picloud_services.base.sql import Transaction
from picloud_services.jobs.counting import Delta, add_to_batch, add_to_user
from picloud_services.jobs.ending import Move, move
from picloud_services.jobs.lease_rows import (
    QUEUED,
    end_job,
    find_lease,
    find_past,
    run_again,
    settle,
    still_queued,
)
from picloud_services.jobs.lifecycle import decide
from picloud_services.jobs.live import Change, Ready
from picloud_services.jobs.outcomes import ITEM_OVERHEAD_BYTES, Outcome, RulesOf, record_lost
from picloud_services.jobs.reasons import Facts, message


def give_back(tx: Transaction, lease_id: str, first: int, count: int, *, over: bool) -> Outcome:
    """Queue elements ``first`` .. of a lease that were never started; ``over``: no more will come."""
    outcome = Outcome(lease_id)
    lease = find_lease(tx, lease_id)
    if lease is None:
        outcome.late = True
        return outcome
    outcome.batch, outcome.user_id = lease.batch, lease.user_id
    start = lease.next_position if over else max(first, lease.next_position)
    stop = lease.count if over else min(first + count, lease.count)
    if start < stop:
        outcome.ready = still_queued(
            tx, lease.batch, lease.first_jid + start, lease.first_jid + stop - 1
        )
    if over:
        lease.count = lease.next_position
    elif stop == lease.count:
        lease.count = max(start, lease.next_position)
    outcome.lease_over = settle(tx, lease)
    return outcome


def end_all(
    tx: Transaction,
    lease_id: str,
    reason: EndReason,
    rules_of: RulesOf,
    at: float,
    detail: str,
    *,
    began: bool,
) -> Outcome:
    """Decide every element that a lease still covers for one reason: node_lost, start_failed ...

    ``began``: any of them may have run; else it is sure that none has.
    """
    outcome = Outcome(lease_id)
    lease = find_lease(tx, lease_id)
    if lease is None:
        outcome.late = True
        return outcome
    outcome.batch, outcome.user_id = lease.batch, lease.user_id
    record_lost(tx, lease, at, reason, detail)
    rules = rules_of(tx, lease.batch)
    facts = dataclasses.replace(rules.facts, node=lease.node, detail=detail)
    delta: Delta = Counter()
    first = lease.first_jid + lease.next_position
    last = lease.first_jid + lease.count - 1
    for jid, *_ in tx.all(QUEUED, first=first, last=last):
        past = find_past(tx, jid)
        assert past is not None
        decision = decide(reason, rules.terms, past, began=began, facts=facts)
        if decision.again:
            outcome.ready.append(run_again(tx, lease.batch, jid, decision, at))
        else:
            end_job(tx, jid, decision, at)
            delta[Status.QUEUED] -= 1
            delta[decision.status] += 1
            outcome.changes.append(
                Change(
                    *(lease.batch, jid, jid, Status.QUEUED), decision.status, decision.reason
                )
            )
    outcome.standing = add_to_user(tx, lease.user_id, delta, disk_bytes=ITEM_OVERHEAD_BYTES)
    if delta:
        add_to_batch(tx, lease.batch, delta)
    lease.next_position = lease.count
    outcome.lease_over = settle(tx, lease)
    return outcome


def end_wished(tx: Transaction, outcome: Outcome, killing: Set[int], at: float) -> Outcome:
    """End what would run again though it was to be ended: its node did not live to do that."""
    if not killing:
        return outcome
    ready, outcome.ready = outcome.ready, []
    for item in ready:
        jids = range(item.first_jid, item.first_jid + item.count)
        wished = {jid for jid in jids if jid in killing}
        for first, last in to_ranges(sorted(wished)):
            outcome.changes += move(tx, _kill(outcome, first, last), at)
        outcome.ready += _pieces(item, [jid for jid in jids if jid not in wished])
    return outcome


def _kill(outcome: Outcome, first: int, last: int) -> Move:
    text = message(EndReason.KILLED, Facts())
    return Move(
        outcome.batch, outcome.user_id, first, last, Status.KILLED, EndReason.KILLED, text
    )


def _pieces(item: Ready, jids: list[int]) -> list[Ready]:
    return [
        dataclasses.replace(item, first_jid=first, count=last - first + 1)
        for first, last in to_ranges(jids)
    ]
