"""Says which descriptors are ready: epoll with a callback for each. For a loop that turns often."""

import contextlib
import select
from collections.abc import Callable

_MOST_AT_ONCE = 16
_LONGEST_SECONDS = 86_400.0  # epoll refuses to wait for 25 days


class Watcher:
    """Calls what belongs to a descriptor when that can be read, or written where this is asked for."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._events: dict[int, int] = {}
        self._callbacks: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, on_ready: Callable[[], None], *, write: bool = False) -> None:
        """Watch ``fd``, from now on also for room to write if ``write``; may be called again."""
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        known = self._events.get(fd)
        if known == events:
            return
        if known is None:
            self._epoll.register(fd, events)
            self._callbacks[fd] = on_ready
        else:
            self._epoll.modify(fd, events)
        self._events[fd] = events

    def watches(self, fd: int) -> bool:
        """Return whether ``fd`` is watched."""
        return fd in self._events

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``; may be called twice."""
        if self._events.pop(fd, None) is not None:
            del self._callbacks[fd]
            with contextlib.suppress(OSError):  # closed already: the kernel has forgotten it
                self._epoll.unregister(fd)

    def wait(self, timeout_seconds: float | None) -> None:
        """Wait until something is ready, at most so long and a day, and call what belongs to it."""
        if timeout_seconds is not None:
            timeout_seconds = min(timeout_seconds, _LONGEST_SECONDS)
        for fd, _ in self._epoll.poll(timeout_seconds, _MOST_AT_ONCE):
            if (on_ready := self._callbacks.get(fd)) is not None:
                on_ready()
