"""Archives of users' own modules, named by the sha256 of their zip file; each user has their own."""

import hashlib
import re
import secrets
from pathlib import Path

from picloud_jupyter.protocol.errors import InvalidRequest, NotFound, PayloadTooLarge
from picloud_services.base.filesystem import DiskWatch
from picloud_services.blobs.store import BlobRef, BlobStore
from picloud_services.blobs.uploads import IncomingFile

_DIGEST = re.compile(r"[0-9a-f]{64}")


class CodeArchives:
    """Keeps archives in a `BlobStore` of their own. To know a digest is no right to what it names."""

    def __init__(self, blobs: BlobStore, disk: DiskWatch, *, max_bytes: int) -> None:
        self._blobs = blobs
        self._disk = disk
        self._max_bytes = max_bytes

    async def require(self, user_id: int, digest: str) -> None:
        """Return if the user's archive is here; that counts as a use of it.

        Raises:
            NotFound: it is not; the client must send it first.
        """
        await self._find(user_id, digest)

    async def path(self, user_id: int, digest: str) -> Path:
        """Return the zip file, whose content was compared with its name. Raises as `require`.

        Raises:
            Corrupt: the content is not what the name says.
        """
        return await self._blobs.local_path(await self._find(user_id, digest))

    async def _find(self, user_id: int, digest: str) -> BlobRef:
        archive = archive_id(user_id, _check(digest))
        found = await self._blobs.find(archive)
        if found is None:
            raise NotFound(f"the code version {digest} is not here; send its archive first")
        return BlobRef(archive, found.size_bytes, digest)

    def open(self, digest: str, size_bytes: int | None) -> IncomingFile:
        """Return the file that takes the body of an archive.

        Raises:
            PayloadTooLarge: over the service's limit.
            DiskFull: it would not fit.
        """
        _check(digest)
        if (size_bytes or 0) > self._max_bytes:
            raise PayloadTooLarge(
                f"the archive of local modules has {size_bytes} bytes, over the limit of {self._max_bytes}",
                hint="Keep data out of the folders of your modules, or raise the setting max_code_bytes.",
            )
        self._disk.require(size_bytes or 0)
        path = self._blobs.upload_path(secrets.token_hex(16))
        return IncomingFile(path, self._disk, limit_bytes=self._max_bytes)

    async def finish(self, user_id: int, digest: str, file: IncomingFile) -> None:
        """Keep what was written as the user's, durable.

        Raises:
            InvalidRequest: it is not what ``digest`` says.
        """
        if file.digest != digest:
            raise InvalidRequest(
                f"the archive's sha256 is {file.digest}, not {digest}; send it again"
            )
        archive = archive_id(user_id, digest)
        await self._blobs.adopt(
            archive, size_bytes=file.size_bytes, digest=digest, source=file.path
        )


def archive_id(user_id: int, digest: str) -> str:
    """Return the id of a user's archive among the blobs."""
    return hashlib.sha256(f"{user_id}:{digest}".encode()).hexdigest()


def _check(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest(f"{digest[:80]!r} is not a sha256 in hex")
    return digest
