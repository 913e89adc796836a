"""Requests about the service itself."""

from picloud_jupyter.protocol.openapi import document_json
from picloud_services.base.instruments import CONTENT_TYPE
from picloud_services.gateway.decode import read_flag, read_json
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, json_reply


async def describe(services: Services, request: Request) -> Reply:
    """GET /v1/service."""
    return json_reply(await services.describe(request.caller))


async def openapi(services: Services, request: Request) -> Reply:  # as all handlers
    """GET /v1/openapi.json."""
    return Reply((document_json().encode(),))


async def metrics(services: Services, request: Request) -> Reply:  # as all handlers
    """GET /metrics."""
    return Reply(((await services.metrics()).encode(),), content_type=CONTENT_TYPE)


async def diagnose(services: Services, request: Request) -> Reply:  # as all handlers
    """GET /v1/diagnosis."""
    return json_reply(await services.diagnose())


async def stop(services: Services, request: Request) -> Reply:
    """POST /v1/stop: answered first, then done."""
    asked = read_json(request.body)
    services.stop(kill_jobs=read_flag(asked, "kill_jobs"), purge=read_flag(asked, "purge"))
    return json_reply({})
