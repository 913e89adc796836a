"""Requests for what jobs gave back, and for what they were given."""

from picloud_jupyter.protocol.errors import NotFound
from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.protocol.jobs import MAX_RESULT_COUNT
from picloud_jupyter.protocol.operations import BYTES_TYPE
from picloud_jupyter.protocol.requests import MAX_RESULTS_BYTES
from picloud_services.blobs.store import BlobRef
from picloud_services.gateway.decode import (
    read_byte_range,
    read_flag,
    read_int,
    read_ranges,
    read_seconds,
)
from picloud_services.gateway.jobs import blocked
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import (
    Ranges,
    Reply,
    Request,
    frame_reply,
)
from picloud_services.jobs.words import Payload, ResultItem, ResultsAnswer

DEFAULT_LIMIT_BYTES = 16 * 1024 * 1024


async def read_results(services: Services, request: Request) -> Reply:
    """POST /v1/results."""
    asked = await request.json()
    jids = read_ranges(asked.get("jids"))
    local = read_flag(asked, "local") and request.caller.local
    answer = await _results(
        services,
        request,
        jids,
        read_int(asked, "limit_bytes", DEFAULT_LIMIT_BYTES, low=1, high=MAX_RESULTS_BYTES),
        read_seconds(asked, "wait_seconds"),
    )
    items = []
    bodies: list[Buffer] = []
    for item in answer.items[:MAX_RESULT_COUNT]:
        if item.body is not None:
            bodies.append(item.body)
        items.append(await _describe(services, item, local=local))
    return frame_reply({"items": items, "more": answer.more}, bodies)


async def _results(
    services: Services, request: Request, jids: Ranges, limit_bytes: int, wait_seconds: float
) -> ResultsAnswer:
    user_id = request.caller.user_id
    if request.caller.job is not None and wait_seconds:
        answer = await services.jobs.results(user_id, jids, limit_bytes=limit_bytes)
        if answer.items:
            return answer
    with blocked(services, request.caller, wait_seconds):
        return await services.jobs.results(
            user_id, jids, limit_bytes=limit_bytes, wait_seconds=wait_seconds
        )


async def _describe(services: Services, item: ResultItem, *, local: bool) -> dict[str, object]:
    path = None
    if item.blob is not None and local:
        path = str(await services.blobs.local_path(item.blob))
    return {
        "jid": item.jid,
        "status": item.status,
        "reason": item.reason,
        "size": item.size_bytes
        if item.blob is not None or item.body is None
        else len(item.body),
        "message": item.message,
        "file": path,
        "blob": item.blob is not None,
        "digest": item.digest,
    }


async def read_result(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/result."""
    item = await services.jobs.result(request.caller.user_id, _jid(request))
    payload = item.blob if item.blob is not None else item.body
    if payload is None:
        raise NotFound(f"it ended as {item.status} ({item.reason}) and has no result", item.jid)
    return _payload_reply(services, request, payload)


async def read_arguments(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/arguments."""
    payload = await services.jobs.arguments(request.caller.user_id, _jid(request))
    return _payload_reply(services, request, payload)


async def read_function(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/function."""
    function = await services.jobs.function(request.caller.user_id, _jid(request))
    return _payload_reply(services, request, function.payload)


def _jid(request: Request) -> int:
    return read_int({"jid": request.names[0]}, "jid", low=1)


def _payload_reply(services: Services, request: Request, payload: Payload) -> Reply:
    total_bytes = payload.size_bytes if isinstance(payload, BlobRef) else len(payload)
    if isinstance(payload, BlobRef):
        return blob_reply(services, request, payload, 0, total_bytes)
    reply, start, stop = _ranged(request, total_bytes)
    reply.parts = (payload[start:stop],)
    return reply


def blob_reply(
    services: Services, request: Request, blob: BlobRef, offset: int, size_bytes: int
) -> Reply:
    """Return the answer with ``size_bytes`` of ``blob`` from ``offset`` on, or the Range of them asked for."""
    reply, start, stop = _ranged(request, size_bytes)
    if stop > start:
        reply.stream = services.blobs.stream(blob, offset + start, offset + stop)
        reply.stream_bytes = stop - start
    return reply


def _ranged(request: Request, total_bytes: int) -> tuple[Reply, int, int]:
    asked = read_byte_range(request.headers.get("range"), total_bytes)
    start, stop = asked or (0, total_bytes)
    reply = Reply(content_type=BYTES_TYPE, headers={"Accept-Ranges": "bytes"})
    if asked is not None:
        reply.status = 206
        reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total_bytes}"
    return reply, start, stop
