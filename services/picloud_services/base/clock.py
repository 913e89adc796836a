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
