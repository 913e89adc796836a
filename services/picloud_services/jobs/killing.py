"""Ends jobs by request: those that wait in the store, those that run by a durable wish and a command."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from picloud_jupyter.protocol.ids import to_ranges
from picloud_jupyter.protocol.jobs import EndReason, Status
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.sql import Statement, Transaction
from picloud_services.jobs.ending import SLICE, Move, move_all
from picloud_services.jobs.gates import Gate
from picloud_services.jobs.live import Change, LiveJobs
from picloud_services.jobs.ports import Dispatch
from picloud_services.jobs.publishing import Publisher
from picloud_services.jobs.reasons import Facts, message
from picloud_services.jobs.spans import LiveBatch
from picloud_services.jobs.waiting import Waiting
from picloud_services.jobs.words import Ranges

KILL_SECONDS = 2.0
_WISH = Statement("UPDATE jobs SET kill_wished = 1 WHERE jid = :jid AND status = 'queued'")


class Killing:
    """Kills. `replay` ends what was to end before the service did."""

    def __init__(
        self,
        database: Database,
        live: LiveJobs,
        dispatch: Dispatch,
        publisher: Publisher,
        waiting: Waiting,
        clock: Clock,
    ) -> None:
        self._database = database
        self._live = live
        self._dispatch = dispatch
        self._publisher = publisher
        self._waiting = waiting
        self._clock = clock

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
        waiting: list[Move] = []
        for span, start, stop in pieces:
            for first, last, status in self._live.runs(span, start, stop):
                if status is Status.PROCESSING:
                    self._live.wish_end(first)
                    running.append(first)
                elif status in (Status.WAITING, Status.QUEUED):
                    waiting.append(_move(span.batch, first, last))
        return await self._end(waiting) + await self._kill_running(running)

    async def replay(self, leased: set[int]) -> None:
        """End jobs that were to end, and that no node holds any more; ``leased`` are the others."""
        moves = [
            _move(span.batch, first, last)
            for asked in to_ranges(sorted(self._live.killing - leased))
            for span in self._live.overlapping(*asked)
            for first, last, _ in self._live.runs(span, *span.cut(*asked))
        ]
        await self._end(moves)

    async def _end(self, moves: Iterable[Move]) -> int:
        count = 0
        for group in _groups(moves):
            changes = await self._database.write(
                partial(move_all, moves=group, at=self._clock.now_at()),
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
            await self._database.write(partial(_wish, running), essential=True)
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
        await self._end(
            [
                _move(span.batch, first, last)
                for span, start, stop in gate.pieces
                for first, last, status in self._live.runs(span, start, stop)
                if status is Status.QUEUED
            ]
        )


def _changed(gate: Gate) -> bool:
    return gate.changes > 0 or gate.unfinished == 0


def _wish(running: Sequence[int], tx: Transaction) -> None:
    tx.many(_WISH, [{"jid": jid} for jid in running])


def _move(batch: LiveBatch, first: int, last: int) -> Move:
    text = message(EndReason.KILLED, Facts())
    return Move(batch.batch, batch.user_id, first, last, Status.KILLED, EndReason.KILLED, text)


def _groups(moves: Iterable[Move]) -> Iterator[list[Move]]:
    """Yield ``moves``, cut where they are long, in groups of at most a transaction's worth of jobs."""
    group: list[Move] = []
    room = SLICE
    for wanted in moves:
        first = wanted.first_jid
        while first <= wanted.last_jid:
            last = min(wanted.last_jid, first + room - 1)
            group.append(wanted.cut(first, last))
            room -= last - first + 1
            first = last + 1
            if not room:
                yield group
                group, room = [], SLICE
    if group:
        yield group
