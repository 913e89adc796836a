"""Requests that bring large payloads and archives of local modules."""

from picloud_services.blobs.uploads import IncomingFile
from picloud_services.gateway.decode import read_int, read_text
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, json_reply


async def begin_upload(services: Services, request: Request) -> Reply:
    """POST /v1/uploads."""
    caller = request.caller
    size_bytes = read_int(await request.json(), "size_bytes")
    services.accounts.require_room(caller.user_id, size_bytes)
    upload, path = services.uploads.begin(caller.user_id, size_bytes, local=caller.local)
    services.accounts.require_room(caller.user_id, size_bytes, upload)
    return json_reply({"upload": upload, "path": None if path is None else str(path)})


async def finish_upload(services: Services, request: Request) -> Reply:
    """POST /v1/uploads/U: the client wrote the file itself."""
    asked = await request.json()
    digest = read_text(asked, "digest", longest=64) or ""
    size_bytes = read_int(asked, "size_bytes")
    user_id, upload = request.caller.user_id, request.names[0]
    services.uploads.require_owner(user_id, upload)  # or any name would count as an upload
    services.accounts.require_room(user_id, size_bytes, upload)
    await services.uploads.finish(user_id, upload, size_bytes, digest)
    return json_reply({})


class UploadSink:
    """PUT /v1/uploads/U."""

    def __init__(self, services: Services, request: Request) -> None:
        self._uploads = services.uploads
        self._accounts = services.accounts
        self._user_id = request.caller.user_id
        self._upload = request.names[0]
        self._file: IncomingFile | None = None

    async def _open(self) -> IncomingFile:
        if self._file is None:
            self._file = await self._uploads.open(self._user_id, self._upload)
        return self._file

    async def write(self, piece: bytes) -> None:
        """See `Sink`."""
        file = await self._open()
        self._accounts.require_room(self._user_id, file.size_bytes + len(piece), self._upload)
        await file.write(piece)

    async def finish(self) -> Reply:
        """See `Sink`."""
        file = await self._open()
        digest = file.digest
        try:
            await self._uploads.finish(
                self._user_id, self._upload, file.size_bytes, digest, file
            )
        finally:
            file.abort()
        return json_reply({"size_bytes": file.size_bytes, "digest": digest})

    def abort(self) -> None:
        """See `Sink`."""
        if self._file is not None:
            self._file.abort()


async def find_code(services: Services, request: Request) -> Reply:
    """GET /v1/code/DIGEST."""
    await services.code.require(request.caller.user_id, request.names[0])
    return json_reply({})


class CodeSink:
    """PUT /v1/code/DIGEST."""

    def __init__(self, services: Services, request: Request) -> None:
        self._code = services.code
        self._user_id = request.caller.user_id
        self._digest = request.names[0]
        self._file = services.code.open(self._digest, request.size_bytes)

    async def write(self, piece: bytes) -> None:
        """See `Sink`."""
        await self._file.write(piece)

    async def finish(self) -> Reply:
        """See `Sink`."""
        try:
            await self._code.finish(self._user_id, self._digest, self._file)
        finally:
            self._file.abort()
        return json_reply({})

    def abort(self) -> None:
        """See `Sink`."""
        self._file.abort()
