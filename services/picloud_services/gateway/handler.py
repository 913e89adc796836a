"""One HTTP request from its first byte to its answer: the only place that knows who asks.

It authenticates (the peer's uid on api.sock, a job's key on jobs.sock), finds the route, takes
the body within its limit, and turns every exception into the JSON of `protocol.errors`.
"""

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from picloud_jupyter.protocol.errors import (
    CloudException,
    DiskFull,
    Incompatible,
    InternalError,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    PayloadTooLarge,
    error_to_wire,
)
from picloud_jupyter.protocol.frames import OLDEST_WIRE_VERSION, WIRE_VERSION, Buffer
from picloud_services.accounts.keys import JobIdentity
from picloud_services.gateway.router import Router
from picloud_services.gateway.words import Caller, Reply, Request, Route, Sink, json_reply

WIRE_HEADER = "X-PiCloud-Wire"
DISCARD_BYTES = 64 * 1024 * 1024  # what a refused body may still send before we hang up
MEMORY_BYTES = 256 * 1024  # bodies waiting to be written hold at most this at a time
_BEARER = "Bearer "
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """How a listener authenticates. ``owner_uid`` None means: by a job's key and nothing else."""

    router: Router
    check_key: Callable[[str], JobIdentity | None]
    owner_uid: int | None

    def caller(self, peer_uid: int, headers: httputil.HTTPHeaders) -> Caller:
        """Return who asks.

        Raises:
            NotAuthenticated: no key, a wrong one, or one of a job that no longer runs.
            NotAllowed: this service belongs to somebody else.
        """
        if self.owner_uid is not None:
            if peer_uid not in (self.owner_uid, 0):
                raise NotAllowed(
                    f"this service belongs to uid {self.owner_uid}, and you are uid {peer_uid}",
                    hint="Start your own with `picloud up`.",
                )
            return Caller(self.owner_uid, local=peer_uid == self.owner_uid, owner=True)
        header = headers.get("Authorization", "")
        if not header.startswith(_BEARER):
            raise NotAuthenticated("code inside a container needs its job's key")
        job = self.check_key(header[len(_BEARER) :].strip())
        if job is None:
            raise NotAuthenticated(
                "the key is none of ours, or its job no longer runs on this attempt"
            )
        return Caller(job.user_id, job=job)


