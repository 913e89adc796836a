"""How long a supervisor lets bytes gather before it reads, and results before it reports. Pure.

Waking up for each of many tiny elements costs more than the elements. Nothing is held back when
the last element of a chunk may be the next to end: a single call is never delayed.
"""

HOLD_SECONDS = 0.005
FLUSH_SECONDS = 0.02
MAX_FLUSH_SECONDS = 0.1
_TINY_SECONDS = 0.01  # an element
_LEAST_SECONDS = 0.00005  # a shorter sleep costs more than it saves
_MANY_BYTES = 16 * 1024  # a pipe that fills fast must be emptied fast
_CALM_SECONDS = 0.005
_STEADY_READS = 8


def gather_seconds(age_seconds: float, finished: int) -> float:
    """Return how long a result may wait for others of its chunk, which runs for ``age_seconds``.

    A report costs as much as dozens of tiny elements, so those wait as long as the chunk has run.

    >>> gather_seconds(0.3, 1), gather_seconds(0.05, 50)
    (0.02, 0.05)
    """
    if age_seconds > _TINY_SECONDS * finished:
        return FLUSH_SECONDS
    return min(max(FLUSH_SECONDS, age_seconds), MAX_FLUSH_SECONDS)


class Pace:
    """Watches the reads of one container."""

    def __init__(self) -> None:
        self._began_at = 0.0
        self._read_at = 0.0
        self._output_reads = 0

    def begin(self, now: float) -> None:
        """Hear that a chunk was sent."""
        self._began_at = now
        self._output_reads = 0

    def hold(self, now: float, output_bytes: int, finished: int, remaining: int) -> float:
        """Return for how many seconds not to read.

        ``output_bytes`` came with this read; ``finished`` elements of the chunk have ended (0 if
        this read brought no result), ``remaining`` are still to end.
        """
        since, self._read_at = now - self._read_at, now
        if output_bytes >= _MANY_BYTES:
            self._output_reads = 0
            return 0.0
        if finished:
            self._output_reads = 0
            if remaining < 2:
                return 0.0
            each = (now - self._began_at) / finished
            held = min(HOLD_SECONDS, each * remaining / 4)
            return held if held >= _LEAST_SECONDS else 0.0
        self._output_reads = self._output_reads + 1 if since < _CALM_SECONDS else 0
        return HOLD_SECONDS if self._output_reads >= _STEADY_READS else 0.0
