"""Control groups: the limits and the counters of a container, on cgroup v1 and v2.

Groups are made below the group that the service itself is in, so whoever limits the service
limits its jobs too. v2 is written after the kernel's documentation and tested on a recorded tree.
"""

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from picloud_jupyter.protocol.jobs import LimitsGrade
from picloud_services.agent.cgroup_counters import (
    FILES,
    CgroupCounters,
    counters_v1,
    counters_v2,
)
from picloud_services.agent.container import ContainerError
from picloud_services.agent.mounts import Mount, is_under, parse_mountinfo

PARENT = "picloud"  # holds one group per container
SERVICE = (
    "picloud-service"  # v2: a group with children may hold no process, so the service moves
)
CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio")  # v1 hierarchies that we use
NEEDED = frozenset({"memory", "cpu", "pids"})  # without one of these a limit would be a lie
PERIOD_MICROSECONDS = 100_000
MIN_QUOTA_MICROSECONDS = 1_000
NEW_SECONDS = 5.0  # far more than between the making of a group and its first process


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """What a group may use: bytes of memory with swap, real cores, processes with threads."""

    memory_bytes: int
    cpu_cores: float
    pids: int


@dataclass(frozen=True, slots=True)
class CgroupTree:
    """Where groups can be made: ``folders`` are our own group, on v1 one per controller."""

    version: int
    folders: tuple[tuple[str, str], ...]

    def group(self, name: str) -> tuple[str, ...]:
        """Return the folders of the container ``name``, whether they exist or not."""
        places = dict.fromkeys(f"{folder}/{PARENT}/{name}" for _, folder in self.folders)
        return tuple(places)


def find_v1(mounts: Sequence[Mount], own: str) -> CgroupTree | None:
    """Return our groups on cgroup v1, given the text of /proc/self/cgroup; None if not complete."""
    paths = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        paths.update(dict.fromkeys(names.split(","), path))
    folders = {}
    for mount in mounts:
        for controller in CONTROLLERS:
            if (
                mount.type == "cgroup"
                and controller in mount.super_options
                and controller in paths
            ):
                folders[controller] = _folder(mount, paths[controller])
    return CgroupTree(1, tuple(folders.items())) if folders.keys() >= NEEDED else None


def find_v2(mounts: Sequence[Mount], own: str) -> CgroupTree | None:
    """Return our group on cgroup v2; None if there is no such hierarchy."""
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::")), None)
    for mount in mounts:
        if mount.type == "cgroup2" and path is not None:
            folder = _folder(mount, path).removesuffix(f"/{SERVICE}")
            return CgroupTree(2, (("", folder),))
    return None


def _folder(mount: Mount, path: str) -> str:
    """Where ``path`` of the hierarchy is seen: the mount may show only a part of it."""
    inside = path[len(mount.root.rstrip("/")) :] if is_under(path, mount.root) else ""
    return (mount.target + inside).rstrip("/")


def detect(process: str = "/proc/self") -> CgroupTree | None:
    """Return where we may make groups with limits, or None: then limits can only be watched.

    On v2 this moves the processes of our own group into a child group, once.
    """
    mounts = parse_mountinfo(_text(f"{process}/mountinfo"))
    own = _text(f"{process}/cgroup")
    tree = find_v1(mounts, own)
    if tree is not None:
        return tree if all(_usable(f"{f}/{PARENT}") for _, f in tree.folders) else None
    tree = find_v2(mounts, own)
    return tree if tree is not None and _delegate(tree.folders[0][1]) else None


def grade(tree: CgroupTree | None) -> LimitsGrade:
    """Return how limits are held where ``tree`` is what `detect` found."""
    if tree is None:
        return LimitsGrade.WATCHED
    return LimitsGrade.DELEGATED if tree.version == 2 and os.geteuid() else LimitsGrade.CGROUP


def _usable(parent: str) -> bool:
    with contextlib.suppress(OSError):
        os.makedirs(parent, exist_ok=True)
    return os.access(parent, os.W_OK)


