"""How long elements of a function take: a moving average per (function, core type). Pure."""

from collections import OrderedDict
from dataclasses import dataclass

KEPT = 4096
WEIGHT = 0.4  # of the newest chunk

Key = tuple[str, str]  # function digest, core type


@dataclass(frozen=True, slots=True)
class Estimate:
    """``seconds`` per element, and the largest chunk that has ended so far."""

    seconds: float
    grown: int


class Estimates:
    """The estimates of the functions used last."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, Estimate] = OrderedDict()

    def get(self, key: Key) -> Estimate | None:
        """Return the estimate for ``key``; None if nothing of it has ended yet."""
        return self._known.get(key)

    def learn(self, key: Key, count: int, seconds: float) -> None:
        """Take note that ``count`` elements took ``seconds`` together."""
        if count < 1:
            return
        mean = seconds / count
        known = self._known.get(key)
        if known is not None:
            mean = known.seconds + WEIGHT * (mean - known.seconds)
            count = max(count, known.grown)
        self._known[key] = Estimate(mean, count)
        self._known.move_to_end(key)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
