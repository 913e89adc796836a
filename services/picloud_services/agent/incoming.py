"""Takes large results out of a container's folder into the blobs of the service. Sync."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.frames import pack_frame
from picloud_jupyter.protocol.jobs import EndReason
from picloud_services.base.filesystem import sync_folder

_POSITION, _REASON, _SIZE, _EXTRA = 0, 1, 6, 7  # of an item in a batch: docs/internals.md 4
_FAULTS_OF_THE_MACHINE = errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE
_BLOCK_BYTES = 512  # st_blocks, whatever the file system's own are


class RefusedFileError(Exception):
    """Raised when what a container left as a result is not a plain file of its own."""


def blob_name(lease: str, position: int, part: str = "result") -> str:
    """Return the name in ``incoming`` of a part of an element: the same whenever it comes again."""
    name = f"{lease}.{position}" if part == "result" else f"{lease}.{position}.{part}"
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def take_result(
    out_dir: Path,
    name: str,
    size_bytes: int,
    target: Path,
    owners: Collection[int],
) -> None:
    """Make result ``name`` of a container the file ``target``, durable and read-only.

    What an earlier agent moved there, before its batch was acknowledged, is taken as it is.
    ``owners`` are the uids that it may belong to. The folder is the job's: nothing in it is
    followed or believed.

    Raises:
        RefusedFileError: it is a link, a device, shared with another name, of another size, or mostly
            a hole that no disk here could hold.
        OSError: the disk refused.
    """
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise RefusedFileError(f"{name!r} is not the name of a file")
    incoming = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # First, for the name in the job's folder may be another result's by now.
        if _is_kept(target, size_bytes):
            return
        if os.path.lexists(target):
            file = _open_plain(incoming, target.name)
            owners = {*owners, os.geteuid()}
        else:
            file = _move(out_dir, name, size_bytes, target.name, incoming, owners)
        try:
            _check(file, size_bytes, owners)
            _check_moved(file, target.name, incoming)
            _seal(file)
            sync_folder(target.parent)
        except (OSError, RefusedFileError):
            _discard(target)
            raise
        finally:
            os.close(file)
    finally:
        os.close(incoming)


def _move(
    out_dir: Path,
    name: str,
    size_bytes: int,
    fresh: str,
    incoming: int,
    owners: Collection[int],
) -> int:
    source = os.open(out_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        file = _open_plain(source, name)
        try:
            _check(file, size_bytes, owners)
            os.rename(name, fresh, src_dir_fd=source, dst_dir_fd=incoming)
        except (OSError, RefusedFileError) as exc:
            try:
                if not (isinstance(exc, OSError) and exc.errno == errno.EXDEV):
                    raise
                copied = _copy(file, size_bytes, fresh, incoming)
                os.unlink(name, dir_fd=source)
            finally:
                os.close(file)
            return copied
    finally:
        os.close(source)
    return file


def _copy(source: int, size_bytes: int, fresh: str, incoming: int) -> int:
    """Return an open copy, called ``fresh`` once it is whole: blobs are on a disk of their own."""
    if size_bytes > _room(incoming):  # to try would fill the disk that all others need
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    part = f"{fresh}.part"
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(part, flags, 0o600, dir_fd=incoming)
    try:
        done = 0
        while done < size_bytes:
            count = os.sendfile(target, source, done, size_bytes - done)
            if not count:
                break  # it was cut meanwhile: its size will tell
            done += count
        os.rename(part, fresh, src_dir_fd=incoming, dst_dir_fd=incoming)
    except OSError:
        os.close(target)
        os.unlink(part, dir_fd=incoming)
        raise
    return target


def _is_kept(target: Path, size_bytes: int) -> bool:
    """Whether the control plane made this result a blob already; see `FileBlobStore`."""
    blob = target.parent.parent / target.name[:2] / target.name
    try:
        return blob.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def move_results(
    lease: str,
    items: list[list[Any]],
    body: bytes,
    out_dir: Path,
    incoming: Path,
    owners: Collection[int],
) -> bytes:
    """Move the files that ``items`` of a batch of ``lease`` name to ``incoming``.

    ``items`` then have their names there, the same ones when the batch comes again. Returns the
    batch's body. What cannot be taken makes its element a failed one, whose text says
    why; the others are not touched.
    """
    bodies: list[bytes] = []
    start = 0
    for item in items:
        end = start + item[_SIZE]
        bodies.append(body[start:end])
        start = end
        extra = item[_EXTRA]
        if extra and "files" in extra:
            item[_EXTRA] = extra = _take_written(lease, item, out_dir, incoming, owners)
        if not extra or "file" not in extra:
            continue
        try:
            fresh = blob_name(lease, item[_POSITION])
            take_result(out_dir, extra["file"], extra["size"], incoming / fresh, owners)
            extra["file"] = fresh
        except (RefusedFileError, OSError) as exc:
            bodies[-1] = _failure(f"the result was computed but cannot be kept: {exc}")
            item[_REASON], item[_EXTRA] = _why_refused(exc)
            item[_SIZE] = len(bodies[-1])
    return b"".join(bodies)


def _why_refused(exc: RefusedFileError | OSError) -> tuple[str, dict[str, str] | None]:
    """Whose fault it is: the job's, the full disk's, or the machine's; then it may run once more."""
    number = exc.errno if isinstance(exc, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return EndReason.DISK_FULL.value, None
    if number not in _FAULTS_OF_THE_MACHINE:
        return EndReason.RESULT_UNSERIALIZABLE.value, None
    told = {"note": f"the machine did not take its result ({os.strerror(number)})"}
    return EndReason.LOST_WORKER.value, told


def _take_written(
    lease: str, item: list[Any], out_dir: Path, incoming: Path, owners: Collection[int]
) -> dict[str, Any]:
    """Take the files that an element wrote; what cannot be taken is lost with a word, its end stands."""
    extra = dict(item[_EXTRA])
    files = extra.pop("files")
    try:
        fresh = blob_name(lease, item[_POSITION], "files")
        take_result(out_dir, files["file"], files["size"], incoming / fresh, owners)
    except (RefusedFileError, OSError) as exc:
        return {**extra, "note": f"the files that it wrote could not be kept: {exc}"}
    return {**extra, "files": {**files, "file": fresh}}


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
        if exc.errno in _FAULTS_OF_THE_MACHINE:
            raise
        raise RefusedFileError(f"it cannot be opened: {exc.strerror}") from exc


def _check(file: int, size_bytes: int, owners: Collection[int]) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise RefusedFileError("it is not a plain file with one name")
    if found.st_uid not in owners:
        raise RefusedFileError(f"it belongs to uid {found.st_uid}, not to the job")
    if found.st_size != size_bytes:
        raise RefusedFileError(f"it has {found.st_size} bytes, {size_bytes} were announced")
    # A file may be made any size without a byte written. Whoever hashes, copies or backs it up later
    # meets all of it; file systems that compress have fewer blocks than bytes, too.
    hidden_bytes = size_bytes - found.st_blocks * _BLOCK_BYTES
    if hidden_bytes > 0 and hidden_bytes > _room(file):
        raise RefusedFileError(
            f"{hidden_bytes} of its {size_bytes} bytes were never written, and would not fit on the disk"
        )


def _room(file: int) -> int:
    found = os.fstatvfs(file)
    return found.f_bavail * found.f_frsize


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
