"""What came back from an engine becomes truth here: one transaction per event, fenced by its lease.

A lease covers elements ``next_position`` .. ``count`` - 1. Reports move ``next_position`` up, what was
never started moves ``count`` down; the row goes when they meet. So whatever is reported twice, or by
an attempt that lost its lease, finds nothing to change.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from picloud_jupyter.protocol.jobs import EndReason, Status
from picloud_services.accounts.quotas import Standing
from picloud_services.base import codec
from picloud_services.base.sql import Statement, Transaction
from picloud_services.jobs.counting import Delta, add_to_batch, add_to_user
from picloud_services.jobs.lease_rows import (
    LeaseRow,
    end_job,
    find_lease,
    find_past,
    run_again,
    settle,
    still_queued,
    take_lease,
)
from picloud_services.jobs.lifecycle import Terms, decide
from picloud_services.jobs.links import blobs_of, link_blob, unlink_blob
from picloud_services.jobs.live import Change, Ready
from picloud_services.jobs.reasons import Facts
from picloud_services.jobs.store import lease_number
from picloud_services.jobs.sums import sum_of

Item = Sequence[Any]  # position, reason, started_at, runtime, cpu_user, cpu_system, size, extra
ITEM_OVERHEAD_BYTES = 64
MAX_DETAIL_CHARACTERS = 2000  # of what is kept about a lease that was lost

_DONE = Statement(
    """UPDATE jobs SET status = 'done', result = :result, finished_at = :at
    WHERE jid BETWEEN :first AND :last AND status = 'queued'"""
)
_DONE_BY = Statement(
    "SELECT jid FROM jobs WHERE jid BETWEEN :first AND :last AND result = :result ORDER BY jid"
)
_INSERT_RESULT = Statement(
    """INSERT INTO results (user_id, batch, first_jid, attempt, node, lease, first_position,
      items, data, data_sum, usage, links, bytes, files, seen_seconds, finished_at)
    VALUES (:user_id, :batch, :first_jid, :attempt, :node, :lease, :first_position,
      :items, :data, :sum, :usage, :links, :bytes, :files,
      (SELECT seen_seconds FROM sequences), :at) RETURNING result"""
)
_INSERT_LOST = Statement(
    """INSERT INTO results (user_id, batch, first_jid, attempt, node, lease, first_position,
      items, usage, links, bytes, seen_seconds, finished_at)
    VALUES (:user_id, :batch, :first_jid, :attempt, :node, :lease, :first_position,
      '[]', :usage, 0, :bytes, (SELECT seen_seconds FROM sequences), :at)"""
)
_BATCH_IS_THERE = Statement("SELECT 1 FROM batches WHERE batch = :batch")
_DELETE_RESULT = Statement("DELETE FROM results WHERE result = :result")
_SET_LINKS = Statement("UPDATE results SET links = :links WHERE result = :result")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the spec of a batch says for its ends. ``charge`` is cost per core-second."""

    terms: Terms
    cores: float = 1.0
    charge: float = 0.0
    facts: Facts = field(default_factory=Facts)


RulesOf = Callable[[Transaction, int], Rules]


@dataclass(frozen=True, slots=True)
class Report:
    """Elements of a lease that ended, in order of position; ``body`` are their bytes, in order.

    ``exit_text`` says how the container ended, ``loss`` why we ended it as no good any more ("": we
    did not), ``usage`` what the whole chunk used, ``over`` that nothing more of the lease comes.
    """

    lease: str
    items: Sequence[Item]
    body: bytes
    at: float
    exit_text: str = ""
    usage: dict[str, Any] | None = None
    over: bool = False
    loss: str = ""


@dataclass(slots=True)
class Outcome:
    """What a transaction did, for the image in memory and the dispatcher."""

    lease: str
    batch: int = 0
    user_id: int = 0
    changes: list[Change] = field(default_factory=list)
    ready: list[Ready] = field(default_factory=list)
    lease_over: bool = False
    late: bool = False
    kept: "KeptResult | None" = None
    standing: Standing | None = None  # what it made of the user's cost and disk use


@dataclass(frozen=True, slots=True)
class KeptResult:
    """A result row just committed, for those who ask at once."""

    result: int
    first_jid: int
    items: Sequence[Item]
    body: bytes


