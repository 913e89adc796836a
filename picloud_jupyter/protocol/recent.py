"""Which long values the other end of a link still has, without asking it."""

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class RecentKeys(Generic[V]):
    """The last ``limit`` keys by use. Sender and receiver each keep one and use it alike.

    As both see the same keys in the same order, both forget the same one: the sender knows when
    it may leave a value out, and the receiver never holds more than ``limit`` of them.

    >>> sent = RecentKeys[bool](2)
    >>> [sent.get(key) is not None or sent.put(key, True) for key in "aabca"]
    [None, True, None, None, None]
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[str, V] = OrderedDict()

    def get(self, key: str) -> V | None:
        """Return the value kept for ``key`` and make it the most recent; None if there is none."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: str, value: V) -> None:
        """Keep ``value`` as the most recent and forget the oldest one over the limit."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._limit:
            self._values.popitem(last=False)
