"""Blobs as files: ``blobs/xx/ID``, written elsewhere on the same file system and renamed in."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path

from picloud_jupyter.protocol.errors import Corrupt, NotFound
from picloud_services.base.filesystem import sync_folder
from picloud_services.blobs.store import (
    GRACE_SECONDS,
    PIECE_BYTES,
    BlobRef,
    BlobUsage,
    check_id,
)

SWEEP_COUNT = 500
VERIFIED_COUNT = 50_000
UPLOAD_SECONDS = 30.0  # between the first byte of an upload and the lock on its file
INCOMING_SECONDS = 24 * 3600.0  # an agent may hold on to events, and their files, this long
USAGE_SECONDS = 60.0
_UPLOAD = ".upload"  # a result that an agent moves has none: nobody can hold a lock on it
_log = logging.getLogger(__name__)


class FileBlobStore:
    """A `BlobStore` in the folder ``root``. What it serves was compared with its digest once.

    A blob that came in while this process runs was hashed by whoever wrote it a moment ago; one
    found on the disk is hashed at its first use. One whose file changed since is not served.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._verified: dict[str, tuple[int, int]] = {}
        self._hashed: dict[str, str] = {}  # the digest that a blob was found to have
        self._durable: set[str] = set()  # folders that survive a power cut
        self._naming = (
            threading.Lock()
        )  # two may bring the same blob at once: one file becomes it
        self._usage = BlobUsage(0, 0)
        self._usage_until = 0.0
        self.incoming.mkdir(parents=True, exist_ok=True)

    @property
    def incoming(self) -> Path:
        """Where new content is written, by this process, the agent and local clients."""
        return self._root / "incoming"

    def incoming_path(self, blob: str) -> Path:
        """See `BlobStore`."""
        return self.incoming / check_id(blob)

    def upload_path(self, name: str) -> Path:
        """See `BlobStore`."""
        return self.incoming / f"{check_id(name)}{_UPLOAD}"

    def _path(self, blob: str) -> Path:
        return self._root / check_id(blob)[:2] / blob

    async def adopt(
        self, blob: str, *, size_bytes: int, digest: str = "", source: Path | None = None
    ) -> BlobRef:
        """See `BlobStore`."""
        ref = BlobRef(blob, size_bytes, digest)
        source = source or self.incoming_path(blob)
        self._remember(blob, await asyncio.to_thread(self._adopt, ref, source))
        return ref

    def _remember(self, blob: str, signature: tuple[int, int]) -> None:
        if len(self._verified) >= VERIFIED_COUNT:
            self._verified.clear()  # costs a second hash of what is still used
            self._hashed.clear()
        self._verified[blob] = signature

    def _adopt(self, ref: BlobRef, source: Path) -> tuple[int, int]:
        target = self._path(ref.blob)
        if target.exists():
            return self._keep_first(ref, source)
        try:
            # No link is followed and nothing but a plain file taken: a container wrote it.
            descriptor = os.open(
                source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            )
        except FileNotFoundError:
            raise NotFound(f"the payload {ref.blob} never came") from None
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket: it stays one
                raise _no_plain_file(ref) from exc
            raise
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise _no_plain_file(ref)
            if found.st_size != ref.size_bytes:
                raise Corrupt(
                    f"the payload {ref.blob} came with {found.st_size} bytes instead of {ref.size_bytes}"
                )
            os.fchmod(descriptor, 0o400)
            os.fsync(descriptor)
            _note_use(descriptor)  # it may have waited here for hours, and has no row yet
            signature = _signature(file)
        target.parent.mkdir(exist_ok=True)
        if target.parent.name not in self._durable:
            sync_folder(self._root)  # whoever made it: another thread may not be so far yet
            self._durable.add(target.parent.name)
        with self._naming:
            is_first = not target.exists()
            if is_first:
                _rename(source, target, ref)
        if not is_first:
            return self._keep_first(ref, source)
        sync_folder(target.parent)
        return signature

    def _keep_first(self, ref: BlobRef, source: Path) -> tuple[int, int]:
        """Drop a repeated delivery: what is there may be in use, and never changes."""
        source.unlink(missing_ok=True)
        _note_use(self._path(ref.blob))
        sync_folder(self._path(ref.blob).parent)  # who named it may not be so far yet
        return self._verify(ref)

    async def local_path(self, ref: BlobRef) -> Path:
        """See `BlobStore`."""
        if ref.blob in self._verified:
            self._check_size(ref)
        else:
            await self.verify(ref)
        return self._path(ref.blob)

    def _check_size(self, ref: BlobRef) -> None:
        with self._open(ref) as file:
            if self._verified.get(ref.blob) == _signature(file):
                return
        raise Corrupt(f"the payload {ref.blob} was changed on the disk; it is not served")

    async def stream(
        self, ref: BlobRef, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[bytes]:
        """See `BlobStore`."""
        await self.local_path(ref)
        end = ref.size_bytes if stop is None else min(stop, ref.size_bytes)
        with await asyncio.to_thread(self._open, ref) as file:
            file.seek(start)
            while start < end:
                piece = await asyncio.to_thread(file.read, min(PIECE_BYTES, end - start))
                if not piece:
                    raise Corrupt(
                        f"the payload {ref.blob} ended before its {ref.size_bytes} bytes"
                    )
                start += len(piece)
                yield piece

    async def find(self, blob: str) -> BlobRef | None:
        """See `BlobStore`."""
        try:
            return BlobRef(blob, _note_use(self._path(blob)))
        except FileNotFoundError:
            return None

    async def verify(self, ref: BlobRef) -> None:
        """See `BlobStore`."""
        if (
            ref.digest
            and self._hashed.get(ref.blob) == ref.digest
            and ref.blob in self._verified
        ):
            self._check_size(ref)  # many calls share one function
            return
        self._remember(ref.blob, await asyncio.to_thread(self._verify, ref))
        self._hashed[ref.blob] = ref.digest

    def _verify(self, ref: BlobRef) -> tuple[int, int]:
        with self._open(ref) as file:
            signature = _signature(file)
            if signature[1] != ref.size_bytes:
                raise Corrupt(
                    f"the payload {ref.blob} has {signature[1]} bytes instead of {ref.size_bytes}"
                )
            if ref.digest and hashlib.file_digest(file, "sha256").hexdigest() != ref.digest:
                raise Corrupt(
                    f"the payload {ref.blob} does not match its digest; the disk damaged it"
                )
        return signature

    def _open(self, ref: BlobRef) -> BufferedReader:
        try:
            return open(self._path(ref.blob), "rb")
        except FileNotFoundError:
            raise NotFound(
                f"the payload {ref.blob} is not there; it was removed with its job"
            ) from None

    async def sweep_uploads(self) -> int:
        """See `BlobStore`."""
        return await asyncio.to_thread(_unlink_given_up, self.incoming, time.time())

    async def sweep(
        self,
        referenced: Callable[[Sequence[str]], Awaitable[set[str]]],
        *,
        now_at: float,
        grace_seconds: float = GRACE_SECONDS,
    ) -> int:
        """See `BlobStore`. Also removes what came in and was not adopted for a day."""
        removed = 0
        limit = now_at - grace_seconds
        for folder in await asyncio.to_thread(self._folders):
            old = await asyncio.to_thread(_older_than, folder, limit)
            for first in range(0, len(old), SWEEP_COUNT):
                names = old[first : first + SWEEP_COUNT]
                kept = await referenced(names)
                unused = [name for name in names if name not in kept]
                gone = await asyncio.to_thread(_unlink_older, folder, unused, limit)
                self._forget(gone)
                removed += len(gone)
        stale = await asyncio.to_thread(_older_than, self.incoming, now_at - INCOMING_SECONDS)
        await asyncio.to_thread(_unlink_all, [self.incoming / name for name in stale])
        return removed

    def _forget(self, blobs: Iterable[str]) -> None:
        for blob in blobs:
            self._verified.pop(blob, None)
            self._hashed.pop(blob, None)

    async def usage(self) -> BlobUsage:
        """See `BlobStore`."""
        now = time.monotonic()
        if now >= self._usage_until:
            self._usage_until = (
                now + USAGE_SECONDS
            )  # others who ask meanwhile start no other look
            self._usage = await asyncio.to_thread(self._measure)
        return self._usage

    def _measure(self) -> BlobUsage:
        count = total_bytes = 0
        for folder in (*self._folders(), self.incoming):
            for entry in _entries(folder):
                with contextlib.suppress(FileNotFoundError):  # taken away since the listing
                    total_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
                    count += 1
        return BlobUsage(count, total_bytes)

    def _folders(self) -> list[Path]:
        return [self._root / e.name for e in _entries(self._root) if len(e.name) == 2]


def _rename(source: Path, target: Path, ref: BlobRef) -> None:
    try:
        source.rename(target)
    except FileNotFoundError:  # its writer ended meanwhile, and it was swept
        raise NotFound(f"the payload {ref.blob} is gone; send it again") from None


def _no_plain_file(ref: BlobRef) -> Corrupt:
    return Corrupt(f"the payload {ref.blob} came as something other than a plain file")


def _note_use(file: Path | int) -> int:
    """Note that ``file`` is used now, for `_is_older`; return its size."""
    found = os.stat(file)
    os.utime(file, ns=(time.time_ns(), found.st_mtime_ns))
    return found.st_size


def _signature(file: BufferedReader) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_mtime_ns, found.st_size


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as found:
        yield from found


def _older_than(folder: Path, limit_at: float) -> list[str]:
    return [
        entry.name for entry in _entries(folder) if _is_older(folder / entry.name, limit_at)
    ]


def _unlink_older(folder: Path, names: Sequence[str], limit_at: float) -> list[str]:
    """Unlink those of ``names`` that were not taken into use since they were listed."""
    return [
        name for name in names if _is_older(folder / name, limit_at) and _unlink(folder / name)
    ]


def _is_older(path: Path, limit_at: float) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # taken away since the listing
        return False
    return max(found.st_mtime, found.st_atime) < limit_at


def _unlink_given_up(folder: Path, now_at: float) -> int:
    names = _older_than(folder, now_at - UPLOAD_SECONDS)
    given_up = [
        name for name in names if name.endswith(_UPLOAD) and _is_given_up(folder / name)
    ]
    return sum(_unlink(folder / name) for name in given_up)


def _is_given_up(upload: Path) -> bool:
    """Whether its writer has ended. Where that cannot be told it has not: a day ends it all the same."""
    try:
        file = os.open(upload, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _unlink_all(paths: Sequence[Path]) -> None:
    for path in paths:
        _unlink(path)


def _unlink(path: Path) -> bool:
    """Return whether ``path`` is gone now: a folder stays, for none here is ours."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        _log.warning(
            "%s is a folder where the service keeps files alone, so it stays; if nobody needs it, remove it",
            path,
        )
        return False
    return True
