"""Background threads that see jobs end, one for all jobs that are watched in the same way.

`watch` tells how they ended: for `_callback` and ``await jid``. `collector` brings what they
returned: for executors. A wait in such a thread of a job counts as one of the job: its cores are free for
other jobs meanwhile.
"""

import functools
import inspect
import logging
import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from picloud_jupyter.cloud.outcomes import Outcome, start_fetch
from picloud_jupyter.cloud.session import Service, on_close, service
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException, NotFound
from picloud_jupyter.protocol.ids import to_ranges
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES
from picloud_jupyter.transport.client import (
    LONGEST_WAIT_SECONDS,
    Canceller,
    RequestCancelledError,
)

T = TypeVar("T")
W = TypeVar("W", bound="_Watcher[Any]")
OnEnd = Callable[[int, str | CloudException], None]  # jid; its status, or why it is unknown
OnOutcome = Callable[[int, Outcome | CloudException], None]
_Functions = Sequence[Callable[[int, Any], object]]
_log = logging.getLogger("picloud")


class _Watcher(Generic[T]):
    """Calls functions when jobs end, from a daemon thread that lives while there are any."""

    def __init__(self, of: Service) -> None:
        self.service = of
        self.canceller = Canceller()
        self._lock = threading.Lock()
        self._watched: dict[int, list[Callable[[int, T | CloudException], None]]] = {}
        self._thread: threading.Thread | None = None

    def watch(
        self, jids: Iterable[int], on_end: Callable[[int, T | CloudException], None]
    ) -> None:
        """Have ``on_end`` called for each of ``jids`` when it is finished or cannot be asked for."""
        with self._lock:
            for jid in jids:
                self._watched.setdefault(int(jid), []).append(on_end)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="picloud-watcher", daemon=True)
                thread.start()  # raises where there may be no more threads; the next watch tries again
                self._thread = thread
            elif self._thread is not threading.current_thread():
                self.canceller.cancel()  # the poll in flight does not know them

    def forget(
        self, jids: Iterable[int], on_end: Callable[[int, T | CloudException], None]
    ) -> None:
        """Take back a `watch`; nothing happens to those that were called already."""
        with self._lock:
            for jid in jids:
                functions = self._watched.get(int(jid), [])
                if on_end in functions:
                    functions.remove(on_end)
                    if not functions:
                        del self._watched[int(jid)]
            self.canceller.cancel()

    def give_up_all(self, error: CloudException) -> None:
        """Take back every `watch`; who waits is told ``error``, in a thread of its own."""
        with self._lock:
            dropped, self._watched = self._watched, {}
            self.canceller.cancel()
        if dropped:  # functions of the user must not run under the locks of who closes
            threading.Thread(
                target=self._tell_all,
                args=(dropped, error),
                name="picloud-watcher",
                daemon=True,
            ).start()

    @abstractmethod
    def look(self, jids: list[int]) -> list[tuple[int, T]]:
        """Return those of ``jids`` that are finished, or none after waiting for one."""

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._watched:
                    self._thread = None
                    return
                jids = list(self._watched)
            try:
                found = self.service.run(self.look, jids)
            except RequestCancelledError:
                continue
            except NotFound:
                self._give_up_missing(sorted(jids))
            except CloudException as exc:
                self._give_up(jids, exc)
            except Exception as exc:  # noqa: BLE001  # the loop's top: it goes on for the others
                _log.exception("watching %d jobs failed", len(jids))
                self._give_up(jids, CloudException(f"watching the job failed: {exc}"))
            else:
                for jid, outcome in found:
                    self._fire(jid, outcome)

    def _give_up(self, jids: Iterable[int], error: CloudException) -> None:
        for jid in jids:
            self._fire(jid, error)

    def _give_up_missing(self, jids: list[int]) -> None:
        """Give up those of ``jids`` that were deleted or never were; the others are watched on."""
        try:
            self.service.run(self._require, jids)
        except NotFound as exc:
            if len(jids) == 1:
                self._give_up(jids, exc)
                return
            half = len(jids) // 2
            self._give_up_missing(jids[:half])
            self._give_up_missing(jids[half:])
        except CloudException as exc:
            self._give_up(jids, exc)

    def _require(self, jids: list[int]) -> None:
        self.service.session().client.post(routes.STATUS, {"jids": to_ranges(jids)})

    def _fire(self, jid: int, outcome: T | CloudException) -> None:
        with self._lock:
            functions = self._watched.pop(jid, [])
        self._tell(functions, jid, outcome)

    def _tell_all(self, watched: Mapping[int, _Functions], error: CloudException) -> None:
        for jid, functions in watched.items():
            self._tell(functions, jid, error)

    def _tell(self, functions: _Functions, jid: int, outcome: T | CloudException) -> None:
        for function in functions:
            try:
                function(jid, outcome)
            except BaseException:  # noqa: BLE001  # the user's own; a sys.exit() ends no thread that serves others
                _log.exception("a callback of job %d failed", jid)


