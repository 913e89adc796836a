"""Whether short work may be committed on the loop itself, and at once."""

import time
from collections import deque

INLINE_SECONDS = 0.0015  # the loop is not held by a disk whose commits take longer
MEASURED_COMMITS = 15
QUIET_SECONDS = 0.0003  # work that comes sooner after a commit gathers for the next one


class CommitPace:
    """Remembers how long short commits took, and when the last one on the loop ended."""

    def __init__(self) -> None:
        self.is_fast = True  # commits are shorter than what the loop can spare
        self._seconds: deque[float] = deque(maxlen=MEASURED_COMMITS)
        self._ended_at = 0.0  # in time.perf_counter

    def measure(self, seconds: float) -> None:
        """Note how long a short commit took."""
        known = self._seconds
        known.append(seconds)
        # The quick quarter tells the disk's pace; others may have waited for a core.
        self.is_fast = sorted(known)[len(known) // 4] <= INLINE_SECONDS

    def ended_here(self, started_at: float) -> None:
        """Note a commit on the loop that began at ``started_at`` (time.perf_counter)."""
        self._ended_at = time.perf_counter()
        self.measure(self._ended_at - started_at)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing else seems to be on its way, with which a commit could be shared."""
        return time.perf_counter() - self._ended_at >= QUIET_SECONDS