def record(tx: Transaction, report: Report, rules_of: RulesOf) -> Outcome:
    """Enter the ends of elements. Those already known, killed meanwhile or not leased are dropped."""
    lease = (take_lease if report.over else find_lease)(tx, report.lease)
    outcome = Outcome(report.lease)
    if lease is None:
        outcome.late = True
        return outcome
    outcome.batch, outcome.user_id = lease.batch, lease.user_id
    items, body = _within(lease, report)
    if items:
        _record_items(tx, lease, items, body, report, rules_of(tx, lease.batch), outcome)
    if report.over and lease.next_position < lease.count:
        outcome.ready += still_queued(
            tx,
            lease.batch,
            lease.first_jid + lease.next_position,
            lease.first_jid + lease.count - 1,
        )
    outcome.lease_over = report.over or settle(tx, lease)
    return outcome


def _record_items(
    tx: Transaction,
    lease: LeaseRow,
    items: Sequence[Item],
    body: bytes,
    report: Report,
    rules: Rules,
    outcome: Outcome,
) -> None:
    writer = _Writer(tx, lease, rules, report, outcome)
    writer.begin(items, body)
    for is_done, group in groupby(items, key=_is_done):
        members = list(group)
        if is_done:
            writer.done(members)
        else:
            for item in members:
                writer.failed(item)
    writer.finish()
    requeue_unreported(tx, lease, items, outcome)
    lease.next_position = items[-1][0] + 1


def _is_done(item: Item) -> bool:
    return bool(item[1] == "done")


def _within(lease: LeaseRow, report: Report) -> tuple[Sequence[Item], bytes]:
    """Leave out what was reported before or is not leased any more."""
    items = report.items
    if items and items[0][0] >= lease.next_position and items[-1][0] < lease.count:
        return items, report.body
    kept: list[Item] = []
    pieces: list[bytes] = []
    offset = 0
    for item in items:
        size = item[6]
        if lease.next_position <= item[0] < lease.count:
            kept.append(item)
            pieces.append(report.body[offset : offset + size])
        offset += size
    return kept, b"".join(pieces)


def requeue_unreported(
    tx: Transaction, lease: LeaseRow, items: Sequence[Item], outcome: Outcome
) -> None:
    """Queue elements that an event passed over: they would wait for ever otherwise."""
    if items[-1][0] - lease.next_position + 1 == len(items):
        return
    told = {item[0] for item in items}
    for position in range(lease.next_position, items[-1][0]):
        if position not in told:
            jid = lease.first_jid + position
            outcome.ready += still_queued(tx, lease.batch, jid, jid)


