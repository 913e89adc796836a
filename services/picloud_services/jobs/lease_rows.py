"""Rows of leases, and of jobs that are out under one: read, ended, or queued again."""

from dataclasses import dataclass
from itertools import groupby

from picloud_services.base.sql import Row, Statement, Transaction
from picloud_services.jobs.lifecycle import Decision, Past
from picloud_services.jobs.live import Ready
from picloud_services.jobs.store import lease_number

_COLUMNS = "batch, user_id, first_jid, count, next_position, attempt, fresh, node"
_LEASE = Statement(f"SELECT {_COLUMNS} FROM leases WHERE lease = :lease")  # noqa: S608
_TAKE_LEASE = Statement(
    f"DELETE FROM leases WHERE lease = :lease RETURNING {_COLUMNS}"  # noqa: S608  # our own names
)
_SET_LEASE = Statement(
    "UPDATE leases SET next_position = :next_position, count = :count WHERE lease = :lease"
)
_DROP_LEASE = Statement("DELETE FROM leases WHERE lease = :lease")
_PAST = Statement(
    """SELECT attempt, losses, retries, fresh, lost_starts FROM jobs
    WHERE jid = :jid AND status = 'queued'"""
)
_END = Statement(
    """UPDATE jobs SET status = :status, reason = :reason, message = :message, result = :result,
      finished_at = :at, losses = :losses
    WHERE jid = :jid"""
)
_AGAIN = Statement(
    """UPDATE jobs SET attempt = :attempt, losses = :losses, retries = :retries, fresh = :fresh,
      lost_starts = :lost_starts, retry_at = :retry_at WHERE jid = :jid"""
)
QUEUED = Statement(
    """SELECT jid, attempt, fresh FROM jobs
    WHERE jid BETWEEN :first AND :last AND status = 'queued' ORDER BY jid"""
)


@dataclass(slots=True)
class LeaseRow:
    """A live lease as the store has it."""

    lease: str
    batch: int
    user_id: int
    first_jid: int
    count: int
    next_position: int
    attempt: int
    fresh: bool
    node: str


def find_lease(tx: Transaction, lease: str) -> LeaseRow | None:
    """Return the row of a live lease."""
    return _row(lease, tx.one(_LEASE, lease=lease_number(lease)))


def take_lease(tx: Transaction, lease: str) -> LeaseRow | None:
    """Return the row of a live lease of which nothing more comes, and remove it."""
    return _row(lease, tx.one(_TAKE_LEASE, lease=lease_number(lease)))


def _row(lease: str, row: Row | None) -> LeaseRow | None:
    if row is None:
        return None
    batch, user_id, first_jid, count, next_position, attempt, fresh, node = row
    return LeaseRow(
        lease, batch, user_id, first_jid, count, next_position, attempt, bool(fresh), node
    )


def settle(tx: Transaction, lease: LeaseRow) -> bool:
    """Store what is left of a lease, or remove it; return whether it is over."""
    if lease.next_position >= lease.count:
        tx.run(_DROP_LEASE, lease=lease_number(lease.lease))
        return True
    tx.run(
        _SET_LEASE,
        lease=lease_number(lease.lease),
        next_position=lease.next_position,
        count=lease.count,
    )
    return False


def find_past(tx: Transaction, jid: int) -> Past | None:
    """Return what happened so far to a job that is not over."""
    row = tx.one(_PAST, jid=jid)
    if row is None:
        return None
    attempt, losses, retries, fresh, lost_starts = row
    return Past(attempt, losses, retries, bool(fresh), lost_starts)


def end_job(
    tx: Transaction, jid: int, decision: Decision, at: float, *, result: int | None = None
) -> None:
    """Write a final status; counters are the caller's."""
    tx.run(
        _END,
        jid=jid,
        status=str(decision.status),
        reason=str(decision.reason),
        message=decision.text or None,
        result=result,
        losses=decision.past.losses,
        at=at,
    )


def run_again(tx: Transaction, batch: int, jid: int, decision: Decision, at: float) -> Ready:
    """Write the next attempt of a queued job; return it for the queue."""
    past = decision.past
    tx.run(
        _AGAIN,
        jid=jid,
        attempt=past.attempt,
        losses=past.losses,
        retries=past.retries,
        fresh=int(past.fresh),
        lost_starts=past.lost_starts,
        retry_at=at + decision.delay_seconds if decision.delay_seconds else None,
    )
    return Ready(
        batch,
        jid,
        1,
        attempt=past.attempt,
        fresh=past.fresh,
        alone=past.fresh,
        delay_seconds=decision.delay_seconds,
    )


def still_queued(tx: Transaction, batch: int, first: int, last: int) -> list[Ready]:
    """Return those of a range that are queued, as runs with the same attempt."""
    rows = tx.all(QUEUED, first=first, last=last)
    found = []
    for (_, attempt, fresh), run in groupby(
        enumerate(rows), key=lambda pair: (pair[1][0] - pair[0], pair[1][1], pair[1][2])
    ):
        members = list(run)
        found.append(
            Ready(
                batch,
                members[0][1][0],
                len(members),
                attempt=attempt,
                fresh=bool(fresh),
                alone=bool(fresh),
            )
        )
    return found
