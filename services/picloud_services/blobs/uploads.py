"""Large payloads on their way in: written by the client itself, or streamed to us."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
from pathlib import Path
from typing import Protocol

from picloud_jupyter.protocol.errors import (
    Conflict,
    Corrupt,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
)
from picloud_jupyter.protocol.jobs import PayloadRef
from picloud_services.base.filesystem import DiskWatch
from picloud_services.blobs.store import BlobRef, BlobStore


class UploadIds(Protocol):
    """Makes ids that prove whose they are, so that an unfinished upload needs no row."""

    def upload_id(self, user_id: int) -> str:
        """Return a fresh id."""

    def owns_upload(self, user_id: int, upload: str) -> bool:
        """Return whether ``upload`` was made for ``user_id``."""


class IncomingFile:
    """One streamed body on its way into ``path``, hashed as it comes. Holds one piece at a time.

    Whoever made it calls `abort` at the end, also after the file became a blob: its lock says until
    then that somebody wants it.
    """

    def __init__(self, path: Path, disk: DiskWatch, *, limit_bytes: int) -> None:
        self.path = path
        self._disk = disk
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self._writing = threading.Lock()
        self._given_up = False
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = open(descriptor, "wb", buffering=0)  # noqa: SIM115  # closed by abort
        with contextlib.suppress(OSError):  # no locks there: then it is swept after a day
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    async def write(self, piece: bytes) -> None:
        """Append ``piece``.

        Raises:
            PayloadTooLarge: it is more than was allowed.
            DiskFull: the disk is down to its floor.
        """
        self.size_bytes += len(piece)
        if self.size_bytes > self._limit_bytes:
            raise PayloadTooLarge(
                f"the upload is larger than the {self._limit_bytes} bytes allowed"
            )
        await asyncio.to_thread(self._append, piece)

    def _append(self, piece: bytes) -> None:
        with self._writing:
            self._disk.require(len(piece))
            self._hash.update(piece)
            view = memoryview(piece)
            while view:
                view = view[self._file.write(view) :]
        if self._given_up:
            self._file.close()

    @property
    def digest(self) -> str:
        """The sha256 in hex of what came so far."""
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Close the file, and remove it if it is no blob; a thread that writes it closes it."""
        self._given_up = True
        if self._writing.acquire(blocking=False):
            self._file.close()
            self._writing.release()
        self.path.unlink(missing_ok=True)


class Uploads:
    """Payloads that clients send before they name them in a submit."""

    def __init__(
        self, blobs: BlobStore, ids: UploadIds, disk: DiskWatch, *, max_bytes: int
    ) -> None:
        self._blobs = blobs
        self._ids = ids
        self._disk = disk
        self._max_bytes = max_bytes

    def begin(self, user_id: int, size_bytes: int, *, local: bool) -> tuple[str, Path | None]:
        """Return the id of a new upload and, if ``local``, the file that the client may write itself.

        Raises:
            PayloadTooLarge: over the service's limit.
            DiskFull: it would not fit.
        """
        if size_bytes > self._max_bytes:
            raise PayloadTooLarge(
                f"a payload of {size_bytes} bytes is over the service's limit of {self._max_bytes}",
                hint="Put such data in files that jobs read, or raise the setting max_upload_bytes.",
            )
        self._disk.require(size_bytes)
        upload = self._ids.upload_id(user_id)
        return upload, self._blobs.upload_path(upload) if local else None

    async def open(self, user_id: int, upload: str) -> IncomingFile:
        """Return the file that takes the streamed body of ``upload``.

        Raises:
            Conflict: it is finished already.
        """
        self.require_owner(user_id, upload)
        if await self._blobs.find(upload) is not None:
            raise Conflict("this upload is finished already; begin another one")
        path = self._blobs.upload_path(secrets.token_hex(16))
        return IncomingFile(path, self._disk, limit_bytes=self._max_bytes)

    async def finish(
        self,
        user_id: int,
        upload: str,
        size_bytes: int,
        digest: str,
        file: IncomingFile | None = None,
    ) -> BlobRef:
        """Return the blob that ``upload`` became, durable; ``file`` is what `open` gave, if it did.

        Raises:
            NotFound: nothing was written.
            InvalidRequest: what was written has another size, or is no plain file.
        """
        self.require_owner(user_id, upload)
        source = self._blobs.upload_path(upload) if file is None else file.path
        try:
            return await self._blobs.adopt(
                upload, size_bytes=size_bytes, digest=digest, source=source
            )
        except Corrupt as exc:  # nothing was promised of it yet: it is the client's to mend
            raise InvalidRequest(
                exc.parameter, hint="Say the size of what was written, or begin another upload."
            ) from exc

    async def take(self, user_id: int, payload: PayloadRef) -> BlobRef:
        """Return the blob that ``payload`` names, for a row that is about to be written.

        Raises:
            NotFound: it is not the user's, was never finished, or was swept after an hour.
            InvalidRequest: it has another size than the payload says.
        """
        assert payload.upload is not None
        self.require_owner(user_id, payload.upload)
        found = await self._blobs.find(payload.upload)
        if found is None:
            raise NotFound(
                f"the upload {payload.upload} is not finished, or was not used within an hour; send it again"
            )
        if found.size_bytes != payload.size_bytes:
            raise InvalidRequest(
                f"the upload {payload.upload} has {found.size_bytes} bytes, not {payload.size_bytes}"
            )
        return BlobRef(found.blob, found.size_bytes, payload.digest)

    def require_owner(self, user_id: int, upload: str) -> None:
        """Return if ``upload`` was begun by the user.

        Raises:
            NotFound: it was not.
        """
        if not self._ids.owns_upload(user_id, upload):
            raise NotFound(f"there is no upload {upload[:40]}")
