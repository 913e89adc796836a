"""Runs an async step again and again, and says how it goes."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TickerHealth:
    """How a ticker is doing. Moments are UTC seconds, 0.0 = never.

    ``failures`` counts all failed runs, ``failing`` those since the last good one.
    """

    name: str
    runs: int = 0
    failures: int = 0
    failing: int = 0
    last_ok_at: float = 0.0
    last_error_at: float = 0.0
    last_error: str = ""


class Ticker:
    """Runs ``step`` every ``seconds`` until stopped; a step that raises is logged and run again.

    Steps never overlap: the next one is due ``seconds`` after the last one began, or at once when
    that one took longer. ``jitter`` spreads each pause by up to that fraction either way, so that
    many tickers do not fall into step. Of one failure in a row the first is logged with its
    traceback, the following ones with a line whenever their count doubles.

    After a step that leaves ``idle`` true there is no timer: the next one comes an interval after
    `resume`, or at once after `wake`.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        step: Callable[[], Awaitable[object]],
        *,
        jitter: float = 0.1,
        idle: Callable[[], bool] = lambda: False,
        on_late: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        if seconds <= 0 or not 0 <= jitter < 1:
            raise ValueError(f"ticker {name}: seconds must be above 0 and jitter in 0..1")
        self._seconds = seconds
        self._step = step
        self._jitter = jitter
        self._idle = idle
        self._on_late = on_late  # told how much later than planned each pause ended
        self._health = TickerHealth(name)
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._resumed = asyncio.Event()

    @property
    def health(self) -> TickerHealth:
        """Return how it goes so far."""
        return self._health

    def start(self) -> None:
        """Begin; the first step runs at once. Starting twice does nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"ticker {self._health.name}"
            )

    def wake(self) -> None:
        """Run the next step now instead of when it is due."""
        self._woken.set()
        self._resumed.set()

    def resume(self) -> None:
        """Go on if it rests; there is something to do again."""
        self._resumed.set()

    async def stop(self) -> None:
        """End; a step that is running is cancelled. Stopping twice does nothing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._woken.clear()
            self._resumed.clear()
            await self._run_step()
            if self._idle():
                await self._resumed.wait()
                began = loop.time()
            pause = self._seconds * (1 + self._jitter * random.uniform(-1, 1))  # noqa: S311  # spreads load only
            await self._pause(began + pause - loop.time())

    async def _run_step(self) -> None:
        try:
            await self._step()
        except Exception as error:  # noqa: BLE001  # the top of a loop
            self._note_failure(error)
        else:
            health = self._health
            if health.failing:
                logger.info("%s works again after %d failures", health.name, health.failing)
            self._health = replace(
                health, runs=health.runs + 1, failing=0, last_ok_at=time.time()
            )

    def _note_failure(self, error: Exception) -> None:
        health = self._health = replace(
            self._health,
            runs=self._health.runs + 1,
            failures=self._health.failures + 1,
            failing=self._health.failing + 1,
            last_error_at=time.time(),
            last_error=f"{type(error).__name__}: {error}",
        )
        if health.failing == 1:
            logger.error("%s failed; it goes on", health.name, exc_info=error)
        elif health.failing & (health.failing - 1) == 0:
            logger.error(
                "%s failed %d times: %s", health.name, health.failing, health.last_error
            )

    async def _pause(self, seconds: float) -> None:
        # A step that takes longer than its interval must not starve the rest of the loop.
        loop = asyncio.get_running_loop()
        due = loop.time() + max(seconds, 0.001)
        try:
            async with asyncio.timeout_at(due):
                await self._woken.wait()
        except TimeoutError:
            self._on_late(loop.time() - due)
