"""Ends jobs by request, and removes finished ones with all that belongs to them."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from picloud_jupyter.protocol.errors import Conflict
from picloud_jupyter.protocol.jobs import EndReason, Status
from picloud_services.base import codec
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.sql import Statement, Transaction
from picloud_services.jobs import links
from picloud_services.jobs.counting import Delta, add_to_batch, add_to_user
from picloud_services.jobs.ending import Move, move, slices
from picloud_services.jobs.gates import Gate
from picloud_services.jobs.live import Change, LiveJobs
from picloud_services.jobs.ports import Dispatch, OutputReader
from picloud_services.jobs.publishing import Publisher
from picloud_services.jobs.reasons import Facts, message
from picloud_services.jobs.spans import Span
from picloud_services.jobs.store import lease_text
from picloud_services.jobs.waiting import Waiting
from picloud_services.jobs.words import Ranges

KILL_SECONDS = 2.0

_UNFINISHED = Statement(
    """SELECT jid FROM jobs WHERE jid BETWEEN :first AND :last AND user_id = :user_id
    AND status IN ('waiting', 'queued') LIMIT 1"""
)
_TO_DELETE = Statement(
    """SELECT batch, status, result, COUNT(*) FROM jobs
    WHERE jid BETWEEN :first AND :last AND user_id = :user_id GROUP BY batch, status, result"""
)
_DELETE_JOBS = Statement(
    "DELETE FROM jobs WHERE jid BETWEEN :first AND :last AND user_id = :user_id"
)
_DELETE_CACHE_KEYS = Statement("DELETE FROM cache_keys WHERE jid BETWEEN :first AND :last")
_UNLINK_RESULT = Statement(
    """UPDATE results SET links = links - :count WHERE result = :result
    RETURNING links, node, lease, files, items"""
)
_LEASE_IN_USE = Statement("SELECT 1 FROM results WHERE lease = :lease LIMIT 1")
_DELETE_RESULT = Statement("DELETE FROM results WHERE result = :result")
_PARTS = Statement(
    """SELECT first_jid, count, links, files FROM parts
    WHERE first_jid <= :last AND first_jid > :before AND user_id = :user_id"""
)
_FIRST_PART = Statement(
    "SELECT MAX(first_jid) FROM parts WHERE first_jid <= :first AND user_id = :user_id"
)
_UNLINK_PART = Statement("UPDATE parts SET links = links - :count WHERE first_jid = :first")
_DELETE_PART = Statement("DELETE FROM parts WHERE first_jid = :first")
_PART_BLOBS = Statement(
    "DELETE FROM part_files WHERE jid BETWEEN :first AND :last RETURNING blob"
)
_LEFT_IN_PART = Statement("SELECT COUNT(*) FROM jobs WHERE jid BETWEEN :first AND :last")
_EMPTY_BATCH = Statement(
    """DELETE FROM batches WHERE batch = :batch AND state <> 'open' AND
    waiting + queued + done + error + killed + stalled = 0 RETURNING function_digest, spec"""
)
_LEFT_RESULTS = Statement(
    "DELETE FROM results WHERE batch = :batch AND links = 0 RETURNING node, lease, files, items"
)


@dataclass(slots=True)
class Removed:
    """What a slice of a deletion removed; the outputs are files, removed after the commit."""

    count: int = 0
    outputs: dict[str, list[str]] = field(default_factory=dict)  # node -> leases


class Removal:
    """Kills and deletes."""

    def __init__(
        self,
        database: Database,
        live: LiveJobs,
        dispatch: Dispatch,
        publisher: Publisher,
        waiting: Waiting,
        outputs: OutputReader,
        clock: Clock,
    ) -> None:
        self._database = database
        self._live = live
        self._dispatch = dispatch
        self._publisher = publisher
        self._waiting = waiting
        self._outputs = outputs
        self._clock = clock

    # ---------------------------------------------------------------------------------- killing
    async def kill(self, user_id: int, jids: Ranges | None) -> int:
        """Return how many jobs were ended; see `JobService.kill`."""
        if jids is None:
            pieces = [
                (span, 0, len(span.codes))
                for batch in tuple(self._live.batches.values())
                if batch.user_id == user_id
                for span in batch.spans
            ]
        else:
            await self._waiting.require(user_id, jids)
            pieces = [
                (span, *span.cut(first, last))
                for first, last in jids
                for span in self._live.overlapping(first, last)
            ]
        running: list[int] = []
        killed = 0
        for span, start, stop in pieces:
            for first, last, status in tuple(self._live.runs(span, start, stop)):
                if status is Status.PROCESSING:
                    self._live.wish_end(first)
                    running.append(first)
                elif status in (Status.WAITING, Status.QUEUED):
                    killed += await self._end(span, first, last)
        return killed + await self._kill_running(running)

    async def _end(self, span: Span, first: int, last: int) -> int:
        text = message(EndReason.KILLED, Facts())
        count = 0
        for start, stop in slices([(first, last)]):
            wanted = Move(
                span.batch.batch,
                span.batch.user_id,
                start,
                stop,
                Status.KILLED,
                EndReason.KILLED,
                text,
            )
            changes = await self._database.write(
                partial(move, wanted=wanted, at=self._clock.now_at()),
                self._ended,
                essential=True,
            )
            count += sum(c.last_jid - c.first_jid + 1 for c in changes)
        return count

    def _ended(self, changes: list[Change]) -> None:
        self._publisher.apply(changes)
        self._dispatch.killed([(c.first_jid, c.last_jid) for c in changes])

    async def _kill_running(self, running: list[int]) -> int:
        if not running:
            return 0
        opened = asyncio.Event()
        ranges = [(jid, jid) for jid in running]
        gate = Gate(self._live, ranges, enough=_changed, opened=opened.set)
        before = gate.unfinished
        try:
            self._dispatch.kill_running(running)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    while gate.unfinished:
                        opened.clear()
                        gate.rearm(opened.set)
                        await self._end_requeued(gate)
                        await opened.wait()
            return before
        finally:
            gate.close()

    async def _end_requeued(self, gate: Gate) -> None:
        """End those that went to their next attempt before the command came to them."""
        for span, start, stop in gate.pieces:
            for first, last, status in tuple(self._live.runs(span, start, stop)):
                if status is Status.QUEUED:
                    await self._end(span, first, last)

    # --------------------------------------------------------------------------------- deleting
    async def delete(self, user_id: int, jids: Ranges) -> int:
        """Return how many finished jobs were removed; see `JobService.delete`."""
        await self._waiting.require(user_id, jids)
        for first, last in jids:
            for span in self._live.overlapping(first, last):
                start, stop = span.cut(first, last)
                if span.unfinished(start, stop):
                    raise _unfinished(_first_unfinished(span, start, stop))
        removed = 0
        for first, last in slices(list(jids)):
            done = await asyncio.shield(
                self._database.write(
                    partial(delete_jobs, user_id, first, last, self._clock.now_at())
                )
            )
            removed += done.count
            for node, leases in done.outputs.items():
                await self._outputs.delete_output(node, leases)
        return removed


def _changed(gate: Gate) -> bool:
    return gate.changes > 0 or gate.unfinished == 0


def _first_unfinished(span: Span, start: int, stop: int) -> int:
    codes = span.codes
    return next(span.first_jid + at for at in range(start, stop) if codes[at] in b"wq")


def _unfinished(jid: int) -> Conflict:
    return Conflict(
        f"Job {jid} is not finished; only finished jobs can be deleted.",
        jid=jid,
        hint="kill it first",
    )


def delete_jobs(user_id: int, first: int, last: int, at: float, tx: Transaction) -> Removed:
    """Remove finished jobs of a range with their results, arguments and counters.

    Raises:
        Conflict: one is not finished.
    """
    running = tx.value(_UNFINISHED, first=first, last=last, user_id=user_id)
    if running is not None:
        raise _unfinished(running)
    removed = Removed()
    deltas: dict[int, Delta] = {}
    for batch, status, result, count in tx.all(
        _TO_DELETE, first=first, last=last, user_id=user_id
    ):
        deltas.setdefault(batch, Counter())[Status(status)] -= count
        removed.count += count
        if result is not None:
            unlink_result(tx, result, count, at, removed)
    tx.run(_DELETE_JOBS, first=first, last=last, user_id=user_id)
    tx.run(_DELETE_CACHE_KEYS, first=first, last=last)
    _unlink_parts(tx, user_id, first, last, at)
    for batch, delta in deltas.items():
        add_to_user(tx, user_id, delta)
        add_to_batch(tx, batch, delta)
        remove_if_empty(tx, batch, at, removed)
    return removed


def remove_if_empty(tx: Transaction, batch: int, at: float, removed: Removed) -> None:
    """Remove a closed batch without jobs, with what attempts that no job names left behind."""
    row = tx.one(_EMPTY_BATCH, batch=batch)
    if row is None:
        return
    links.unlink_function(tx, row[0], at)
    links.unlink_spec(tx, row[1])
    for node, lease, files, items in tx.all(_LEFT_RESULTS, batch=batch):
        _removed_result(tx, node, lease, files, items, at, removed)


def unlink_result(
    tx: Transaction, result: int, count: int, at: float, removed: Removed
) -> None:
    """Drop ``count`` links to a record; the last one removes it with its blobs and output."""
    row = tx.one(_UNLINK_RESULT, result=result, count=count)
    if row is None or row[0] > 0:
        return
    tx.run(_DELETE_RESULT, result=result)
    _, node, lease, files, items = row
    _removed_result(tx, node, lease, files, items, at, removed)


def _removed_result(
    tx: Transaction,
    node: str,
    lease: int | None,
    files: int,
    items: str,
    at: float,
    removed: Removed,
) -> None:
    if files:
        unlink_item_blobs(tx, items, at)
    if lease and not tx.one(_LEASE_IN_USE, lease=lease):
        removed.outputs.setdefault(node, []).append(lease_text(lease))


def unlink_item_blobs(tx: Transaction, items: str, at: float) -> None:
    """Drop the references of a record's items to blobs."""
    for item in codec.decode(items):
        if item[6] and item[6].get("blob"):
            links.unlink_blob(tx, item[6]["blob"], at)


def _unlink_parts(tx: Transaction, user_id: int, first: int, last: int, at: float) -> None:
    before = tx.value(_FIRST_PART, first=first, user_id=user_id)
    rows: Sequence[tuple[int, int, int, int]] = tx.all(
        _PARTS, last=last, before=(before or 0) - 1, user_id=user_id
    )
    for part_first, count, linked, files in rows:
        left = tx.value(_LEFT_IN_PART, first=part_first, last=part_first + count - 1)
        if left:
            tx.run(_UNLINK_PART, first=part_first, count=linked - left)
            continue
        if files:
            for (blob,) in tx.all(_PART_BLOBS, first=part_first, last=part_first + count - 1):
                links.unlink_blob(tx, blob, at)
        tx.run(_DELETE_PART, first=part_first)
