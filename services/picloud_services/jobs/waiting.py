"""Long polls: how far a set of jobs is, woken by committed changes."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable
from functools import partial

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import Status
from picloud_services.base.database import Database
from picloud_services.jobs import queries
from picloud_services.jobs.gates import Gate
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.queries import unknown
from picloud_services.jobs.reasoning import Whys
from picloud_services.jobs.spans import UNFINISHED_CODES, Span
from picloud_services.jobs.words import Ranges, WaitAnswer

MAX_WAIT_SECONDS = 60.0
MAX_JIDS = 10_000_000
MAX_FAILED = 10
MAX_PENDING = 50
MAX_WHY = 3
CHANGE_PAUSE_SECONDS = 0.02  # a map's counts change thousands of times a second
_UNFINISHED = re.compile(b"[wq]+")


class Waiting:
    """Answers how far jobs are; O(changes) while it waits."""

    def __init__(self, database: Database, live: LiveJobs, whys: Whys) -> None:
        self._database = database
        self._live = live
        self._whys = whys

    # -------------------------------------------------------------------------------- ownership
    def split(self, user_id: int, jids: Ranges) -> list[JidRange]:
        """Return those of ``jids`` that are not in the image, after checking those that are.

        Raises:
            NotFound: one in the image is another user's, or was never committed.
            InvalidRequest: too many.
        """
        elsewhere: list[JidRange] = []
        total = 0
        for first, last in jids:
            total += last - first + 1
            if total > MAX_JIDS:
                raise InvalidRequest(f"ask for at most {MAX_JIDS:,} jobs at once")
            at = first
            for span in self._live.overlapping(first, last):
                start, stop = span.cut(first, last)
                if span.batch.user_id != user_id or 0 in span.codes[start:stop]:
                    raise unknown(first, last)
                if span.first_jid + start > at:
                    elsewhere.append((at, span.first_jid + start - 1))
                at = span.first_jid + stop
            if at <= last:
                elsewhere.append((at, last))
        return elsewhere

    async def require(self, user_id: int, jids: Ranges) -> list[JidRange]:
        """Return those of ``jids`` that are not in the image: they are finished.

        Raises:
            NotFound: one of ``jids`` is not the user's.
        """
        elsewhere = self.split(user_id, jids)
        if elsewhere:
            missing = await self._database.read(
                lambda tx: queries.count_owned(tx, user_id, elsewhere)
            )
            if missing is not None:
                raise unknown(*missing)
        return elsewhere

    # ---------------------------------------------------------------------------------- waiting
    async def wait(
        self,
        user_id: int,
        jids: Ranges,
        timeout_seconds: float,
        until: str,
        counts_seen: dict[str, int] | None,
    ) -> WaitAnswer:
        """Return how far ``jids`` are; see `JobService.wait`."""
        deadline = asyncio.get_running_loop().time() + min(timeout_seconds, MAX_WAIT_SECONDS)
        opened = asyncio.Event()
        gate = Gate(self._live, list(jids), enough=_enough(until), opened=opened.set)
        try:
            elsewhere = await self.require(user_id, jids)
            fixed = Counter[str]()
            if elsewhere:
                fixed.update(
                    await self._database.read(lambda tx: queries.counts(tx, user_id, elsewhere))
                )
            if until == "error" and any(
                fixed[s] for s in (Status.ERROR, Status.KILLED, Status.STALLED)
            ):
                opened.set()
            gate.check()
            if until == "change":
                await self._until_changed(gate, fixed, counts_seen or {}, opened, deadline)
            else:
                await _until(opened, deadline)
            return await self._answer(user_id, gate, fixed, jids)
        finally:
            gate.close()

    async def until_first(self, user_id: int, jids: Ranges, timeout_seconds: float) -> None:
        """Return when one of ``jids`` is finished or the time is over."""
        first, last = jids[0]
        if len(jids) > 1 or first != last:
            await self._until_any(user_id, jids, timeout_seconds)
            return
        span = self._live.find(first)
        if span is None or not timeout_seconds:
            return
        self.split(user_id, [(first, first)])
        if span.code(first) not in UNFINISHED_CODES:
            return
        end = _End(first - span.first_jid)
        timer = end.future.get_loop().call_later(
            min(timeout_seconds, MAX_WAIT_SECONDS), end.reached
        )
        span.watchers.append(end)
        try:
            await end.future
        finally:
            timer.cancel()
            span.watchers.remove(end)

    async def _until_any(self, user_id: int, jids: Ranges, timeout_seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + min(timeout_seconds, MAX_WAIT_SECONDS)
        if self.split(user_id, jids):
            return  # those are finished, or unknown: reading them tells
        opened = asyncio.Event()
        count = sum(last - first + 1 for first, last in jids)
        gate = Gate(
            self._live,
            list(jids),
            enough=lambda gate: gate.unfinished < count,
            opened=opened.set,
        )
        try:
            gate.check()
            await _until(opened, deadline)
        finally:
            gate.close()

    async def _until_changed(
        self,
        gate: Gate,
        fixed: "Counter[str]",
        seen: dict[str, int],
        opened: asyncio.Event,
        deadline: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        while gate.unfinished and self._counts(gate, fixed) == seen:
            opened.clear()
            gate.rearm(opened.set)
            await _until(opened, deadline)
            if not opened.is_set():
                return
            await asyncio.sleep(min(CHANGE_PAUSE_SECONDS, max(deadline - loop.time(), 0)))

    def _counts(self, gate: Gate, fixed: "Counter[str]") -> dict[str, int]:
        counts = Counter(fixed)
        for span, start, stop in gate.pieces:
            for status, count in self._live.count(span, start, stop).items():
                counts[str(status)] += count
        return dict(counts)

    async def _answer(
        self, user_id: int, gate: Gate, fixed: "Counter[str]", jids: Ranges
    ) -> WaitAnswer:
        counts = self._counts(gate, fixed)
        failed: list[tuple[int, str, str]] = []
        if any(counts.get(s) for s in (Status.ERROR, Status.KILLED, Status.STALLED)):
            failed = await self._database.read(
                partial(queries.failed, user_id=user_id, jids=jids, limit=MAX_FAILED)
            )
        pending = _pending(gate) if gate.unfinished else []
        why = {first: text for first, _ in pending[:MAX_WHY] if (text := self._whys.why(first))}
        return WaitAnswer(not gate.unfinished, counts, failed, pending, why)


class _End:
    """Watches for the end of the job at one position of a span: what most calls wait for."""

    def __init__(self, position: int) -> None:
        self._position = position
        self.future = asyncio.get_running_loop().create_future()

    def changed(self, _span: Span, start: int, stop: int, _old: int, new: int) -> None:
        """Take note of a committed change (the protocol of a span's watchers)."""
        if start <= self._position < stop and new not in UNFINISHED_CODES:
            self.reached()

    def reached(self) -> None:
        """Stop waiting."""
        if not self.future.done():
            self.future.set_result(None)


def _all_finished(gate: Gate) -> bool:
    return gate.unfinished == 0


def _enough(until: str) -> Callable[[Gate], bool]:
    if until == "all":
        return _all_finished
    if until == "error":
        return lambda gate: gate.failed > 0 or gate.unfinished == 0
    return lambda gate: gate.changes > 0 or gate.unfinished == 0


async def _until(opened: asyncio.Event, deadline: float) -> None:
    loop = asyncio.get_running_loop()
    if opened.is_set() or deadline <= loop.time():
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await opened.wait()


def _pending(gate: Gate) -> list[JidRange]:
    found: list[JidRange] = []
    for span, start, stop in gate.pieces:
        for match in _UNFINISHED.finditer(span.codes, start, stop):
            found.append((span.first_jid + match.start(), span.first_jid + match.end() - 1))
            if len(found) >= MAX_PENDING:
                return found
    return found
