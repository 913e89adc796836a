"""Waiting for jobs to end: long polls of at most a minute, one after another."""

import time
from collections.abc import Sequence
from typing import Any

from picloud_jupyter.cloud.jid_ranges import JidRanges
from picloud_jupyter.cloud.progress import Progress
from picloud_jupyter.cloud.session import running_on_cloud, session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudTimeoutError
from picloud_jupyter.protocol.ids import JidRange, count_ranges
from picloud_jupyter.protocol.jobs import Status
from picloud_jupyter.transport.client import LONGEST_WAIT_SECONDS, Canceller

Failed = tuple[int, str, str]  # jid, status, end reason
DEADLOCK_SECONDS = 60.0
DEADLOCK_LOOK_SECONDS = 5.0


class Deadline:
    """The end of a wait; ``timeout`` in seconds, None or 0 = never.

    Raises:
        TypeError: not a number.
        ValueError: negative.
    """

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float)
        ):
            raise TypeError(f"timeout must be a number of seconds or None, got {timeout!r}")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must not be negative, got {timeout}")
        self.timeout = timeout or None
        self._end_at = time.monotonic() + timeout if timeout else None

    def slice_seconds(self, longest: float = LONGEST_WAIT_SECONDS) -> float:
        """Return how long the next long poll may take."""
        if self._end_at is None:
            return longest
        return max(0.0, min(longest, self._end_at - time.monotonic()))

    @property
    def over(self) -> bool:
        """Whether the time has passed."""
        return self._end_at is not None and time.monotonic() >= self._end_at

    def error(self, pending: Sequence[JidRange]) -> CloudTimeoutError:
        """Return the exception for the jobs that are still unfinished."""
        jids: Any = JidRanges.of_pairs(pending)
        count = len(jids)
        what = f"{count:,} jobs are" if count != 1 else "it is"
        return CloudTimeoutError(
            f"{what} not finished after {self.timeout:g} s",
            int(jids[0]) if count == 1 else jids,
        )


class DeadlockCheck:
    """PiCloud's guard for jobs that wait for jobs: nothing queued has moved for a minute. Pure."""

    def __init__(self, now: float) -> None:
        self._queued = -1
        self._since = now

    def observe(self, queued: int, now: float) -> bool:
        """Return whether ``queued`` jobs (more than none) have been the same number for too long."""
        if queued != self._queued:
            self._queued, self._since = queued, now
        return queued > 0 and now - self._since >= DEADLOCK_SECONDS


def wait_finished(
    ranges: Sequence[JidRange],
    deadline: Deadline,
    *,
    ignore_errors: bool,
    deadlock_check: bool = True,
    canceller: Canceller | None = None,
) -> list[Failed]:
    """Return some of those that failed, once all of ``ranges`` are finished.

    Without ``ignore_errors`` it returns as soon as one has failed.

    Raises:
        CloudTimeoutError: the deadline passed; ``jid`` holds the unfinished ones.
        RequestCancelledError: ``canceller`` was used.
    """
    progress = Progress(count_ranges(ranges))
    deadlock = (
        DeadlockCheck(time.monotonic()) if deadlock_check and running_on_cloud() else None
    )
    until = "all" if ignore_errors else "error"
    try:
        while True:
            longest = progress.next_update_seconds()
            if deadlock:
                longest = min(longest, DEADLOCK_LOOK_SECONDS)
            seconds = deadline.slice_seconds(longest)
            answer = session().client.post(
                routes.WAIT,
                {"jids": ranges, "timeout_seconds": seconds, "until": until},
                wait_seconds=seconds,
                canceller=canceller,
            )
            progress.update(answer["counts"])
            failed = [(jid, status, reason) for jid, status, reason in answer.get("failed", ())]
            if answer["finished"] or (failed and not ignore_errors):
                return failed
            if deadline.over:
                raise deadline.error([(a, b) for a, b in answer.get("pending", ())] or ranges)
            if deadlock and deadlock.observe(
                answer["counts"].get(Status.QUEUED, 0), time.monotonic()
            ):
                raise CloudTimeoutError(
                    f"the jobs that this job waits for have not moved for {DEADLOCK_SECONDS:.0f} seconds: recursive jobs may wait for each other",
                    JidRanges.of_pairs(ranges),
                    hint="deadlock_check=False waits on",
                )
    finally:
        progress.finish()
