"""Keeps jobs from filling the disk for everybody: who has written too much is ended. On the event loop.

File systems that can limit a folder are rare, so layers are watched: a statvfs twice a second while there
are containers, and only where the disk runs short, or a limit is set, are their files counted. As with
memory, when all together have too little the largest one goes, and idle ones before those that work.
"""

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from picloud_services.agent.tree_usage import ProcessTable
from picloud_services.base.filesystem import DiskSpace, disk_space, file_system_magic
from picloud_services.base.ticker import Ticker

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
COUNT_SHARE = 20  # counting files takes at most one part in so many of the time
JOBS_LEAVE = 2  # times the floor: what one job writes refuses nobody else's submit
LEAST_SHARE = 4  # one with less than this part of what is to stay free is not to blame
MIB = 1024**2
_TMPFS = 0x01021994  # linux/magic.h; what lies there is memory
_BLOCK_BYTES = 512  # st_blocks, whatever the file system's own are


@dataclass(frozen=True, slots=True)
class WatchedLayer:
    """A container as the watch sees it; its processes are below ``supervisor_pid`` (0 = unknown)."""

    container: str
    folder: str
    supervisor_pid: int
    is_idle: bool


@dataclass(frozen=True, slots=True)
class Filling:
    """What one container has on the disk."""

    container: str
    used_bytes: int
    files: int
    is_idle: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """``layer_bytes``: what one container may have, 0 = no limit. The others must stay free."""

    layer_bytes: int
    free_bytes: int
    free_files: int


def too_much(
    fillings: Sequence[Filling], space: DiskSpace, limits: Limits
) -> list[tuple[str, str]]:
    """Return (container, why) of those to end: all above the limit, and one where the disk is short. Pure.

    >>> too_much([Filling("a", 90 * MIB, 1), Filling("b", 10 * MIB, 1)], DiskSpace(10**9, 0), Limits(0, 2 * MIB, 0))
    [('a', 'the disk was all but full, and its files took 90 MiB')]
    """
    over = [
        (
            filling.container,
            f"its files took {filling.used_bytes / MIB:.0f} MiB; the setting layer_bytes allows "
            f"{limits.layer_bytes / MIB:.0f} MiB",
        )
        for filling in fillings
        if limits.layer_bytes and filling.used_bytes > limits.layer_bytes
    ]
    if over:
        return over  # that may be room enough
    if space.free_bytes < limits.free_bytes:
        blamed = [f for f in fillings if f.used_bytes * LEAST_SHARE >= limits.free_bytes]
        worst = max(blamed, key=lambda f: (f.is_idle, f.used_bytes), default=None)
        if worst is not None:
            words = f"the disk was all but full, and its files took {worst.used_bytes / MIB:.0f} MiB"
            return [(worst.container, words)]
    if space.free_files < limits.free_files:
        blamed = [f for f in fillings if f.files * LEAST_SHARE >= limits.free_files]
        worst = max(blamed, key=lambda f: (f.is_idle, f.files), default=None)
        if worst is not None:
            words = f"the disk could hold hardly any more files, and it made {worst.files:,}"
            return [(worst.container, words)]
    return []


def soon(now: DiskSpace, before: DiskSpace, seconds: float = LOOK_SECONDS) -> DiskSpace:
    """Return what the disk will have at the next look if it goes on as since ``before``. Pure.

    That was ``seconds`` ago: hours, where there was no container meanwhile.

    >>> soon(DiskSpace(100, 40), DiskSpace(100, 60)).free_bytes
    20
    >>> soon(DiskSpace(100, 40), DiskSpace(100, 60), 10 * LOOK_SECONDS).free_bytes
    38
    """
    share = min(1.0, LOOK_SECONDS / seconds) if seconds > 0 else 1.0
    return DiskSpace(
        now.total_bytes,
        now.free_bytes - int(share * max(0, before.free_bytes - now.free_bytes)),
        now.total_files,
        now.free_files - int(share * max(0, before.free_files - now.free_files)),
    )


