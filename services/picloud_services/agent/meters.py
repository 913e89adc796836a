"""What a container has used, from its cgroup or, where there is none, from its runner alone."""

import contextlib
import functools
import os
from dataclasses import dataclass
from typing import Protocol

from picloud_services.agent.cgroup import CgroupReader
from picloud_services.agent.container import RunningContainer
from picloud_services.agent.process_table import read_table

LONG_SECONDS = 0.05  # elements from here on have figures of their own
_NUMBER_BYTES = 64
_PEAK_FILES = ("memory.max_usage_in_bytes", "memory.peak")  # cgroup v1, v2


@dataclass(frozen=True, slots=True)
class Meters:
    """Counters that only grow."""

    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0

    def minus(self, other: "Meters") -> dict[str, int]:
        """Return by how much each counter grew since ``other``."""
        return {
            name: max(0, getattr(self, name) - getattr(other, name)) for name in self.__slots__
        }


class Meter(Protocol):
    """Reads one container. Everything reads 0 once it is gone."""

    approximate: bool

    def counters(self) -> Meters:
        """Return the counters now."""

    def peak_bytes(self) -> int:
        """Return the most memory it held since `reset_peak`."""

    def reset_peak(self) -> None:
        """Begin a new peak with what it holds now."""

    def oom_count(self) -> int:
        """Return how often the kernel ended a process of it for its memory limit."""


def make_meter(running: RunningContainer) -> Meter:
    """Return the meter for ``running``."""
    return CgroupMeter(running) if running.cgroups else ProcessMeter(running)


class CgroupMeter:
    """Reads the files of the container's cgroup through kept descriptors."""

    approximate = False

    def __init__(self, running: RunningContainer) -> None:
        self._reader = CgroupReader(running.cgroups)
        self._network = _open_first([f"/proc/{running.init_pid}/net/dev"], os.O_RDONLY)
        peaks = [f"{group}/{name}" for group in running.cgroups for name in _PEAK_FILES]
        self._peak = _open_first(peaks, os.O_RDWR)
        if self._peak < 0:  # v2 before Linux 6.12: it can only be read
            self._peak = _open_first(peaks, os.O_RDONLY)
        self._last_oom_count = 0

    def counters(self) -> Meters:
        """Return the counters now."""
        received, sent = parse_network(_read(self._network))
        with contextlib.suppress(OSError):
            now = self._reader.read()
            return Meters(now.disk_read_bytes, now.disk_written_bytes, received, sent)
        return Meters()

    def peak_bytes(self) -> int:
        """Return the most memory it held since `reset_peak`."""
        return int(_read(self._peak, _NUMBER_BYTES) or 0)

    def reset_peak(self) -> None:
        """Begin a new peak with what it holds now; cgroup v2 before Linux 6.12 cannot."""
        if self._peak >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._peak, b"0", 0)

    def oom_count(self) -> int:
        """Return how often the kernel ended a process of it for its memory limit."""
        with contextlib.suppress(OSError):
            self._last_oom_count = self._reader.read().oom_count
        return self._last_oom_count


class ProcessMeter:
    """Reads the runner's process alone: what it started is not counted, nor is the network.

    The files are opened at the first look, before the first chunk: the runner is ready then.
    """

    approximate = True

    def __init__(self, running: RunningContainer) -> None:
        self._running = running

    @functools.cached_property
    def _proc(self) -> str:
        return f"/proc/{_runner_pid(self._running)}"

    @functools.cached_property
    def _status(self) -> int:
        return _open_first([f"{self._proc}/status"], os.O_RDONLY)

    @functools.cached_property
    def _io(self) -> int:
        return _open_first([f"{self._proc}/io"], os.O_RDONLY)

    @functools.cached_property
    def _clear(self) -> int:
        return _open_first([f"{self._proc}/clear_refs"], os.O_WRONLY)

    def counters(self) -> Meters:
        """Return the counters now."""
        fields = dict(line.split(b": ") for line in _read(self._io).splitlines())
        return Meters(int(fields.get(b"read_bytes", 0)), int(fields.get(b"write_bytes", 0)))

    def peak_bytes(self) -> int:
        """Return the most memory it held since `reset_peak`."""
        for line in _read(self._status).splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def reset_peak(self) -> None:
        """Begin a new peak with what it holds now."""
        if self._clear >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._clear, b"5", 0)

    def oom_count(self) -> int:
        """Return 0: without a cgroup the kernel does not say."""
        return 0


def parse_network(text: bytes) -> tuple[int, int]:
    r"""Return (bytes received, bytes sent) over all interfaces but loopback in /proc/net/dev.

    >>> parse_network(b"head\nhead\n    lo: 9 1 0 0 0 0 0 0 9 1\n  eth0: 70 2 0 0 0 0 0 0 50 3\n")
    (70, 50)
    """
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(b":")
        if name.strip() != b"lo":
            fields = numbers.split()
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def _runner_pid(running: RunningContainer) -> int:
    """Return the runner's process: the first inside, or what that one, bwrap's own, started."""
    first = running.init_pid
    if first == running.pid:
        return first
    try:
        with open(f"/proc/{first}/task/{first}/children", encoding="ascii") as file:
            children = [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):  # gone, or a kernel that does not list them
        children = sorted(pid for pid, found in read_table().items() if found.parent == first)
    return children[0] if children else first


def _open_first(paths: list[str], flags: int) -> int:
    for path in paths:
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_CLOEXEC)
    return -1


def _read(fd: int, size_bytes: int = 65536) -> bytes:
    try:
        return os.pread(fd, size_bytes, 0) if fd >= 0 else b""
    except OSError:
        return b""  # the process or the group is gone
