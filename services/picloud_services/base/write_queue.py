"""What waits for the thread that writes: short pieces of work pass long ones, and never starve them."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class WriteQueue(Generic[T]):
    """Two lanes into one thread. Within a lane the order is kept.

    `take` gives short and long pieces in turn, so that a short one waits for one long piece at most,
    and a long one goes on however many short ones come.
    """

    def __init__(self, group_limit: int) -> None:
        self._group_limit = group_limit
        self._short: deque[T] = deque()
        self._long: deque[T] = deque()
        self._filled = threading.Condition()
        self._nudged = self._closed = False
        self._short_was_last = False

    def put(self, piece: T, *, short: bool = False) -> None:
        """Add a piece at the end of its lane."""
        with self._filled:
            (self._short if short else self._long).append(piece)
            self._filled.notify()

    def nudge(self) -> None:
        """Let `take` return, even without work."""
        with self._filled:
            self._nudged = True
            self._filled.notify()

    def close(self) -> None:
        """Let `take` return nothing once everything was taken."""
        with self._filled:
            self._closed = True
            self._filled.notify()

    @property
    def is_over(self) -> bool:
        """Whether it was closed and everything was taken."""
        return self._closed and not (self._short or self._long)

    def take(self) -> list[T]:
        """Wait for work; return pieces of one lane that may share a commit, or [] if there are none."""
        with self._filled:
            while not (self._short or self._long or self._nudged or self._closed):
                self._filled.wait()
            self._nudged = False
            lane = self._next_lane()
            count = min(len(lane), self._group_limit)
            return [lane.popleft() for _ in range(count)]

    def _next_lane(self) -> deque[T]:
        both = bool(self._short and self._long)
        self._short_was_last = not self._short_was_last if both else bool(self._short)
        return self._short if self._short_was_last else self._long

    def put_back(self, pieces: list[T]) -> None:
        """Return long pieces that were taken but not begun to the front of their lane."""
        with self._filled:
            self._long.extendleft(reversed(pieces))

    @property
    def is_urgent(self) -> bool:
        """Whether short pieces wait: what holds the thread should come to an end."""
        return bool(self._short)
