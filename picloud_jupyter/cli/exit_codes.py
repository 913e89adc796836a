"""How `picloud` ends."""

from dataclasses import dataclass

DONE, UNEXPECTED, WRONG_USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True, slots=True)
class ExitWith:
    """What a command returns to print ``value`` and still end with ``code``."""

    code: int
    value: object