class LayerWatch:
    """Looks at the disk that ``layers`` are on. ``end`` gets (container, why) of one that must go.

    ``list_layers`` returns those whose end was not asked for yet; while one of those that were ended is
    there still, in ``is_there``, no other is ended for want of room.
    """

    def __init__(
        self,
        layers: Path,
        limits: Limits,
        list_layers: Callable[[], list[WatchedLayer]],
        is_there: Callable[[str], bool],
        end: Callable[[str, str], None],
    ) -> None:
        self._layers = layers
        self._limits = limits
        self._list_layers = list_layers
        self._is_there = is_there
        self._end = end
        self._before: DiskSpace | None = None
        self._before_at = 0.0  # monotonic
        self._ended: set[str] = set()
        self._count_at = 0.0  # not before; monotonic
        self._ticker = Ticker(
            "layer watch", LOOK_SECONDS, self._look, jitter=0, idle=lambda: not list_layers()
        )

    def start(self) -> None:
        """Begin to look."""
        self._ticker.start()

    def resume(self) -> None:
        """Hear that there is a container."""
        self._ticker.resume()

    async def stop(self) -> None:
        """End."""
        await self._ticker.stop()

    async def _look(self) -> None:
        began = time.monotonic()
        now = disk_space(self._layers)
        space = soon(now, self._before or now, began - self._before_at)
        self._before, self._before_at = now, began
        self._ended = {name for name in self._ended if self._is_there(name)}
        layers = [item for item in self._list_layers() if item.container not in self._ended]
        is_short = (
            space.free_bytes < self._limits.free_bytes
            or space.free_files < self._limits.free_files
        )
        if not layers or self._ended or not (is_short or self._limits.layer_bytes):
            return
        if not is_short and began < self._count_at:
            return
        fillings = await asyncio.to_thread(count_files, layers)
        self._count_at = began + COUNT_SHARE * (time.monotonic() - began)
        for container, why in too_much(fillings, space, self._limits):
            logger.warning("container %s ends: %s", container, why)
            self._ended.add(container)
            self._end(container, why)


def limits_of(layers: Path, *, layer_bytes: int, floor_bytes: int) -> Limits:
    """Return the limits for the disk of ``layers``: jobs leave twice what new work must find free."""
    space = disk_space(layers)
    free_bytes = JOBS_LEAVE * space.floor_bytes(floor_bytes)
    return Limits(layer_bytes, free_bytes, JOBS_LEAVE * space.floor_files)


def count_files(layers: Iterable[WatchedLayer]) -> list[Filling]:
    """Return what each of ``layers`` has on the disk; takes as long as there are files."""
    table = ProcessTable()
    table.refresh(verify=True)
    found = []
    for layer in layers:
        removed = _removed_sizes(table.descendants(layer.supervisor_pid), _device(layer.folder))
        sizes = [*_sizes(layer.folder), *removed]
        found.append(Filling(layer.container, sum(sizes), len(sizes), layer.is_idle))
    return found


def _sizes(folder: str) -> Iterator[int]:
    """Yield the size of each file below ``folder``; links are not followed, what goes is left out.

    One descriptor at a time: a job may make folders deeper than any path or limit. If it moves one
    while we are in it, the rest is left for the next look.
    """
    place = _enter(folder)
    if place is None:
        return
    todo: list[
        tuple[tuple[int, int], list[str]]
    ] = []  # each folder down to us, what it has left
    is_new = True
    try:
        while True:
            if is_new:
                todo.append((_identity(place), []))
                yield from _look_in(place, todo[-1][1])
            identity, names = todo[-1]
            is_new = bool(names)
            if not names:
                todo.pop()
            if not todo or _identity(place) != identity:
                return
            following = _enter(names.pop() if is_new else "..", place)
            if following is None:
                is_new = False  # closed, or gone
            else:
                os.close(place)
                place = following
    finally:
        os.close(place)


def _enter(name: str, place: int | None = None) -> int | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=place)
    except OSError:
        return None


def _identity(place: int) -> tuple[int, int]:
    found = os.fstat(place)
    return found.st_dev, found.st_ino


def _look_in(place: int, folders: list[str]) -> Iterator[int]:
    """Yield the size of each entry of ``place``; add the names of those that are folders."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                is_folder = stat.S_ISDIR(found.st_mode)
                if is_folder:
                    folders.append(entry.name)
                names = 1 if is_folder else max(1, found.st_nlink)
                yield found.st_blocks * _BLOCK_BYTES // names


def _device(folder: str) -> int:
    try:
        return os.stat(folder).st_dev
    except OSError:
        return -1


def _removed_sizes(pids: Iterable[int], device: int) -> Iterator[int]:
    """Yield the size of each file that is open and has no name any more, as those of `tempfile`."""
    known: set[tuple[int, int]] = set()
    for pid in pids:
        try:
            paths = [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
        except OSError:  # it ended, or is not ours to look into
            continue
        for path in paths:
            found = _removed_file(path, device)
            if found is not None and (found.st_dev, found.st_ino) not in known:
                known.add((found.st_dev, found.st_ino))
                yield found.st_blocks * _BLOCK_BYTES


def _removed_file(path: str, device: int) -> os.stat_result | None:
    with contextlib.suppress(OSError):  # closed meanwhile
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and not found.st_nlink:
            is_memory = found.st_dev != device and file_system_magic(Path(path)) == _TMPFS
            return None if is_memory else found
    return None
