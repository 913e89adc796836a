"""Requests that build a map: begin it, send its parts, seal it."""

from typing import Any

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import MAX_MAP_COUNT, MAX_PART_COUNT, PayloadRef
from picloud_services.blobs.store import BlobRef
from picloud_services.gateway.decode import read_as, read_flag, read_int, split_frame
from picloud_services.gateway.payloads import read_function, read_spec, read_submit
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Caller, Reply, Request, json_of, json_reply


async def create_map(services: Services, request: Request) -> Reply:
    """POST /v1/maps."""
    header, body = read_submit(request.body)
    caller = request.caller
    spec = await read_spec(services, caller, header)
    function = await read_function(services, caller, header.function, body)
    body.end()
    count = header.count
    if count is not None and not 0 <= count <= MAX_MAP_COUNT:
        raise InvalidRequest(f"count must be from 0 to {MAX_MAP_COUNT}, got {count}")
    receipt = await services.jobs.create_map(caller.user_id, spec, header.key, count, function)
    services.accounts.sent([header.function.upload])
    return json_reply(
        {"map": receipt.map, "first_jid": receipt.first_jid, "warnings": receipt.warnings}
    )


async def put_part(services: Services, request: Request) -> Reply:
    """PUT /v1/maps/M/parts/N."""
    services.disk.require()
    head, view = split_frame(request.body)
    header = await json_of(head)
    receipt = await services.jobs.put_part(
        request.caller.user_id,
        read_int({"map": request.names[0]}, "map", low=1),
        read_int({"part": request.names[1]}, "part", high=MAX_MAP_COUNT),
        read_int(header, "first_index", high=MAX_MAP_COUNT),
        read_int(header, "count", low=1, high=MAX_PART_COUNT),
        bytes(view),
        await _read_files(services, request.caller, header),
    )
    services.accounts.sent(payload.upload for _, payload in _uploads(header))
    return json_reply({"first_jid": receipt.first_jid, "count": receipt.count})


async def _read_files(
    services: Services, caller: Caller, header: dict[str, Any]
) -> list[tuple[int, BlobRef]]:
    files = []
    for index, payload in _uploads(header):
        if payload.upload is None:
            raise InvalidRequest(f"uploads names no upload for the element {index} of the part")
        files.append((index, await services.uploads.take(caller.user_id, payload)))
    return files


def _uploads(header: dict[str, Any]) -> list[tuple[int, PayloadRef]]:
    return read_as(list[tuple[int, PayloadRef]], header.get("uploads", []), "uploads")


async def seal_map(services: Services, request: Request) -> Reply:
    """POST /v1/maps/M/seal."""
    asked = await request.json()
    jids = await services.jobs.seal_map(
        request.caller.user_id,
        read_int({"map": request.names[0]}, "map", low=1),
        read_int(asked, "count", high=MAX_MAP_COUNT),
        read_int(asked, "parts", high=MAX_MAP_COUNT),
        short=read_flag(asked, "short"),
    )
    return json_reply({"jids": jids})