class _Writer:
    """Writes the ends of one report; counters and money are added up and written once."""

    def __init__(
        self, tx: Transaction, lease: LeaseRow, rules: Rules, report: Report, outcome: Outcome
    ) -> None:
        self.tx = tx
        self.lease = lease
        self.rules = rules
        self.report = report
        self.outcome = outcome
        self.result = 0
        self.links = 0
        self.expected = 0
        self.core_seconds = 0.0
        self.size_bytes = 0
        self.delta: Delta = Counter()

    def done(self, members: Sequence[Item]) -> None:
        """End contiguous runs of elements that returned."""
        for _, run in groupby(enumerate(members), key=lambda pair: pair[1][0] - pair[0]):
            items = [item for _, item in run]
            first = self.lease.first_jid + items[0][0]
            last = self.lease.first_jid + items[-1][0]
            touched = self.tx.run(
                _DONE, first=first, last=last, result=self.result, at=self.report.at
            )
            if touched == len(items):
                self._changed(first, last, Status.DONE)
                self.core_seconds += sum([item[3] for item in items])
            else:
                self._done_partly(items, first, last)
            self.links += touched

    def _done_partly(self, items: Sequence[Item], first: int, last: int) -> None:
        runtime = {self.lease.first_jid + item[0]: item[3] for item in items}
        for (jid,) in self.tx.all(_DONE_BY, first=first, last=last, result=self.result):
            self._changed(jid, jid, Status.DONE)
            self.core_seconds += runtime[jid]

    def failed(self, item: Item) -> None:
        """End or queue again one element that did not return."""
        jid = self.lease.first_jid + item[0]
        past = find_past(self.tx, jid)
        if past is None:
            return
        facts = dataclasses.replace(self.rules.facts, loss=self.report.loss)
        text = self.report.exit_text or _exit_text(item)
        if text:
            facts = dataclasses.replace(facts, exit_text=text)
        reason = _reason(item[1])
        if note := (item[7] or {}).get("note"):
            if reason is EndReason.DISK_FULL:
                facts = dataclasses.replace(facts, detail=str(note))
            elif reason is EndReason.LOST_WORKER:
                facts = dataclasses.replace(facts, loss=str(note))
        decision = decide(
            reason,
            self.rules.terms,
            past,
            reused=item[0] > 0 or not self.lease.fresh,
            facts=facts,
        )
        if decision.again:
            self.outcome.ready.append(
                run_again(self.tx, self.lease.batch, jid, decision, self.report.at)
            )
        else:
            end_job(self.tx, jid, decision, self.report.at, result=self.result)
            self.links += 1
            self.core_seconds += item[3]
            self._changed(jid, jid, decision.status, decision.reason)

    def _changed(self, first: int, last: int, new: Status, reason: str = "") -> None:
        count = last - first + 1
        self.delta[Status.QUEUED] -= count
        self.delta[new] += count
        change = Change(self.lease.batch, first, last, Status.QUEUED, new, reason)
        self.outcome.changes.append(change)

    def begin(self, items: Sequence[Item], body: bytes) -> None:
        """Write the record of what came back."""
        lease, tx = self.lease, self.tx
        files = 0
        usage = self.report.usage
        size = len(body) + ITEM_OVERHEAD_BYTES * len(items)
        size += int(usage.get("output_bytes", 0)) if usage else 0
        for item in items:
            for ref in blobs_of(item[7]):
                link_blob(tx, ref)
                files += 1
                size += ref.size_bytes
        self.size_bytes = size
        first_jid = lease.first_jid + items[0][0]
        self.expected = len(items)
        shown = codec.encode([item[1:] for item in items])
        self.result = tx.value(
            _INSERT_RESULT,
            user_id=lease.user_id,
            batch=lease.batch,
            first_jid=first_jid,
            attempt=lease.attempt,
            node=lease.node,
            lease=lease_number(lease.lease),
            first_position=items[0][0],
            items=shown.decode(),
            data=body or None,
            sum=sum_of(body, shown),
            usage=codec.encode(usage).decode() if usage else None,
            links=self.expected,
            bytes=size,
            files=files,
            at=self.report.at,
        )
        self.outcome.kept = KeptResult(self.result, first_jid, items, body)

    def finish(self) -> None:
        """Write the counters and the cost, and how many jobs point at the record."""
        lease, tx = self.lease, self.tx
        if not self.links and not tx.one(_BATCH_IS_THERE, batch=lease.batch):
            self._forget()
        elif self.links != self.expected:
            tx.run(_SET_LINKS, result=self.result, links=self.links)
        core_seconds = self.core_seconds * self.rules.cores
        self.outcome.standing = add_to_user(
            tx,
            lease.user_id,
            self.delta,
            core_seconds=core_seconds,
            cost=core_seconds * self.rules.charge,
            disk_bytes=self.size_bytes,
        )
        if self.delta:
            add_to_batch(tx, lease.batch, self.delta)

    def _forget(self) -> None:
        """Drop the record: its jobs were killed and deleted, so nobody could, and it would count as theirs."""
        kept, self.outcome.kept = self.outcome.kept, None
        assert kept is not None
        for item in kept.items:
            for ref in blobs_of(item[7]):
                unlink_blob(self.tx, ref.blob, self.report.at)
        self.tx.run(_DELETE_RESULT, result=self.result)
        self.size_bytes = 0


def record_lost(
    tx: Transaction, lease: LeaseRow, at: float, reason: EndReason, detail: str
) -> None:
    """Keep a record of what a lost lease covers: its output goes with it, or with its batch."""
    count = lease.count - lease.next_position
    usage = {"lost": str(reason), "count": count, "detail": detail[:MAX_DETAIL_CHARACTERS]}
    tx.run(
        _INSERT_LOST,
        user_id=lease.user_id,
        batch=lease.batch,
        first_jid=lease.first_jid + lease.next_position,
        attempt=lease.attempt,
        node=lease.node,
        lease=lease_number(lease.lease),
        first_position=lease.next_position,
        usage=codec.encode(usage).decode().replace("\\u0000", ""),  # PostgreSQL stores none
        bytes=ITEM_OVERHEAD_BYTES,
        at=at,
    )


def _exit_text(item: Item) -> str:
    """How a command ended, as its runner said; a container's own end is in the report."""
    code = (item[7] or {}).get("exit")
    return f"exit code {code}" if type(code) is int else ""


def _reason(word: str) -> EndReason:
    """Return the reason that a node reports; one that only a newer node knows is incompatible."""
    try:
        return EndReason(word)
    except ValueError:
        return EndReason.INCOMPATIBLE
