"""Takes large results out of a container's folder into the blobs of the service. Sync."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.frames import pack_frame
from picloud_services.base.filesystem import sync_folder

_REASON, _SIZE, _EXTRA = 1, 6, 7  # of an item in a batch: docs/internals.md 4


class RefusedFileError(Exception):
    """Raised when what a container left as a result is not a plain file of its own."""


def take_result(
    out_dir: Path, name: str, size_bytes: int, incoming: Path, owners: Collection[int]
) -> str:
    """Move result ``name`` of a container into ``incoming``, durable and read-only.

    Returns its random name there. ``owners`` are the uids that it may belong to. The folder is the
    job's: nothing in it is followed or believed.

    Raises:
        RefusedFileError: it is a link, a device, shared with another name, or of another size.
        OSError: the disk refused.
    """
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise RefusedFileError(f"{name!r} is not the name of a file")
    fresh = secrets.token_hex(16)
    source = os.open(out_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    target = os.open(incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = _open_plain(source, name)
        try:
            _check(file, size_bytes, owners)
            os.rename(name, fresh, src_dir_fd=source, dst_dir_fd=target)
            try:
                _check_moved(file, fresh, target)
                _seal(file)
            except (OSError, RefusedFileError):
                _discard(incoming / fresh)
                raise
        finally:
            os.close(file)
    finally:
        os.close(source)
        os.close(target)
    sync_folder(incoming)
    return fresh


def move_results(
    items: list[list[Any]], body: bytes, out_dir: Path, incoming: Path, owners: Collection[int]
) -> bytes:
    """Move the files that ``items`` of a batch name; ``items`` then have their names in ``incoming``.

    Returns the batch's body. What cannot be taken makes its element a failed one, whose text says
    why; the others are not touched.
    """
    bodies: list[bytes] = []
    start = 0
    for item in items:
        end = start + item[_SIZE]
        bodies.append(body[start:end])
        start = end
        extra = item[_EXTRA]
        if not extra or "file" not in extra:
            continue
        try:
            extra["file"] = take_result(out_dir, extra["file"], extra["size"], incoming, owners)
        except (RefusedFileError, OSError) as exc:
            full = isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)
            bodies[-1] = _failure(f"the result was computed but cannot be kept: {exc}")
            item[_REASON] = "disk_full" if full else "result_unserializable"
            item[_SIZE] = len(bodies[-1])
            item[_EXTRA] = None
    return b"".join(bodies)


def _failure(message: str) -> bytes:
    return pack_frame(
        {
            "type": "OSError",
            "module": "builtins",
            "message": message,
            "traceback": message,
            "loadable": False,
        }
    )


def _open_plain(folder: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as exc:
        raise RefusedFileError(f"it cannot be opened: {exc.strerror}") from exc


def _check(file: int, size_bytes: int, owners: Collection[int]) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise RefusedFileError("it is not a plain file with one name")
    if found.st_uid not in owners:
        raise RefusedFileError(f"it belongs to uid {found.st_uid}, not to the job")
    if found.st_size != size_bytes:
        raise RefusedFileError(f"it has {found.st_size} bytes, {size_bytes} were announced")


def _check_moved(file: int, name: str, folder: int) -> None:
    found = os.fstat(file)
    moved = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if (found.st_dev, found.st_ino) != (moved.st_dev, moved.st_ino) or found.st_nlink != 1:
        raise RefusedFileError("another file took its place while it was moved")


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _seal(file: int) -> None:
    if os.geteuid() == 0:
        os.fchown(file, 0, 0)
    os.fchmod(file, 0o400)
    os.fsync(file)
