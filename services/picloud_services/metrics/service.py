"""Samples of jobs for whoever draws them. asyncio; one thread of its own does the disk's work."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_services.metrics.rollup import DEFAULT_GAP_SECONDS, UsagePoint, rates, thin
from picloud_services.metrics.store import PRUNE_ROWS, SampleStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

FLUSH_SECONDS = 1.0
MAX_PENDING = 20_000  # samples that wait for a slow disk; the oldest are dropped beyond it
DEFAULT_RETENTION_SECONDS = 30 * 86_400.0
DEFAULT_MAX_BYTES = 512 * 1024 * 1024
DEFAULT_MAX_POINTS = 1_000
READ_PER_POINT = 4  # samples read for each point wanted: enough to see gaps and peaks


class MetricsService:
    """Takes samples in, gives series out, forgets the old. Nothing it loses breaks a promise.

    ``path`` is HOME/metrics.db. A full or broken disk is logged and counted in ``dropped``; it
    never reaches a caller of `add`.
    """

    def __init__(
        self,
        path: Path,
        *,
        retention_seconds: float = DEFAULT_RETENTION_SECONDS,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._path = path
        self._retention_seconds = retention_seconds
        self._max_bytes = max_bytes
        self._store: SampleStore | None = None
        self._store_is_lost = False  # and that was said
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._pending: list[ResourceSample] = []
        self._forgotten: set[int] = set()
        self._flushing: asyncio.TimerHandle | None = None  # until its batch is taken
        self._writing = asyncio.Lock()  # a batch at a time: what comes meanwhile is bounded
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0

    async def start(self) -> None:
        """Open the file; one that cannot be opened is tried again with the samples that come."""
        try:
            self._store = await self._in_thread(lambda: SampleStore(self._path))
        except (OSError, sqlite3.Error) as error:
            if self._store_is_lost:
                return
            self._store_is_lost = True
            logger.warning("no resource samples are kept: %s: %s", self._path, error)
        else:
            self._store_is_lost = False

    async def stop(self) -> None:
        """Write what is pending and close."""
        await self._flush()
        if self._store is not None:
            await self._in_thread(self._store.close)
            self._store = None
        self._thread.shutdown()

    def add(self, samples: Iterable[ResourceSample]) -> None:
        """Take ``samples``; they are written within a second, many at once."""
        self._pending += samples
        if len(self._pending) > MAX_PENDING:
            excess = len(self._pending) - MAX_PENDING
            del self._pending[:excess]
            self._drop(excess, "the disk is too slow")
        self._flush_later()

    def forget(self, jids: Sequence[int]) -> None:
        """Remove the samples of ``jids``, within a second."""
        self._forgotten.update(jids)
        self._flush_later()

    def _flush_later(self) -> None:
        if self._flushing is None:
            loop = asyncio.get_running_loop()
            self._flushing = loop.call_later(FLUSH_SECONDS, self._flush_soon)

    async def samples(
        self, jid: int, since_at: float = 0.0, max_points: int = DEFAULT_MAX_POINTS
    ) -> list[ResourceSample]:
        """Return the samples of ``jid`` after ``since_at``, thinned to ``max_points`` (at least 2)."""
        found, _ = await self._read(jid, since_at, max_points)
        return found

    async def series(
        self, jid: int, since_at: float = 0.0, max_points: int = DEFAULT_MAX_POINTS
    ) -> list[list[UsagePoint]]:
        """Return the use of ``jid`` over time: one list of points per stretch without a gap."""
        found, gap_seconds = await self._read(jid, since_at, max_points)
        return rates(found, gap_seconds=gap_seconds)

    async def prune(self, now_at: float) -> int:
        """Remove what is too old or too much; return how many samples. Call it every few minutes."""
        store = self._store
        if store is None:
            return 0
        before_at = now_at - self._retention_seconds
        removed = 0
        while True:
            count = await self._in_thread(lambda: store.prune(before_at, self._max_bytes))
            removed += count
            if count < PRUNE_ROWS:
                return removed

    async def _read(
        self, jid: int, since_at: float, max_points: int
    ) -> tuple[list[ResourceSample], float]:
        """Return (at most ``max_points`` samples, the seconds between them that are a gap)."""
        store = self._store

        def read() -> tuple[list[ResourceSample], float]:
            if store is None:
                return [], 0.0
            return store.read(jid, since_at, READ_PER_POINT * max_points)

        stored, spacing = await self._in_thread(read)
        last_at = stored[-1].at if stored else since_at
        found = stored + [s for s in self._pending if s.jid == jid and s.at > last_at]
        gap_seconds = max(DEFAULT_GAP_SECONDS, 2 * spacing)
        thinned = thin(found, max_points, gap_seconds=gap_seconds)
        if len(thinned) < len(found) and found:
            # What was thinned away is no gap.
            span = found[-1].at - found[0].at
            gap_seconds = max(gap_seconds, 4 * span / max_points)
        return thinned, gap_seconds

    def _flush_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._flush(), name="metrics flush")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush(self) -> None:
        async with self._writing:
            if self._flushing is not None:
                self._flushing.cancel()
                self._flushing = None
            batch, self._pending = self._pending, []
            forgotten, self._forgotten = self._forgotten, set()
            if not batch and not forgotten:
                return
            if self._store is None:
                await self.start()
            store = self._store
            if store is None:
                self._drop(len(batch), "their file cannot be opened")
                return
            try:
                await self._in_thread(lambda: store.change(batch, forgotten))
            except sqlite3.Error as error:
                self._drop(len(batch), str(error))

    def _drop(self, count: int, why: str) -> None:
        if not self.dropped:
            logger.warning("resource samples are dropped: %s", why)
        self.dropped += count

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
