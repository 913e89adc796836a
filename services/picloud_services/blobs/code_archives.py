"""Archives of the user's own modules, named by the sha256 of their zip file."""

import re
import secrets
from pathlib import Path

from picloud_jupyter.protocol.errors import InvalidRequest, NotFound, PayloadTooLarge
from picloud_services.base.filesystem import DiskWatch
from picloud_services.blobs.store import BlobRef, BlobStore
from picloud_services.blobs.uploads import IncomingFile

_DIGEST = re.compile(r"[0-9a-f]{64}")


class CodeArchives:
    """Keeps archives in a `BlobStore` of their own; the id of each is its digest."""

    def __init__(self, blobs: BlobStore, disk: DiskWatch, *, max_bytes: int) -> None:
        self._blobs = blobs
        self._disk = disk
        self._max_bytes = max_bytes

    async def require(self, digest: str) -> None:
        """Return if the archive is here; that counts as a use of it.

        Raises:
            NotFound: it is not; the client must send it first.
        """
        await self._find(digest)

    async def path(self, digest: str) -> Path:
        """Return the zip file, whose content was compared with its name. Raises as `require`.

        Raises:
            Corrupt: the content is not what the name says.
        """
        return await self._blobs.local_path(await self._find(digest))

    async def _find(self, digest: str) -> BlobRef:
        found = await self._blobs.find(_check(digest))
        if found is None:
            raise NotFound(f"the code version {digest} is not here; send its archive first")
        return BlobRef(digest, found.size_bytes, digest)

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
        path = self._blobs.incoming_path(secrets.token_hex(16))
        return IncomingFile(path, self._disk, limit_bytes=self._max_bytes)

    async def finish(self, digest: str, file: IncomingFile) -> None:
        """Keep what was written, durable.

        Raises:
            InvalidRequest: it is not what ``digest`` says.
        """
        if file.digest != digest:
            raise InvalidRequest(
                f"the archive's sha256 is {file.digest}, not {digest}; send it again"
            )
        file.close(self._blobs.incoming_path(digest))
        await self._blobs.adopt(digest, size_bytes=file.size_bytes, digest=digest)


def _check(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest(f"{digest[:80]!r} is not a sha256 in hex")
    return digest
