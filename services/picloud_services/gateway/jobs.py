"""Requests about jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import Status
from picloud_services.base import codec
from picloud_services.gateway.decode import (
    read_as,
    read_int,
    read_ranges,
    read_seconds,
    read_text,
)
from picloud_services.gateway.payloads import (
    read_function,
    read_payload,
    read_spec,
    read_submit,
)
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Caller, Reply, Request, json_reply
from picloud_services.jobs.info_fields import GPU_FIELDS
from picloud_services.jobs.words import WaitAnswer

UNTIL = ("all", "error", "change")
MAX_INFO = 10_000
GPU_POINTS = 1_000


async def create_call(services: Services, request: Request) -> Reply:
    """POST /v1/calls."""
    header, body = read_submit(request.body)
    caller = request.caller
    if header.arguments is None:
        raise InvalidRequest("arguments is missing: where the pickled arguments are")
    spec = await read_spec(services, caller, header)
    function = await read_function(services, caller, header.function, body)
    arguments = await read_payload(services, caller, header.arguments, "arguments", body)
    body.end()
    receipt = await services.jobs.submit_call(
        caller.user_id, spec, header.key, function, arguments
    )
    services.accounts.sent([header.function.upload, header.arguments.upload])
    return json_reply(
        {
            "jid": receipt.jid,
            "cached": receipt.cached,
            "repeated": receipt.repeated,
            "warnings": receipt.warnings,
        }
    )


async def list_jobs(services: Services, request: Request) -> Reply:
    """GET /v1/jobs."""
    query = request.query
    status = read_text(query, "status")
    if status is not None and status not in set(Status):
        raise InvalidRequest(f"status must be one of {', '.join(Status)}, got {status[:40]!r}")
    lines = await services.jobs.list_jobs(
        request.caller.user_id,
        limit=read_int(query, "limit", 50, low=1, high=1000),
        before=read_int(query, "before") if "before" in query else None,
        label=read_text(query, "label"),
        status=status,
        map_id=read_int(query, "map") if "map" in query else None,
    )
    return json_reply({"jobs": lines})


async def read_statuses(services: Services, request: Request) -> Reply:
    """POST /v1/status."""
    jids = read_ranges((await request.json()).get("jids"))
    return json_reply({"statuses": await services.jobs.statuses(request.caller.user_id, jids)})


async def wait(services: Services, request: Request) -> Reply:
    """POST /v1/wait."""
    asked = await request.json()
    jids = read_ranges(asked.get("jids"))
    until = read_text(asked, "until") or "all"
    if until not in UNTIL:
        raise InvalidRequest(f"until must be one of {', '.join(UNTIL)}, got {until[:40]!r}")
    timeout_seconds = read_seconds(asked, "timeout_seconds")
    seen = asked.get("counts_seen")
    counts_seen = None if seen is None else read_as(dict[str, int], seen, "counts_seen")
    user_id = request.caller.user_id
    if request.caller.job is not None and timeout_seconds:
        # Nothing is given back, and no core changes hands, for what can be answered at once.
        answer = await services.jobs.wait(
            user_id, jids, timeout_seconds=0, until=until, counts_seen=counts_seen
        )
        if _holds(answer, until, counts_seen):
            return Reply((codec.encode(answer),))
    with blocked(services, request.caller, timeout_seconds):
        answer = await services.jobs.wait(
            user_id, jids, timeout_seconds=timeout_seconds, until=until, counts_seen=counts_seen
        )
    return Reply((codec.encode(answer),))


def _holds(answer: WaitAnswer, until: str, counts_seen: dict[str, int] | None) -> bool:
    if until == "change":
        return answer.finished or answer.counts != counts_seen
    return answer.finished or (until == "error" and bool(answer.failed))


@contextmanager
def blocked(services: Services, caller: Caller, seconds: float) -> Iterator[None]:
    """While inside: the job that asks, if a job asks, holds no cores.

    Else jobs that wait for jobs of theirs could hold all cores, and none of these would start.
    """
    if caller.job is None or not seconds:
        yield
        return
    with services.blocked(caller.job.jid):
        yield


async def read_info(services: Services, request: Request) -> Reply:
    """POST /v1/info."""
    asked = await request.json()
    jids = read_ranges(asked.get("jids"))
    if sum(last - first + 1 for first, last in jids) > MAX_INFO:
        raise InvalidRequest(f"ask for the info of at most {MAX_INFO} jobs at once")
    fields = asked.get("fields")
    wanted = None if fields is None else read_as(list[str], fields, "fields")
    found = await services.jobs.info(request.caller.user_id, jids, wanted)
    await _add_gpu_use(services, found)
    return json_reply({"info": {str(jid): values for jid, values in found.items()}})


async def _add_gpu_use(services: Services, found: dict[int, dict[str, Any]]) -> None:
    """Fill in what samples say of GPUs: percent of the time busy (mean), bytes of memory (most)."""
    for jid, values in found.items():
        if all(values.get(name) is None for name in GPU_FIELDS):
            continue  # not asked for, or a job without GPUs
        samples = await services.samples.samples(jid, 0.0, GPU_POINTS)
        if samples:
            percents = [sample.gpu_percent for sample in samples]
            figures = (sum(percents) / len(samples), max(s.gpu_memory_bytes for s in samples))
            values.update(
                {n: v for n, v in zip(GPU_FIELDS, figures, strict=True) if n in values}
            )


async def why(services: Services, request: Request) -> Reply:
    """GET /v1/jobs/J/why."""
    jid = read_int({"jid": request.names[0]}, "jid", low=1)
    return Reply((codec.encode(await services.story(request.caller.user_id, jid)),))


async def kill(services: Services, request: Request) -> Reply:
    """POST /v1/kill."""
    asked = await request.json()
    if "jids" not in asked:
        raise InvalidRequest(
            "jids is missing: ranges of jids, or null for everything unfinished"
        )
    jids = None if asked["jids"] is None else read_ranges(asked["jids"])
    return json_reply({"killed": await services.jobs.kill(request.caller.user_id, jids)})


async def delete(services: Services, request: Request) -> Reply:
    """POST /v1/delete."""
    asked = await request.json()
    jids = read_ranges(asked.get("jids"))
    key = read_text(asked, "key", longest=64) or ""
    return json_reply(
        {"deleted": await services.jobs.delete(request.caller.user_id, jids, key)}
    )
