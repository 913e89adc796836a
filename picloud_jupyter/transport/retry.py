"""How long to wait before the same request is sent again. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """At most ``attempts`` more tries; waits grow from ``first_seconds`` to ``longest_seconds``.

    After ``silent_attempts`` more of them that were taken and not answered in a minute no more follow.
    """

    attempts: int = 9
    silent_attempts: int = 2
    first_seconds: float = 0.05
    longest_seconds: float = 5.0


def delay_seconds(limits: RetryLimits, failures: int, dice: float) -> float | None:
    """Return the pause after that many ``failures`` (from 1 on), or None to give up.

    ``dice`` in [0, 1) spreads clients that failed together: the pause is half to all of its step.

    >>> delay_seconds(RetryLimits(attempts=2), 1, 0.0), delay_seconds(RetryLimits(attempts=2), 3, 0.0)
    (0.025, None)
    """
    if failures > limits.attempts:
        return None
    step = min(limits.longest_seconds, limits.first_seconds * 2.0 ** (failures - 1))
    return step * (0.5 + dice / 2)
