"""Facts about the file systems that state lives on; files that are replaced whole, names made durable."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from picloud_jupyter.protocol.errors import DiskFull

MIB = 1024**2
FLOOR_FILES = 1000

# Magic numbers of file systems whose locks or shared memory are not those of one machine.
# Source: Linux, include/uapi/linux/magic.h, fs/nfs, fs/smb, fs/ceph, and statfs(2); Lustre, BeeGFS,
# GPFS and PanFS from their own sources.
NETWORK_FILE_SYSTEMS: dict[int, str] = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x0BD00BD0: "Lustre",
    0x19830326: "BeeGFS",
    0x47504653: "GPFS",
    0xAAD7AAEA: "PanFS",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x564C: "NCP",
    0x73757245: "Coda",
    0x01021997: "9P",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
    0x20030528: "OrangeFS",
}


def file_system_magic(path: Path) -> int:
    """Return the magic number of the file system that holds ``path``, as statfs(2) gives it.

    Raises:
        OSError: there is no such path.
    """
    found = (
        ctypes.c_long * 32
    )()  # struct statfs begins with the type; 120 bytes on 64-bit Linux
    library = ctypes.CDLL(None, use_errno=True)
    if library.statfs(os.fsencode(path), ctypes.byref(found)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return int(found[0]) & 0xFFFFFFFF


def network_file_system(path: Path) -> str:
    """Return the name of the network file system that holds ``path``, or "" for a local one.

    The nearest folder that exists is asked.
    """
    while not path.exists() and path != path.parent:
        path = path.parent
    return NETWORK_FILE_SYSTEMS.get(file_system_magic(path), "")


def file_identity(path: str) -> tuple[int, int, int]:
    """Return numbers of the file at ``path`` that are others once it was replaced or written to."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """What the file system of a folder has, as an ordinary user may use it."""

    total_bytes: int
    free_bytes: int
    total_files: int = 0  # 0: it does not count them
    free_files: int = 0

    def floor_bytes(self, wanted_bytes: int) -> int:
        """Return how much should stay free: a small file system has a smaller floor."""
        return min(wanted_bytes, self.total_bytes // 16)

    @property
    def floor_files(self) -> int:
        """Return how many files it should still have room for."""
        return min(FLOOR_FILES, self.total_files // 64)


def disk_space(path: Path) -> DiskSpace:
    """Return total and free space of the file system that holds ``path``."""
    found = os.statvfs(path)
    return DiskSpace(
        found.f_blocks * found.f_frsize,
        found.f_bavail * found.f_frsize,
        found.f_files,
        found.f_favail,
    )


class DiskWatch:
    """Says whether new work may be taken, from the free space it was last told; it refuses by a new look.

    A small file system has a smaller floor: a service in a home of 256 MB must start. It asks
    the disk when `refresh` is called (a ticker), so that the check on the hot path costs nothing.
    """

    def __init__(self, folder: Path, floor_bytes: int) -> None:
        self._folder = folder
        self._wanted_floor_bytes = floor_bytes
        self.refresh()

    def refresh(self) -> DiskSpace:
        """Ask the file system now and remember the answer."""
        self._space = disk_space(self._folder)
        self.floor_bytes = self._space.floor_bytes(self._wanted_floor_bytes)
        return self._space

    @property
    def free_bytes(self) -> int:
        """Free space when it was last asked for."""
        return self._space.free_bytes

    @property
    def _is_short(self) -> bool:
        space = self._space
        return space.free_bytes < self.floor_bytes or space.free_files < space.floor_files

    def require(self, needed_bytes: int = 0) -> None:
        """Return if ``needed_bytes`` fit with the floor to spare.

        Raises:
            DiskFull: they do not; the message says what is there and what is needed.
        """
        if needed_bytes or self._is_short:
            self.refresh()
        if self._space.free_bytes - needed_bytes < self.floor_bytes:
            raise DiskFull(
                f"the disk that holds {self._folder} has {self._space.free_bytes / MIB:.0f} MiB free; "
                f"{(needed_bytes + self.floor_bytes) / MIB:.0f} MiB are needed to go on safely",
                hint="Free some space, delete old jobs (`picloud delete JIDS`), or move the home with PICLOUD_HOME.",
            )
        if self._space.free_files < self._space.floor_files:
            raise DiskFull(
                f"the disk that holds {self._folder} has room for {self._space.free_files} more files "
                f"(inodes); {self._space.floor_files} are needed to go on safely",
                hint="Remove some files there, or move the home with PICLOUD_HOME.",
            )


def sync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` by a file with ``content``; readers see the old or the new one, whole.

    A power cut may lose it: for what can be made again. An OSError names ``path``.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        fresh.replace(path)
    except OSError as exc:
        fresh.unlink(missing_ok=True)
        exc.filename = exc.filename or str(path)  # a write knows no name
        raise
