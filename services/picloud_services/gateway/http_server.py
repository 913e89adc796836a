"""HTTP/1.1 over unix sockets, by tornado's server: a request becomes an `Exchange`, its `Reply` bytes."""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_unix_socket

from picloud_jupyter.protocol.errors import CloudException, InvalidRequest, PayloadTooLarge
from picloud_services.gateway.words import Head, Reply, Sink

PIECE_BYTES = 256 * 1024
READ_BYTES = 64 * 1024  # tornado clears a buffer of this size for each read
MAX_HEAD_BYTES = 64 * 1024
MAX_STREAM_BYTES = (
    1 << 40
)  # what an upload may have; every other body has a limit of its route's
NOBODY = 2**32 - 1  # no process has it
ONCE = frozenset(
    ("Host", "Content-Length", "Content-Type", "Authorization", "Range", "X-Picloud-Wire")
)
_log = logging.getLogger(__name__)
_REASONS = {s.value: s.phrase for s in HTTPStatus}


class Exchange(Protocol):
    """What is to be done with one request, decided from its head."""

    body_bytes: int  # the largest body that is kept in memory for `serve`
    sink: Sink | None  # takes the body piece by piece instead
    refusal: CloudException | None  # the body is dropped and this answered

    async def serve(self, body: bytes) -> Reply:
        """Return the answer. Raises nothing but what cancels it."""

    def fail(self, error: Exception) -> Reply:
        """Return the answer for what went wrong while the body came in."""


OpenExchange = Callable[[Head, int], Exchange]  # head, uid of the peer; raises nothing


def peer_uid(connection: socket.socket | None) -> int:
    """Return the uid of the process at the other end; NOBODY if it has gone. Source: unix(7), SO_PEERCRED."""
    if connection is None:
        return NOBODY
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


class _Message(httputil.HTTPMessageDelegate):
    """One request on its way in, and the task that answers it."""

    def __init__(self, server: "HttpServer", connection: HTTP1Connection) -> None:
        self._server = server
        self._connection = connection
        self._uid = peer_uid(connection.stream.socket)
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self._error: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    # --------------------------------------------------------------------- called by tornado
    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Decide what to do with the body."""
        assert isinstance(start_line, httputil.RequestStartLine)
        path, _, query = start_line.path.partition("?")
        length = headers.get("Content-Length")
        chunked = "Transfer-Encoding" in headers
        self._head_only = start_line.method == "HEAD"
        self._exchange = self._server.open_exchange(
            Head(
                start_line.method,
                path,
                query,
                {name.lower(): value for name, value in headers.get_all()},
                None if chunked else int(length or 0),
            ),
            self._uid,
        )
        self._error = self._exchange.refusal or _said_twice(headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep or pass on a piece of the body; after an error the rest is dropped."""
        if self._error is not None:
            return None
        if self._exchange.sink is not None:
            return self._sink(self._exchange.sink, chunk)
        self._size_bytes += len(chunk)
        if self._size_bytes > self._exchange.body_bytes:
            self._pieces.clear()
            self._error = PayloadTooLarge(
                f"this request takes a body of at most {self._exchange.body_bytes} bytes"
            )
        else:
            self._pieces.append(chunk)
        return None

    async def _sink(self, sink: Sink, chunk: bytes) -> None:
        try:
            await sink.write(chunk)
        except Exception as exc:  # noqa: BLE001  # the door: all becomes an answer
            self._error = exc

    def finish(self) -> None:
        """The request is whole: answer it in a task of its own."""
        self._connection.set_close_callback(self.on_connection_close)
        self._task = asyncio.get_running_loop().create_task(self._answer())
        self._server.tasks.add(self._task)
        self._task.add_done_callback(self._server.tasks.discard)

    def on_connection_close(self) -> None:
        """Nobody wants the answer any more."""
        if self._task is not None:
            self._task.cancel()
        elif self._exchange.sink is not None:
            self._exchange.sink.abort()

    # ------------------------------------------------------------------------------ answering
    async def _answer(self) -> None:
        exchange = self._exchange
        try:
            if self._error is not None:
                reply = exchange.fail(self._error)
            else:
                pieces = self._pieces
                reply = await exchange.serve(
                    pieces[0] if len(pieces) == 1 else b"".join(pieces)
                )
            await self._send(reply)
        except StreamClosedError:
            pass  # the client went away while it was being answered
        except Exception:  # noqa: BLE001  # the top of this request
            _log.exception("an answer could not be sent")
            self._connection.close()
        finally:
            if exchange.sink is not None:
                exchange.sink.abort()

    async def _send(self, reply: Reply) -> None:
        connection = self._connection
        size_bytes = sum(map(len, reply.parts)) + reply.stream_bytes
        headers = httputil.HTTPHeaders()
        headers["Content-Type"] = reply.content_type
        headers["Content-Length"] = str(size_bytes)
        for name, value in reply.headers.items():
            headers[name] = value
        start = httputil.ResponseStartLine(
            "HTTP/1.1", reply.status, _REASONS.get(reply.status, "Unknown")
        )
        small = reply.stream is None and size_bytes <= PIECE_BYTES
        if self._head_only:
            connection.write_headers(start, headers)
        elif small:
            connection.write_headers(start, headers, b"".join(reply.parts))
        else:
            await connection.write_headers(start, headers)
            await self._send_pieces(reply)
        connection.finish()

    async def _send_pieces(self, reply: Reply) -> None:
        for part in reply.parts:
            view = memoryview(part)
            for position in range(0, len(view), PIECE_BYTES):
                await self._connection.write(bytes(view[position : position + PIECE_BYTES]))
        if reply.stream is None:
            return
        try:
            async for piece in reply.stream:
                await self._connection.write(piece)
        except CloudException as exc:
            # The head is out already: only a cut connection can still say that it went wrong.
            _log.error("a download was cut: %s", exc.parameter)
            self._connection.stream.close()
            raise StreamClosedError from exc


def _said_twice(headers: httputil.HTTPHeaders) -> InvalidRequest | None:
    for name in ONCE:
        if name in headers and len(headers.get_list(name)) > 1:
            return InvalidRequest(f"the header {name!r} stands twice")
    return None


class HttpServer(httputil.HTTPServerConnectionDelegate):
    """Listens on one unix socket."""

    def __init__(self, open_exchange: OpenExchange) -> None:
        self.open_exchange = open_exchange
        self.tasks: set[asyncio.Task[None]] = set()
        self._path: Path | None = None
        self._server = HTTPServer(
            self,
            max_header_size=MAX_HEAD_BYTES,
            max_body_size=MAX_STREAM_BYTES,
            chunk_size=READ_BYTES,
        )
        # A timer per request costs more than a connection that idles: all are local.
        self._server.conn_params.header_timeout = None

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Return what takes the next request of a connection. Called by tornado."""
        assert isinstance(request_conn, HTTP1Connection)
        return _Message(self, request_conn)

    async def listen(self, path: Path) -> None:
        """Serve ``path`` from now on; what an earlier process left there is replaced.

        Raises:
            OSError: a socket cannot be made there.
        """
        self._server.add_socket(bind_unix_socket(str(path), mode=0o600, backlog=1024))
        self._path = path

    async def close(self) -> None:
        """Stop listening, remove the socket, end what is being answered."""
        self._server.stop()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        for task in tuple(self.tasks):
            task.cancel()
        await self._server.close_all_connections()
