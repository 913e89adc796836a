"""Processes of this machine, told apart by pid and start time: a pid alone may be used again."""

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """A process that lived when it was found. ``start_time`` is in clock ticks since boot."""

    pid: int
    start_time: int

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, unless the process has ended."""
        try:
            fd = self.open_pidfd()
        except ProcessLookupError:
            return
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)

    def open_pidfd(self) -> int:
        """Return a descriptor that becomes readable when the process ends; the caller closes it.

        Raises:
            ProcessLookupError: it has ended.
        """
        fd = os.pidfd_open(self.pid)
        if find_process(self.pid) != self:
            os.close(fd)
            raise ProcessLookupError(self.pid)
        return fd


def find_process(pid: int) -> Process | None:
    """Return the live process ``pid``, or None if there is none that we may see (a zombie is none)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # the last where /proc hides the processes of others (hidepid=1)
    return None if fields[0] in (b"Z", b"X") else Process(pid, int(fields[19]))


def process_uid(pid: int) -> int | None:
    """Return the real uid of the process ``pid``, or None if there is none."""
    return _real_id(pid, b"Uid:")


def process_gid(pid: int) -> int | None:
    """Return the real gid of the process ``pid``, or None if there is none."""
    return _real_id(pid, b"Gid:")


def _real_id(pid: int, name: bytes) -> int | None:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name))
    except (FileNotFoundError, ProcessLookupError):
        return None
