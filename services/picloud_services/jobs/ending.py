"""Ends or releases unfinished jobs by range, in slices, outside any lease: kills, stalls, releases."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from picloud_jupyter.protocol.ids import JidRange, to_ranges
from picloud_jupyter.protocol.jobs import EndReason, Status
from picloud_services.base.sql import Statement, Transaction
from picloud_services.jobs.counting import Delta, add_to_batch, add_to_user
from picloud_services.jobs.live import Change

SLICE = 1_000

_MOVE = Statement(
    """UPDATE jobs SET status = :new, reason = :reason, message = :message, finished_at = :at
    WHERE jid BETWEEN :first AND :last AND status = :old RETURNING jid"""
)


@dataclass(frozen=True, slots=True)
class Move:
    """What is to become of the unfinished jobs of a range of one batch."""

    batch: int
    user_id: int
    first_jid: int
    last_jid: int
    new: Status
    reason: EndReason | None = None
    text: str = ""
    olds: tuple[Status, ...] = (Status.WAITING, Status.QUEUED)

    def cut(self, first_jid: int, last_jid: int) -> "Move":
        """Return the same for a part of the range."""
        if (first_jid, last_jid) == (self.first_jid, self.last_jid):
            return self
        return replace(self, first_jid=first_jid, last_jid=last_jid)


def slices(ranges: list[JidRange]) -> Iterator[JidRange]:
    """Yield ``ranges`` in pieces of at most a transaction's worth."""
    for first, last in ranges:
        for at in range(first, last + 1, SLICE):
            yield at, min(at + SLICE - 1, last)


def move(tx: Transaction, wanted: Move, at: float) -> list[Change]:
    """Move the unfinished jobs of a range; return what changed. Fine to repeat."""
    return move_all(tx, [wanted], at)


def move_all(tx: Transaction, moves: Sequence[Move], at: float) -> list[Change]:
    """Move the unfinished jobs of several ranges; return what changed. Fine to repeat."""
    changes: list[Change] = []
    deltas: dict[tuple[int, int], Delta] = {}  # (batch, user)
    for wanted in moves:
        found = _move(tx, wanted, at)
        changes += found
        for change in found:
            delta = deltas.setdefault((wanted.batch, wanted.user_id), Counter())
            count = change.last_jid - change.first_jid + 1
            delta[change.old] -= count
            delta[change.new] += count
    for (batch, user_id), delta in deltas.items():
        add_to_user(tx, user_id, delta)
        add_to_batch(tx, batch, delta)
    return changes


def _move(tx: Transaction, wanted: Move, at: float) -> list[Change]:
    changes = []
    for old in wanted.olds:
        rows = tx.all(
            _MOVE,
            first=wanted.first_jid,
            last=wanted.last_jid,
            old=str(old),
            new=str(wanted.new),
            reason=str(wanted.reason) if wanted.reason else None,
            message=wanted.text or None,
            at=at if wanted.reason else None,
        )
        for first, last in to_ranges(jid for (jid,) in rows):
            changes.append(
                Change(wanted.batch, first, last, old, wanted.new, str(wanted.reason or ""))
            )
    return changes
