"""Use of process trees read from /proc, for containers without a control group.

Approximate by nature: what a process used is lost when it ends and its parent did not wait for it.
Sync; one pass costs a directory listing and one small read for each process not seen before.
"""

import os
from dataclasses import dataclass

_TICK_SECONDS = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What all descendants of a process use together, ended and waited-for ones included."""

    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    processes: int = 0


class ProcessTable:
    """Who is whose child on this machine, as of the last `refresh`."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}
        self._children: dict[int, list[int]] = {}
        self._last_pid = ""

    def refresh(self, *, verify: bool) -> None:
        """Look again; with ``verify`` every known process is read anew.

        Without it a known process is trusted to be the same one as long as its parent lives, and
        nothing is done when no process was started since.
        """
        with open("/proc/loadavg", encoding="ascii") as file:
            last_pid = file.read().rpartition(" ")[2]
        if not verify and last_pid == self._last_pid:
            return
        self._last_pid = last_pid
        alive = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
        known = {} if verify else self._parents
        parents: dict[int, int] = {}
        for pid in alive:
            parent = known.get(pid, -1)
            if parent not in alive:
                parent = _parent(pid)
            if parent >= 0:
                parents[pid] = parent
        self._parents = parents
        children: dict[int, list[int]] = {}
        for pid, parent in parents.items():
            children.setdefault(parent, []).append(pid)
        self._children = children

    def descendants(self, root: int) -> list[int]:
        """Return the pids below ``root``, without it."""
        found = list(self._children.get(root, ()))
        for pid in found:  # grows while it is walked
            found += self._children.get(pid, ())
        return found

    def usage(self, root: int) -> TreeUsage:
        """Return what the descendants of ``root`` use now."""
        ticks = resident = read = written = count = 0
        own = _stat(root)
        if own:
            ticks += int(own[13]) + int(own[14])  # children it waited for
        for pid in self.descendants(root):
            fields = _stat(pid)
            if not fields:
                continue
            count += 1
            ticks += sum(map(int, fields[11:15]))
            resident += int(fields[21]) * _PAGE_BYTES
            disk = _disk(pid)
            read += disk[0]
            written += disk[1]
        return TreeUsage(ticks * _TICK_SECONDS, resident, read, written, count)

    def resident_bytes(self, root: int) -> int:
        """Return the resident memory of the descendants of ``root``; shared pages count often."""
        return sum(_resident(pid) for pid in self.descendants(root))

    def proportional_bytes(self, root: int) -> int:
        """Return their memory with each shared page divided among those that share it (PSS)."""
        return sum(_proportional(pid) for pid in self.descendants(root))


# A process may end between the listing and the read: these answer nothing then.
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def _read(path: str) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except _GONE:
        return b""
    try:
        return os.read(file, 16384)
    except _GONE:
        return b""
    finally:
        os.close(file)


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on: field k of proc(5) is at k - 3."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else -1


def _resident(pid: int) -> int:
    words = _read(f"/proc/{pid}/statm").split()
    return int(words[1]) * _PAGE_BYTES if words else 0


def _proportional(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return _resident(pid)  # a kernel without smaps_rollup, or not ours to read


def _disk(pid: int) -> tuple[int, int]:
    read = written = 0
    for line in _read(f"/proc/{pid}/io").splitlines():
        name, _, value = line.partition(b": ")
        if name == b"read_bytes":
            read = int(value)
        elif name == b"write_bytes":
            written = int(value)
    return read, written
