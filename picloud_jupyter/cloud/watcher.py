"""One background thread that sees jobs end: for `_callback` and for ``await jid``."""

import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterable

from picloud_jupyter.cloud.session import on_close, session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.ids import to_ranges
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES
from picloud_jupyter.transport.client import (
    LONGEST_WAIT_SECONDS,
    Canceller,
    RequestCancelledError,
)

OnEnd = Callable[[int, str | CloudException], None]  # jid; its status, or why it is unknown
_log = logging.getLogger("picloud")


class Watcher:
    """Calls functions when jobs end, from a daemon thread that lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, list[OnEnd]] = {}
        self._thread: threading.Thread | None = None
        self._canceller = Canceller()

    def watch(self, jid: int, on_end: OnEnd) -> None:
        """Have ``on_end`` called when ``jid`` is finished or cannot be asked for."""
        with self._lock:
            self._watched.setdefault(int(jid), []).append(on_end)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="picloud-watcher", daemon=True
                )
                self._thread.start()
            else:
                self._canceller.cancel()  # the poll in flight does not know this jid

    def forget(self, jid: int, on_end: OnEnd) -> None:
        """Take back a `watch`; nothing happens if it was called already."""
        with self._lock:
            functions = self._watched.get(int(jid), [])
            if on_end in functions:
                functions.remove(on_end)
                if not functions:
                    del self._watched[int(jid)]
                self._canceller.cancel()

    def forget_all(self) -> None:
        """Take back every `watch`; the thread ends."""
        with self._lock:
            self._watched.clear()
            self._canceller.cancel()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._watched:
                    self._thread = None
                    return
                jids = list(self._watched)
            try:
                self._fire_finished(jids)
            except RequestCancelledError:
                continue
            except CloudException as exc:
                self._give_up(jids, exc)
            except Exception as exc:  # noqa: BLE001  # the loop's top: it goes on for the others
                _log.exception("watching %d jobs failed", len(jids))
                self._give_up(jids, CloudException(f"watching the job failed: {exc}"))

    def _fire_finished(self, jids: list[int]) -> None:
        client = session().client
        ranges = to_ranges(jids)
        counts: dict[str, int] = {}
        ended = False
        for first, last, status in client.post(routes.STATUS, {"jids": ranges})["statuses"]:
            counts[status] = counts.get(status, 0) + last - first + 1
            if status in FINISHED_STATUSES:
                ended = True
                for jid in range(first, last + 1):
                    self._fire(jid, status)
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
                canceller=self._canceller,
            )

    def _give_up(self, jids: Iterable[int], error: CloudException) -> None:
        for jid in jids:
            self._fire(jid, error)

    def _fire(self, jid: int, outcome: str | CloudException) -> None:
        with self._lock:
            functions = self._watched.pop(jid, [])
        for function in functions:
            try:
                function(jid, outcome)
            except Exception:  # noqa: BLE001  # the user's own function
                _log.exception("a callback of job %d failed", jid)


_watcher = Watcher()


def watch(jid: int, on_end: OnEnd) -> None:
    """Have ``on_end`` called in a background thread when ``jid`` is finished."""
    _watcher.watch(jid, on_end)


def forget(jid: int, on_end: OnEnd) -> None:
    """Take back a `watch`."""
    _watcher.forget(jid, on_end)


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


def _after_fork() -> None:
    global _watcher  # noqa: PLW0603  # the parent's thread does not exist here
    _watcher = Watcher()


on_close(lambda: _watcher.forget_all())  # noqa: PLW0108  # another one after a fork
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
