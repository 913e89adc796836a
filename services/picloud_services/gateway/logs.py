"""Requests for what a job prints, while it runs and after, and for what it uses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES
from picloud_jupyter.protocol.operations import BYTES_TYPE, MAX_LOG_BYTES
from picloud_services.dispatch.engine import OutputSlice
from picloud_services.gateway.decode import read_int, read_seconds
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, json_reply

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
        whole, _ = await _read(services, request.caller.user_id, jid, stream, 0, 0)
        offset = max(0, whole.total_bytes - read_int(query, "tail_bytes"))
    found, attempt = await _follow(
        services, request, jid, stream, offset, limit, read_seconds(query, "wait_seconds")
    )
    return Reply(
        (found.data,),
        content_type=BYTES_TYPE,
        headers={
            "X-PiCloud-Next": str(found.next_offset),
            "X-PiCloud-Total": str(found.total_bytes),
            "X-PiCloud-Finished": str(int(found.finished)),
            "X-PiCloud-Attempt": str(attempt),
        },
    )


async def _follow(  # one request's parameters
    services: Services,
    request: Request,
    jid: int,
    stream: str,
    offset: int,
    limit: int,
    wait_seconds: float,
) -> tuple[OutputSlice, int]:
    """Return new output as soon as there is some, the end, or what is there after ``wait_seconds``.

    The number is that of the attempt which wrote it, 0 if there was none.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    pace_seconds = PACE_SECONDS if offset else FIRST_PACE_SECONDS
    async with _changes(services) as changed:
        while True:
            changed.clear()
            found, attempt = await _read(
                services, request.caller.user_id, jid, stream, offset, limit
            )
            left = deadline - loop.time()
            if found.data or found.finished or left <= 0:
                return found, attempt
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
) -> tuple[OutputSlice, int]:
    place = await services.jobs.output_place(user_id, jid)
    if place is None:
        ((_, _, status),) = await services.jobs.statuses(user_id, [(jid, jid)])
        return OutputSlice(b"", offset, 0, finished=status in FINISHED_STATUSES), 0
    found = await services.outputs.read_output(
        place.node, place.lease, place.position, stream, offset, limit
    )
    # The element may have ended and its job be queued again: only the job's end is the end.
    ours = OutputSlice(
        found.data, found.next_offset, found.total_bytes, finished=place.finished
    )
    return ours, place.attempt


async def read_samples(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/samples."""
    jid = read_int({"jid": request.names[0]}, "jid", low=1)
    await services.jobs.require(request.caller.user_id, [(jid, jid)])
    since_at = read_seconds(request.query, "since", high=1e12)
    return json_reply({"samples": await services.samples.samples(jid, since_at, MAX_POINTS)})
