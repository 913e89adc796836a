"""What the counter files of a control group say. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

# cgroup version -> file -> whether it must be open for writing to be reset
FILES: dict[int, dict[str, bool]] = {
    1: {
        "cpuacct.usage": False,
        "memory.usage_in_bytes": False,
        "memory.max_usage_in_bytes": True,
        "memory.oom_control": False,
        "blkio.throttle.io_service_bytes": False,
        "pids.current": False,
    },
    2: {
        "cpu.stat": False,
        "memory.current": False,
        "memory.peak": True,
        "memory.events": False,
        "io.stat": False,
        "pids.current": False,
    },
}


@dataclass(frozen=True, slots=True)
class CgroupCounters:
    """One reading. Counters grow since the group was made; ``memory_bytes`` includes page cache.

    ``memory_peak_bytes`` is 0 where the kernel does not keep it (v2 before 5.19).
    """

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    processes: int = 0
    oom_count: int = 0


def counters_v1(texts: Mapping[str, bytes]) -> CgroupCounters:
    """Return what the files of `FILES` [1] say; a missing file counts as empty."""
    disk = texts["blkio.throttle.io_service_bytes"]
    return CgroupCounters(
        cpu_seconds=int(texts["cpuacct.usage"] or 0) / 1e9,
        memory_bytes=int(texts["memory.usage_in_bytes"] or 0),
        memory_peak_bytes=int(texts["memory.max_usage_in_bytes"] or 0),
        disk_read_bytes=_sum_lines(disk, b"Read"),
        disk_written_bytes=_sum_lines(disk, b"Write"),
        processes=int(texts["pids.current"] or 0),
        oom_count=_field(texts["memory.oom_control"], b"oom_kill"),
    )


def counters_v2(texts: Mapping[str, bytes]) -> CgroupCounters:
    """Return what the files of `FILES` [2] say; a missing file counts as empty."""
    disk = texts["io.stat"].replace(b"=", b" ")
    return CgroupCounters(
        cpu_seconds=_field(texts["cpu.stat"], b"usage_usec") / 1e6,
        memory_bytes=int(texts["memory.current"] or 0),
        memory_peak_bytes=int(texts["memory.peak"] or 0),
        disk_read_bytes=_sum_lines(disk, b"rbytes"),
        disk_written_bytes=_sum_lines(disk, b"wbytes"),
        processes=int(texts["pids.current"] or 0),
        oom_count=_field(texts["memory.events"], b"oom_kill"),
    )


def _field(text: bytes, name: bytes) -> int:
    """The number after ``name`` at the start of a line."""
    for line in text.splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return 0


def _sum_lines(text: bytes, name: bytes) -> int:
    """The sum of the numbers that follow the word ``name``, over all devices."""
    words = text.split()
    return sum(int(words[i + 1]) for i, word in enumerate(words[:-1]) if word == name)