def _delegate(own: str) -> bool:
    """Make ``own`` hand its controllers to ``own``/picloud; False if it is not ours to do so."""
    try:
        offered = set(_text(f"{own}/cgroup.controllers").split())
        if not offered >= NEEDED:
            return False
        parent = f"{own}/{PARENT}"
        os.makedirs(parent, exist_ok=True)
        controllers = " ".join(
            f"+{name}" for name in ("memory", "cpu", "pids", "io") if name in offered
        )
        if not set(_text(f"{own}/cgroup.subtree_control").split()) >= NEEDED:
            _empty(own)
            _write(f"{own}/cgroup.subtree_control", controllers)
        _write(f"{parent}/cgroup.subtree_control", controllers)
    except OSError:
        return False
    return True


def _empty(own: str) -> None:
    """Move what runs in ``own`` into a child group; the root group alone may keep processes."""
    if not os.path.exists(f"{own}/cgroup.type"):
        return
    os.makedirs(f"{own}/{SERVICE}", exist_ok=True)
    for pid in _text(f"{own}/cgroup.procs").split():
        with contextlib.suppress(ProcessLookupError):
            _write(f"{own}/{SERVICE}/cgroup.procs", pid)


def settings(version: int, limits: CgroupLimits) -> tuple[tuple[str, str, str], ...]:
    """Return (controller, file, value) in the order to write them. Pure.

    A file whose name ends in "?" may be missing: the kernel was built without it.
    """
    quota = max(MIN_QUOTA_MICROSECONDS, round(limits.cpu_cores * PERIOD_MICROSECONDS))
    memory, pids = str(limits.memory_bytes), str(limits.pids)
    if version == 1:
        return (
            ("memory", "memory.limit_in_bytes", memory),
            ("memory", "memory.memsw.limit_in_bytes?", memory),
            ("cpu", "cpu.cfs_period_us", str(PERIOD_MICROSECONDS)),
            ("cpu", "cpu.cfs_quota_us", str(quota)),
            ("pids", "pids.max", pids),
        )
    return (
        ("", "memory.max", memory),
        ("", "memory.swap.max?", "0"),
        ("", "memory.oom.group", "1"),
        ("", "cpu.max", f"{quota} {PERIOD_MICROSECONDS}"),
        ("", "pids.max", pids),
    )


def create(tree: CgroupTree, name: str, limits: CgroupLimits) -> tuple[str, ...]:
    """Make the group of the container ``name`` and return its folders.

    Raises:
        ContainerError: the kernel refused a limit; nothing is left behind.
    """
    group = tree.group(name)
    by_controller = {c: f"{folder}/{PARENT}/{name}" for c, folder in tree.folders}
    try:
        for folder in group:
            os.makedirs(folder, exist_ok=True)
        for controller, file, value in settings(tree.version, limits):
            path = f"{by_controller[controller]}/{file.removesuffix('?')}"
            if not file.endswith("?") or os.path.exists(path):
                _write(path, value)
    except OSError as exc:
        remove(group)
        raise ContainerError(
            f"the limits of the container could not be set ({exc.filename}: {exc.strerror}); "
            "`picloud doctor` says which control groups the service may use"
        ) from exc
    return group


def enter(group: Sequence[str], pid: int = 0) -> None:
    """Put the process ``pid`` (0: the calling one), and so all its later children, into ``group``.

    The first of several waits for a grace period of the kernel, some milliseconds.

    Raises:
        ProcessLookupError: there is no such process any more.
    """
    for folder in group:
        _write(f"{folder}/cgroup.procs", str(pid))


def pids(group: Sequence[str]) -> set[int]:
    """Return the processes that are in any folder of ``group`` now."""
    found: set[int] = set()
    for folder in group:
        with contextlib.suppress(OSError):
            found.update(map(int, _text(f"{folder}/cgroup.procs").split()))
    found.discard(0)  # one of another pid namespace; to signals it would mean ourselves
    return found


