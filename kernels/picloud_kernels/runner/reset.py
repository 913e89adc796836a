"""What an element finds, and how it is brought back for the next one."""

import os
import signal
import sys
import threading
import time
from _signal import getsignal  # type: ignore[import-not-found]  # signal's own makes enums: 1 us each
from collections.abc import Callable

from picloud_jupyter.transport.inside import JID_VARIABLE, LEASE_VARIABLES

_CLOCK_GRAIN_NS = 3 * 10**9  # no file system tells changes further apart than this as one
_HANDLED = tuple(set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})


def restore_default_signals() -> None:
    """Give every signal what a fresh interpreter has, whatever was inherited."""
    for number in _HANDLED:
        if signal.getsignal(number) is signal.SIG_IGN and number not in (
            signal.SIGPIPE,
            signal.SIGXFSZ,
        ):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Baseline:
    """The interpreter's surroundings as they were when this was made.

    New entries of the folder ``temporary`` are removed; "" where that is not the container's own.
    ``is_spent`` once a folder could not be brought back: no further element may run here.
    """

    def __init__(self, *, temporary: str) -> None:
        self._folder = os.getcwd()
        self._path = list(sys.path)
        self._recursion_limit = sys.getrecursionlimit()
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._handlers = [
            (number, handler)
            for number in map(int, _HANDLED)
            if (handler := getsignal(number)) is not None
        ]
        for name in (JID_VARIABLE, *LEASE_VARIABLES):
            os.environ[name] = ""
        self._environ = os.environ
        self._live = os.environ._data  # type: ignore[attr-defined]  # noqa: SLF001  # comparing encoded dicts costs 0.5 us, decoded ones 30
        self._variables: dict[bytes, bytes] = dict(self._live)
        self.is_spent = False
        self._temporary = temporary
        self._known_temporary = frozenset(os.listdir(temporary)) if temporary else frozenset()
        self._temporary_changed_ns = -1  # when last, as far as was seen
        self._is_temporary_settled = False  # whether each later change shows as another time

    def set_variable(self, name: bytes, value: bytes) -> None:
        """Set an environment variable that belongs to the surroundings from now on.

        By the short way, without os.environ, as it is done for each element.
        """
        self._live[name] = self._variables[name] = value
        os.putenv(name, value)

    def adopt_imports(self) -> None:
        """Keep what loading a function did to sys.path and the environment.

        A module that extends them does so once, when it is imported; later elements need it too.
        """
        self._path = list(sys.path)
        self._variables = dict(self._live)

    def restore_after_element(self) -> None:
        """Bring back what an element may have changed for the next one; a few microseconds."""
        os.environ = self._environ  # noqa: B003  # the element may have put another mapping there
        if self._live != self._variables:
            self._restore_variables()
        if sys.path != self._path:
            sys.path[:] = self._path
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        if os.umask(self._umask) != self._umask:
            os.umask(self._umask)
        signal.alarm(0)
        self._try(self._restore_folder)
        if self._temporary and self._look_at_temporary() != self._temporary_changed_ns:
            self._try(self._clean_temporary)

    def restore_after_chunk(self) -> None:
        """Bring back signals and timers too; they cost more to look at.

        The timer of real time is the alarm's, which each element's reset stops.
        """
        for number, handler in self._handlers:
            if getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if self._temporary and not self._is_temporary_settled:
            self._try(self._clean_temporary)

    def _restore_variables(self) -> None:
        for name in [n for n in self._live if n not in self._variables]:
            del os.environ[os.fsdecode(name)]
        for name, value in self._variables.items():
            if self._live.get(name) != value:
                os.environ[os.fsdecode(name)] = os.fsdecode(value)

    def _try(self, restore: Callable[[], None]) -> None:
        try:
            restore()
        except OSError:  # the element removed the folder, or closed it even for itself
            self.is_spent = True

    def _restore_folder(self) -> None:
        try:
            moved = os.getcwd() != self._folder
        except FileNotFoundError:  # the element removed the folder it was in
            moved = True
        if moved:
            os.chdir(self._folder)

    def _look_at_temporary(self) -> int:
        return os.stat(self._temporary).st_ctime_ns

    def _clean_temporary(self) -> None:
        """Remove entries that were not there at the start (folders bound there by us stay)."""
        now_ns = time.time_ns()
        changed_ns = self._look_at_temporary()
        new = [n for n in os.listdir(self._temporary) if n not in self._known_temporary]
        for name in new:
            _remove(os.path.join(self._temporary, name))
        if new and not set(new).isdisjoint(os.listdir(self._temporary)):
            self.is_spent = True  # deeper than a path may be long, or closed even to its maker
        self._temporary_changed_ns = self._look_at_temporary() if new else changed_ns
        self._is_temporary_settled = not new and now_ns - changed_ns > _CLOCK_GRAIN_NS


def _remove(path: str) -> None:
    """Remove ``path`` and what is in it as far as that goes; without recursion, as it may be deep."""
    folders = [path] if os.path.isdir(path) and not os.path.islink(path) else []
    if not folders:
        _try_to(os.unlink, path)
    for folder in folders:
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                _try_to(os.unlink, entry.path)
    for folder in reversed(folders):
        _try_to(os.rmdir, folder)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # gone, or closed by the job even for itself
        return []


def _try_to(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except OSError:  # written to meanwhile, or gone: the next reset looks again
        return


def count_leftover_threads() -> int:
    """Return how many threads run beside the main one."""
    return threading.active_count() - 1


def count_leftover_children() -> int:
    """Return how many child processes exist, ended ones that nobody waited for included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return max(len(child_pids()), 1)


def sibling_pids() -> frozenset[int]:
    """Return the children of our parent, who is given our orphans too: ours alone, in each kind."""
    parent = os.getppid()
    return frozenset(child_pids(str(parent))) if parent else frozenset()


def child_pids(pid: str = "self") -> list[int]:
    """Return the child processes of all threads, ended ones that nobody waited for included."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
        except FileNotFoundError:  # a thread that ended meanwhile: its children are another's
            continue
    return found
