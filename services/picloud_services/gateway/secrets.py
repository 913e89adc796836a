"""Requests about secrets. Their values come in, and never go out here; no message repeats one."""

from collections.abc import Callable

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.secrets import check_name, check_value
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, json_reply


async def list_secrets(services: Services, request: Request) -> Reply:
    """GET /v1/secrets."""
    return json_reply({"secrets": services.secrets.lines(request.caller.user_id)})


async def set_secret(services: Services, request: Request) -> Reply:
    """PUT /v1/secrets/NAME: the body is the value."""
    name = _checked(check_name, request.names[0])
    try:
        text = request.body.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("a secret must be UTF-8 text; give bytes as base64") from None
    value = _checked(check_value, text)
    services.disk.require()
    try:
        line = await services.secrets.set(request.caller.user_id, name, value)
    except ValueError as exc:
        raise InvalidRequest(str(exc)) from exc
    return json_reply({"secret": line})


async def delete_secret(services: Services, request: Request) -> Reply:
    """DELETE /v1/secrets/NAME."""
    name = _checked(check_name, request.names[0])
    await services.secrets.delete(request.caller.user_id, name)
    return json_reply({})


def _checked(check: Callable[[object], str], text: str) -> str:
    try:
        return check(text)
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(str(exc)) from None