def kill(group: Sequence[str], *, within_seconds: float = 1.0) -> bool:
    """Kill whatever is in ``group``; return whether it is empty in time.

    All are stopped before one is killed: none sees the end of another and reports it as a result.
    """
    for folder in group:
        with contextlib.suppress(OSError):
            _write(f"{folder}/cgroup.kill", "1")
    end_at = time.monotonic() + within_seconds
    while members := pids(group):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if time.monotonic() > end_at:
            return False
        time.sleep(0.001)
    return True


def remove(group: Sequence[str], *, within_seconds: float = 1.0) -> None:
    """Remove the folders of ``group``; those that are gone already are fine.

    A killed process leaves its group a moment after its death, hence the time.

    Raises:
        OSError: something still runs in it.
    """
    end_at = time.monotonic() + within_seconds
    for folder in group:
        while True:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError as exc:
                if exc.errno != errno.EBUSY or time.monotonic() > end_at:
                    raise
                time.sleep(0.002)
            else:
                break


def hold(group: Sequence[str]) -> int:
    """Mark ``group`` as in use while this process lives; return the descriptor that does, -1 for none."""
    if not group:
        return -1
    folder = os.open(group[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(BlockingIOError):  # anybody may lock what he may see
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder


def sweep(tree: CgroupTree, *, least_seconds: float = NEW_SECONDS) -> list[str]:
    """Remove groups in which nothing runs and that nobody holds; return their names.

    Whoever made them was killed before it could, and may have been of another service: so only
    the groups themselves tell. Those younger than ``least_seconds`` may be about to be held.
    """
    names: set[str] = set()
    for _, folder in tree.folders:
        with contextlib.suppress(OSError), os.scandir(f"{folder}/{PARENT}") as entries:
            names.update(entry.name for entry in entries if entry.is_dir())
    return [name for name in sorted(names) if _sweep_one(tree.group(name), least_seconds)]


def _sweep_one(group: Sequence[str], least_seconds: float) -> bool:
    with contextlib.ExitStack() as held:
        for folder in group:
            try:
                file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except OSError:
                return False
            if time.time() - os.fstat(file).st_mtime < least_seconds:
                return False
        try:
            remove(group, within_seconds=0)
        except OSError:
            return False
    return True


class CgroupReader:
    """Reads the counters of one group through descriptors that stay open.

    ``folders`` is `RunningContainer.cgroups`. A counter that the kernel does not offer reads 0.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._files: dict[str, int] = {}
        self._version = (
            2 if any(os.path.exists(f"{f}/cgroup.controllers") for f in folders) else 1
        )
        for name, writable in FILES[self._version].items():
            for folder in folders:
                file = _open_counter(f"{folder}/{name}", writable=writable)
                if file is not None:
                    self._files[name] = file
                    break

    def read(self) -> CgroupCounters:
        """Return the counters now; the last ones of a removed group are lost (OSError ENODEV)."""
        return (counters_v2 if self._version == 2 else counters_v1)(_Texts(self._files))

    def reset_peak(self) -> None:
        """Begin a new ``memory_peak_bytes``; v2 before 6.12 cannot, there the peak only grows."""
        file = self._files.get(
            "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        )
        if file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(file, b"0", 0)

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        while self._files:
            os.close(self._files.popitem()[1])


def _open_counter(path: str, *, writable: bool) -> int | None:
    """Open the file, for writing too where the kernel allows that (v2 before Linux 6.12 does not)."""
    for flags in (os.O_RDWR, os.O_RDONLY) if writable else (os.O_RDONLY,):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_CLOEXEC)
    return None


class _Texts(Mapping[str, bytes]):
    """Name of a counter file -> its text now, empty where there is no such file."""

    def __init__(self, files: Mapping[str, int]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> bytes:
        file = self._files.get(name)
        return b"" if file is None else os.pread(file, 65536, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _write(path: str, value: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, value.encode())
    except OSError as exc:
        exc.filename = path
        raise
    finally:
        os.close(file)
