"""Requests for the files that jobs wrote in their folder."""

import asyncio
import struct
from pathlib import Path

from picloud_jupyter.protocol.errors import Corrupt, NotFound
from picloud_jupyter.protocol.frames import PREFIX, FrameError, decode_header
from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_jupyter.protocol.written_files import MAX_LISTING_BYTES, Listing, read_listing
from picloud_services.blobs.store import BlobRef
from picloud_services.gateway.decode import read_int
from picloud_services.gateway.results import blob_reply
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, json_reply

PLAIN_NOTE = "Jobs are plain processes here: what they write is in the real folder, beside the notebook, and is not listed."


async def list_files(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/files."""
    _, listing = await _find(services, request)
    is_plain = any(n.container_kind is ContainerKind.PLAIN for n in services.nodes())
    files = [
        {"path": file.path, "size_bytes": file.size_bytes, "modified_at": file.modified_at}
        for file in listing.files
    ]
    left = [{"path": path, "why": why} for path, why in listing.left]
    note = PLAIN_NOTE if is_plain and not files else ""
    return json_reply({"files": files, "left": left, "note": note})


async def read_file(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/files/PATH?offset&limit."""
    blob, listing = await _find(services, request)
    path = request.names[1]
    file = listing.find(path)
    if blob is None or file is None:
        raise NotFound(
            f"job {request.names[0]} kept no file {path[:200]!r}",
            hint="`picloud files JID` lists those that it did",
        )
    skipped = read_int(request.query, "offset", 0, low=0, high=file.size_bytes)
    left = file.size_bytes - skipped
    limit = read_int(request.query, "limit", left, low=0)
    return blob_reply(services, request, blob, file.offset + skipped, min(limit, left))


async def _find(services: Services, request: Request) -> tuple[BlobRef | None, Listing]:
    jid = read_int({"jid": request.names[0]}, "jid", low=1)
    blob = (await services.jobs.result(request.caller.user_id, jid)).files
    if blob is None:
        return None, Listing()
    path = await services.blobs.local_path(blob)
    return blob, await asyncio.to_thread(_read, path, blob.size_bytes, jid)


def _read(path: Path, size_bytes: int, jid: int) -> Listing:
    try:
        with open(path, "rb") as file:
            header_bytes, _ = PREFIX.unpack(file.read(PREFIX.size))
            if header_bytes > MAX_LISTING_BYTES:
                raise FrameError("the list of a job's files is too long")
            return read_listing(
                decode_header(file.read(header_bytes)), header_bytes, size_bytes
            )
    except (ValueError, struct.error) as exc:
        raise Corrupt(f"what it left as its files cannot be read: {exc}", jid=jid) from exc