class StatusWatcher(_Watcher[str]):
    """Tells with which status jobs ended."""

    def look(self, jids: list[int]) -> list[tuple[int, str]]:
        """See `_Watcher`."""
        client = self.service.session().client
        ranges = to_ranges(jids)
        counts: dict[str, int] = {}
        ended: list[tuple[int, str]] = []
        for first, last, status in client.post(routes.STATUS, {"jids": ranges})["statuses"]:
            counts[status] = counts.get(status, 0) + last - first + 1
            if status in FINISHED_STATUSES:
                ended += [(jid, status) for jid in range(first, last + 1)]
        if not ended:
            client.post(
                routes.WAIT,
                {
                    "jids": ranges,
                    "timeout_seconds": LONGEST_WAIT_SECONDS,
                    "until": "change",
                    "counts_seen": counts,
                },
                wait_seconds=LONGEST_WAIT_SECONDS,
                canceller=self.canceller,
            )
        return ended


class Collector(_Watcher[Outcome]):
    """Brings the outcomes of jobs as they end."""

    def look(self, jids: list[int]) -> list[tuple[int, Outcome]]:
        """See `_Watcher`."""
        ranges = to_ranges(jids)
        pending = start_fetch(
            ranges, wait_seconds=LONGEST_WAIT_SECONDS, canceller=self.canceller
        )
        return [(outcome.jid, outcome) for outcome in pending.take()[0]]


_watchers: dict[tuple[type, Service], _Watcher[Any]] = {}
_lock = threading.Lock()


def _watcher_of(kind: type[W], of: Service) -> W:
    with _lock:
        found = _watchers.get((kind, of))
        if found is None:
            found = _watchers[kind, of] = kind(of)
        assert isinstance(found, kind)
        return found


def watch(jid: int, on_end: OnEnd) -> None:
    """Have ``on_end`` called in a background thread when ``jid`` is finished."""
    _watcher_of(StatusWatcher, service()).watch((jid,), on_end)


def forget(jid: int, on_end: OnEnd) -> None:
    """Take back a `watch`."""
    _watcher_of(StatusWatcher, service()).forget((jid,), on_end)


def collector() -> Collector:
    """Return what brings the outcomes of jobs of the service in use."""
    return _watcher_of(Collector, service())


def run_callbacks(
    jid: int,
    on_success: Iterable[Callable[..., object]],
    on_error: Iterable[Callable[..., object]],
) -> None:
    """Have the functions called here when ``jid`` ends: with its jid if they take an argument."""
    for functions, wanted in ((on_success, True), (on_error, False)):
        for function in functions:
            watch(jid, functools.partial(_call_back, function, wanted))


def _call_back(
    function: Callable[..., object],
    wanted: bool,  # noqa: FBT001  # bound by partial
    jid: int,
    outcome: str | CloudException,
) -> None:
    if isinstance(outcome, CloudException):
        _log.warning("a callback of job %d is not called: %s", jid, outcome)
    elif (outcome == "done") is wanted:
        function(*([jid] if takes_argument(function) else []))


def takes_argument(function: Callable[..., object]) -> bool:
    """Return whether ``function`` can be called with one argument."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:
        return True  # a builtin that does not tell
    return True


def _give_up_all(of: Service) -> None:
    with _lock:
        found = [watcher for (_, its), watcher in _watchers.items() if its is of]
    for watcher in found:
        watcher.give_up_all(
            CloudException(
                "nobody waits for the job any more: the connection was closed (cloud.close, cloud.setkey "
                "or cloud.config.commit) before it ended",
                hint="the job goes on: ask for its result by its id",
            )
        )


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  # another thread may have held the parent's
    _lock = threading.Lock()
    _watchers.clear()  # the parent's threads do not exist here


on_close(_give_up_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
