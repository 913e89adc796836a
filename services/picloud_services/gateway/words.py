"""What handlers get and give."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from picloud_jupyter.protocol import frames
from picloud_jupyter.protocol.errors import CloudException, InvalidRequest, error_to_wire
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.operations import JSON_TYPE
from picloud_services.accounts.keys import JobIdentity
from picloud_services.base import codec
from picloud_services.gateway.decode import read_json

Ranges = list[JidRange]
AT_ONCE_BYTES = 64 * 1024  # of JSON: a millisecond or two


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``job`` is set for code inside a container; ``local``: on api.sock, with our uid.

    ``owner``: who may stop the service and see whom it serves; in a system service that is root.
    """

    user_id: int
    local: bool = False
    owner: bool = False
    job: JobIdentity | None = None


@dataclass(slots=True)
class Head:
    """The first lines of a request. Names of headers are in lower case.

    ``length_bytes`` is None for a chunked body, 0 where there is none.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    length_bytes: int | None


@dataclass(slots=True)
class Request:
    """One request, authenticated.

    ``names`` are the segments that the route left open; names of ``headers`` are in lower case.
    """

    caller: Caller
    names: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    size_bytes: int | None = None
    body: bytes = b""

    async def json(self) -> dict[str, Any]:
        """Return the JSON object that is the body; see `json_of`."""
        return await json_of(self.body)


@dataclass(slots=True)
class Reply:
    """An answer whose bytes are at hand, or come as a stream of ``stream_bytes``."""

    parts: tuple[frames.Buffer, ...] = ()
    content_type: str = JSON_TYPE
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None
    stream_bytes: int = 0


async def json_of(data: bytes | memoryview) -> dict[str, Any]:
    """Return the JSON object in ``data``; others are served while a large one is read.

    Raises:
        InvalidRequest: it is something else; see `read_json`.
    """
    if len(data) <= AT_ONCE_BYTES:
        return read_json(data)
    return await asyncio.to_thread(read_json, data)


def json_reply(value: Mapping[str, Any], status: int = 200) -> Reply:
    """Return an answer with ``value``, plain values and words, as JSON."""
    return Reply((codec.encode(value),), status=status)


def frame_reply(header: Mapping[str, Any], bodies: Sequence[frames.Buffer]) -> Reply:
    """Return an answer that is one frame; ``bodies`` are sent as they are, without being joined."""
    head = codec.encode(header)
    prefix = frames.PREFIX.pack(len(head), sum(map(len, bodies)))
    return Reply((prefix, head, *bodies), content_type=frames.CONTENT_TYPE)


class Sink(Protocol):
    """Takes a streamed body, piece by piece."""

    async def write(self, piece: bytes) -> None:
        """Take one piece; the sender is held back until this returns."""

    async def finish(self) -> Reply:
        """Return the answer after the last piece."""

    def abort(self) -> None:
        """Forget it all: the sender went away or was refused. May follow `finish`."""


class Exchange(Protocol):
    """What is to be done with one request, decided from its head."""

    user_id: int | None  # whose memory is used; None: of nobody, for it is refused
    body_bytes: int  # the largest body that is kept in memory for `serve`
    sink: Sink | None  # takes the body piece by piece instead
    refusal: CloudException | None  # the body is dropped and this answered

    async def serve(self, body: bytes) -> Reply:
        """Return the answer. Raises nothing but what cancels it."""

    def fail(self, error: Exception) -> Reply:
        """Return the answer for what went wrong while the body came in."""


Handler = Callable[[Request], Awaitable[Reply]]
SinkOpener = Callable[[Request], Sink]
Blocked = Callable[[int], AbstractContextManager[None]]  # while a job waits for other jobs


@dataclass(frozen=True, slots=True)
class Route:
    """One request of the API. ``body_bytes`` is the largest body; streamed ones set their own."""

    method: str
    path: str
    handle: Handler | None = None
    open_sink: SinkOpener | None = None
    body_bytes: int = 0
    inside_jobs: bool = True
    owner_only: bool = False


class WrongMethod(InvalidRequest):
    """Raised when a path is asked with a method that it does not have; ``allowed`` are its own."""

    http_status = 405

    def __init__(self, method: str, path: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method} is not for {path}; use {' or '.join(allowed)}")
        self.allowed = allowed


def error_reply(error: CloudException) -> Reply:
    """Return the answer that carries ``error``."""
    reply = json_reply(
        error_to_wire(error), status=error.status if 400 <= error.status < 600 else 500
    )
    if isinstance(error, WrongMethod):
        reply.headers["Allow"] = ", ".join(error.allowed)  # RFC 9110 15.5.6: it must be there
    return reply
