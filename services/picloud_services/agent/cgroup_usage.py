"""The counters that are read of every running container each second, as cheaply as possible.

`cgroup.CgroupReader` reads all there is; this reads four files through descriptors that stay open
and parses the longer ones only when their text changed.
"""

import os
from collections.abc import Sequence
from itertools import pairwise

_VERSION_1 = ("cpuacct.usage", "memory.usage_in_bytes", "pids.current")
_DISK_1 = "blkio.throttle.io_service_bytes"
_VERSION_2 = ("cpu.stat", "memory.current", "pids.current")
_DISK_2 = "io.stat"


class CgroupUsage:
    """Reads (CPU seconds, memory bytes, processes, disk bytes read, written) of one group.

    ``folders`` is `RunningContainer.cgroups`.

    Raises:
        OSError: the group is gone.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        version = 2 if any(os.path.exists(f"{f}/cgroup.controllers") for f in folders) else 1
        names = (_VERSION_1, _VERSION_2)[version - 1]
        self._is_v1 = version == 1
        self._fds: list[int] = []
        self._disk_text = b""
        self._disk = (0, 0)
        try:
            self._cpu, self._memory, self._processes = (self._open(folders, n) for n in names)
            self._disk_file = self._open(
                folders, (_DISK_1, _DISK_2)[version - 1], optional=True
            )
        except OSError:
            self.close()
            raise

    def _open(self, folders: Sequence[str], name: str, *, optional: bool = False) -> int:
        for folder in folders:
            try:
                fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            self._fds.append(fd)
            return fd
        if optional:  # a controller that the service may not use
            return -1
        raise FileNotFoundError(f"no {name} in {', '.join(folders)}")

    def read(self) -> tuple[float, int, int, int, int]:
        """Return the figures now.

        Raises:
            OSError: the group is gone.
        """
        pread = os.pread
        if self._is_v1:
            cpu = int(pread(self._cpu, 64, 0)) / 1e9
        else:
            cpu = int(pread(self._cpu, 64, 0).split(None, 2)[1]) / 1e6
        memory = int(pread(self._memory, 64, 0))
        processes = int(pread(self._processes, 64, 0))
        if self._disk_file >= 0:
            text = pread(self._disk_file, 16384, 0)
            if text != self._disk_text:
                self._disk_text, self._disk = text, disk_bytes(text)
        return cpu, memory, processes, *self._disk

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        while self._fds:
            os.close(self._fds.pop())


def disk_bytes(text: bytes) -> tuple[int, int]:
    r"""Return (read, written) over all devices in the text of either version's file.

    >>> disk_bytes(b"8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n")
    (11, 20)
    >>> disk_bytes(b"8:0 rbytes=10 wbytes=20 rios=1 wios=2\n")
    (10, 20)
    """
    words = text.replace(b"=", b" ").split()
    read = written = 0
    for word, value in pairwise(words):
        if word in (b"Read", b"rbytes"):
            read += int(value)
        elif word in (b"Write", b"wbytes"):
            written += int(value)
    return read, written
