"""Processes that a command starts, and what they start: ended with it, daemons included."""

import ctypes
import os
import signal
from contextlib import suppress

from picloud_kernels.runner.reset import child_pids

_PR_SET_CHILD_SUBREAPER = 36


class Descendants:
    """While it is entered, orphans of this process's descendants become its own children."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._before: frozenset[int] = frozenset()

    def __enter__(self) -> "Descendants":
        self._before = frozenset(child_pids())
        self._adopt(wanted=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._adopt(wanted=False)

    def end(self) -> None:
        """Kill and bury all children that came since, then what they leave to us, until there is none.

        A process becomes ours before its parent can be waited for: none slips through. One that became
        another user's, as sudo does, is not ours to kill: it is left, which stderr says.
        """
        while new := set(child_pids()) - self._before:
            for pid in tuple(new):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    new.discard(pid)
                    self._before |= {pid}
                    words = f"picloud: process {pid} runs as another user and goes on\n"
                    os.write(2, words.encode())
            for pid in new:
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _adopt(self, *, wanted: bool) -> None:
        if self._libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
            code = ctypes.get_errno()
            raise OSError(code, f"PR_SET_CHILD_SUBREAPER: {os.strerror(code)}")
