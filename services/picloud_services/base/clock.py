"""The clocks of the control plane: a wall clock for what is shown, a steady one for what is decided."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from; tests pass one of their own."""

    def now_at(self) -> float:
        """Return UTC seconds since 1970: for records, never for deciding what is due."""

    def steady_seconds(self) -> float:
        """Return seconds that never jump: for leases, delays and ages."""


class SystemClock:
    """The machine's clocks."""

    now_at = staticmethod(time.time)
    steady_seconds = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._began_at = time.time() - _passed_seconds()

    def age_at(self) -> float:
        """Return UTC seconds to judge the age of files by: a clock that is put forward makes none old."""
        return min(time.time(), self._began_at + _passed_seconds())


def _passed_seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # a machine that sleeps ages, too
