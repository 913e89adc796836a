"""Requests for what a job prints, while it runs and after, and for what it uses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES
from picloud_jupyter.protocol.operations import BYTES_TYPE, MAX_LOG_BYTES
from picloud_services.blobs.store import PIECE_BYTES
from picloud_services.dispatch.engine import OutputSlice
from picloud_services.gateway.decode import read_int, read_seconds
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, json_reply
from picloud_services.jobs.words import OutputPlace

STREAMS = ("stdout", "stderr")
MAX_POINTS = 2000
PACE_SECONDS = 0.25  # a follower is told at most four times a second
FIRST_PACE_SECONDS = 0.02  # the first line is seen at once
UNASKED_SECONDS = 2.0  # look again after this long even if nobody said that something changed


async def read_log(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/logs/STREAM."""
    query = request.query
    jid = read_int({"jid": request.names[0]}, "jid", low=1)
    stream = request.names[1]
    if stream not in STREAMS:
        raise InvalidRequest(
            f"a job has the streams {' and '.join(STREAMS)}, not {stream[:40]!r}"
        )
    limit = read_int(query, "limit", MAX_LOG_BYTES, low=0, high=MAX_LOG_BYTES)
    offset = read_int(query, "offset", 0)
    if "tail_bytes" in query:
        _, whole = await _read(services, request.caller.user_id, jid, stream, 0, 0)
        offset = max(0, whole.total_bytes - read_int(query, "tail_bytes"))
    wait_seconds = read_seconds(query, "wait_seconds")
    place, found = await _follow(
        services, request, jid, stream, offset, min(limit, PIECE_BYTES), wait_seconds
    )
    end = min(offset + limit, found.total_bytes) if found.data else found.next_offset
    reply = Reply(
        content_type=BYTES_TYPE,
        headers={
            "X-PiCloud-Next": str(end),
            "X-PiCloud-Total": str(found.total_bytes),
            "X-PiCloud-Finished": str(int(found.finished)),
            "X-PiCloud-Attempt": str(place.attempt if place else 0),
        },
    )
    if place is None or end <= found.next_offset:
        reply.parts = (found.data,)
    else:  # more than a piece: read while the client takes it, for what was printed never changes
        reply.stream = _stream(services, place, stream, found, end)
        reply.stream_bytes = end - offset
    return reply


async def _stream(
    services: Services, place: OutputPlace, stream: str, found: OutputSlice, stop: int
) -> AsyncIterator[bytes]:
    """Yield ``found`` and what follows it up to ``stop``; less if its job is deleted meanwhile."""
    yield found.data
    while found.data and (start := found.next_offset) < stop:
        size_bytes = min(PIECE_BYTES, stop - start)
        found = await services.outputs.read_output(
            place.node, place.lease, place.position, stream, start, size_bytes
        )
        yield found.data


async def _follow(  # one request's parameters
    services: Services,
    request: Request,
    jid: int,
    stream: str,
    offset: int,
    limit: int,
    wait_seconds: float,
) -> tuple[OutputPlace | None, OutputSlice]:
    """Return new output as soon as there is some, the end, or what is there after ``wait_seconds``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    pace_seconds = PACE_SECONDS if offset else FIRST_PACE_SECONDS
    async with _changes(services) as changed:
        while True:
            changed.clear()
            place, found = await _read(
                services, request.caller.user_id, jid, stream, offset, limit
            )
            left = deadline - loop.time()
            if found.data or found.finished or left <= 0:
                return place, found
            await asyncio.sleep(min(pace_seconds, left))
            pace_seconds = min(2 * pace_seconds, PACE_SECONDS)  # others' jobs wake us too
            try:
                async with asyncio.timeout(
                    min(UNASKED_SECONDS, max(0.0, deadline - loop.time()))
                ):
                    await changed.wait()
            except TimeoutError:
                continue


@asynccontextmanager
async def _changes(services: Services) -> AsyncIterator[asyncio.Event]:
    changed = asyncio.Event()
    stops = [
        services.events.listen(topic, lambda _value: changed.set())
        for topic in ("jobs.output", "jobs.changed")
    ]
    try:
        yield changed
    finally:
        for stop in stops:
            stop()


async def _read(
    services: Services, user_id: int, jid: int, stream: str, offset: int, limit: int
) -> tuple[OutputPlace | None, OutputSlice]:
    """Return where the output is, None before there was an attempt, and what is there."""
    place = await services.jobs.output_place(user_id, jid)
    if place is None:
        ((_, _, status),) = await services.jobs.statuses(user_id, [(jid, jid)])
        return None, OutputSlice(b"", offset, 0, finished=status in FINISHED_STATUSES)
    found = await services.outputs.read_output(
        place.node, place.lease, place.position, stream, offset, limit
    )
    # The element may have ended and its job be queued again: only the job's end is the end.
    ours = OutputSlice(
        found.data, found.next_offset, found.total_bytes, finished=place.finished
    )
    return place, ours


async def read_samples(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/samples."""
    jid = read_int({"jid": request.names[0]}, "jid", low=1)
    await services.jobs.require(request.caller.user_id, [(jid, jid)])
    since_at = read_seconds(request.query, "since", high=1e12)
    return json_reply({"samples": await services.samples.samples(jid, since_at, MAX_POINTS)})