def peer_uid(connection: socket.socket) -> int:
    """Return the uid of the process at the other end of a unix socket. Source: unix(7), SO_PEERCRED."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


class Connections(httputil.HTTPServerConnectionDelegate):
    """Makes an `Exchange` for each request of a listener."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._uids: dict[object, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Called by tornado at the first byte of each request."""
        assert isinstance(request_conn, HTTP1Connection)
        uid = self._uids.get(server_conn)
        if uid is None:
            uid = self._uids[server_conn] = peer_uid(request_conn.stream.socket)
        return Exchange(self._door, uid, request_conn, self._tasks)

    def on_close(self, server_conn: object) -> None:
        """Called by tornado when a connection ended."""
        self._uids.pop(server_conn, None)

    async def close(self) -> None:
        """End what is being answered; clients see a closed connection and try again."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))


class Exchange(httputil.HTTPMessageDelegate):
    """One request and its answer. Tornado calls it, in this order, for head, pieces and end."""

    def __init__(
        self, door: Door, uid: int, connection: HTTP1Connection, tasks: set[asyncio.Task[None]]
    ) -> None:
        self._door = door
        self._uid = uid
        self._connection = connection
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._method = "GET"
        self._route: Route | None = None
        self._request: Request | None = None
        self._sink: Sink | None = None
        self._pieces: list[bytes] = []
        self._received_bytes = 0
        self._refusal: CloudException | None = None

    # --------------------------------------------------------------------------- taking it in
    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        """Authenticate, find the route and check the announced size."""
        assert isinstance(start_line, httputil.RequestStartLine)
        self._method = start_line.method
        announced = headers.get("Content-Length", "")
        size_bytes = int(announced) if announced.isdecimal() else None
        try:
            self._open(start_line, headers, size_bytes)
        except Exception as exc:  # noqa: BLE001  # the door: all becomes JSON
            self._refusal = as_cloud_exception(exc)
            if (size_bytes or 0) > DISCARD_BYTES:
                return self._answer(error_reply(self._refusal))
        return None

    def _open(
        self,
        start_line: httputil.RequestStartLine,
        headers: httputil.HTTPHeaders,
        size_bytes: int | None,
    ) -> None:
        check_wire(headers.get(WIRE_HEADER))
        caller = self._door.caller(self._uid, headers)
        path, _, query = start_line.path.partition("?")
        route, names = self._door.router.find(start_line.method, path)
        if caller.job is not None and not route.inside_jobs:
            raise NotAllowed(f"{start_line.method} {path} is not for code inside a job")
        self._route = route
        self._request = Request(
            caller, names, dict(parse_qsl(query)) if query else {}, headers, size_bytes
        )
        if route.open_sink is not None:
            self._sink = route.open_sink(self._request)
        elif (size_bytes or 0) > route.body_bytes:
            raise _too_large(size_bytes or 0, route.body_bytes)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take one piece of the body; what is refused is read and dropped."""
        if self._refusal is not None:
            return None
        if self._sink is not None:
            return self._write(self._sink, chunk)
        self._received_bytes += len(chunk)
        assert self._route is not None
        if self._received_bytes > self._route.body_bytes:
            self._refuse(_too_large(self._received_bytes, self._route.body_bytes))
        else:
            self._pieces.append(chunk)
        return None

    async def _write(self, sink: Sink, chunk: bytes) -> None:
        try:
            await sink.write(chunk)
        except Exception as exc:  # noqa: BLE001  # the door: all becomes JSON
            self._refuse(as_cloud_exception(exc))

    def _refuse(self, error: CloudException) -> None:
        self._refusal = error
        self._pieces.clear()
        if self._sink is not None:
            self._sink.abort()
            self._sink = None

    # ------------------------------------------------------------------------------ answering
    def finish(self) -> None:
        """Answer, now that the whole request is here."""
        self._connection.set_close_callback(self.on_connection_close)
        task = self._task = asyncio.get_running_loop().create_task(self._serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_connection_close(self) -> None:
        """The client went away: nobody wants the answer."""
        if self._task is not None:
            self._task.cancel()
        if self._sink is not None:
            self._sink.abort()
            self._sink = None

    async def _serve(self) -> None:
        try:
            reply = await self._reply()
        except Exception as exc:  # noqa: BLE001  # the door: all becomes JSON
            reply = error_reply(as_cloud_exception(exc))
        await self._answer(reply)

    async def _reply(self) -> Reply:
        if self._refusal is not None:
            raise self._refusal
        assert self._route is not None
        assert self._request is not None
        if self._sink is not None:
            return await self._sink.finish()
        assert self._route.handle is not None
        self._request.body = (
            self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        )
        self._pieces.clear()
        return await self._route.handle(self._request)

    async def _answer(self, reply: Reply) -> None:
        size_bytes = sum(map(len, reply.parts)) + reply.stream_bytes
        headers = httputil.HTTPHeaders()
        headers["Content-Type"] = reply.content_type
        headers["Content-Length"] = str(size_bytes)
        for name, value in reply.headers.items():
            headers[name] = value
        connection = self._connection
        line = httputil.ResponseStartLine("HTTP/1.1", reply.status, _phrase(reply.status))
        try:
            if size_bytes <= MEMORY_BYTES and reply.stream is None:
                body = b"" if self._method == "HEAD" else b"".join(reply.parts)
                connection.write_headers(line, headers, body)
            else:
                connection.write_headers(line, headers)
                await self._send_pieces(reply)
            connection.finish()
        except StreamClosedError:
            return  # the client went away

    async def _send_pieces(self, reply: Reply) -> None:
        gathered: list[Buffer] = []
        gathered_bytes = 0
        for part in reply.parts:
            gathered.append(part)
            gathered_bytes += len(part)
            if gathered_bytes >= MEMORY_BYTES:
                await self._connection.write(b"".join(gathered))
                gathered.clear()
                gathered_bytes = 0
        if gathered:
            await self._connection.write(b"".join(gathered))
        if reply.stream is not None:
            await self._send_stream(reply.stream)

    async def _send_stream(self, stream: AsyncIterator[bytes]) -> None:
        try:
            async for piece in stream:
                await self._connection.write(piece)
        except CloudException as exc:
            # The head is out already: only a cut connection can still say that it went wrong.
            _log.error("a download was cut: %s", exc.parameter)
            self._connection.close()


def check_wire(text: str | None) -> None:
    """Return if the client's wire version is one that we speak; none given means a person with curl.

    Raises:
        Incompatible: it is too old or too new; the message says which side to upgrade.
    """
    if text is None or text == str(WIRE_VERSION):
        return
    if not text.isdecimal() or len(text) > 6:
        raise InvalidRequest(f"{WIRE_HEADER} must be a whole number, got {text[:20]!r}")
    if int(text) < OLDEST_WIRE_VERSION:
        raise Incompatible(
            f"this client speaks wire version {text}, and the service needs {OLDEST_WIRE_VERSION} or later",
            hint="Upgrade picloud-jupyter where the client runs.",
        )
    if int(text) > WIRE_VERSION:
        raise Incompatible(
            f"this client speaks wire version {text}, newer than the service's {WIRE_VERSION}",
            hint="Run `picloud up --replace`: the service is started anew and running jobs go on.",
        )


def as_cloud_exception(error: Exception) -> CloudException:
    """Return ``error`` as one of ours; what nobody expected is logged and named so."""
    if isinstance(error, CloudException):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            "the disk that holds the service's state is full",
            hint="Free some space and try again.",
        )
    _log.error("a request failed", exc_info=error)
    return InternalError(
        f"the service met something it did not expect ({type(error).__name__})",
        hint="service.log in its home folder has the traceback.",
    )


def error_reply(error: CloudException) -> Reply:
    """Return the answer that carries ``error``."""
    wire: dict[str, Any] = error_to_wire(error)
    return json_reply(wire, status=error.status if 400 <= error.status < 600 else 500)


def _too_large(size_bytes: int, limit_bytes: int) -> CloudException:
    return PayloadTooLarge(
        f"the body has {size_bytes} bytes or more, and this request takes at most {limit_bytes}"
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
