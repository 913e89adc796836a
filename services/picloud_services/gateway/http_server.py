"""HTTP/1.1 over unix sockets: for each connection one task that takes request after request."""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from picloud_jupyter.protocol.errors import CloudException, PayloadTooLarge
from picloud_jupyter.protocol.frames import Buffer
from picloud_services.gateway.http_parser import (
    END_OF_HEAD,
    MAX_HEAD_BYTES,
    Body,
    ChunkedBody,
    Head,
    LengthBody,
    parse_head,
)
from picloud_services.gateway.words import Reply, Sink, error_reply

PIECE_BYTES = 256 * 1024
BUFFER_BYTES = 1024 * 1024  # what a connection may hold beside one small body
DISCARD_BYTES = 64 * 1024 * 1024  # what a refused body may still send before we hang up
IDLE_SECONDS = 3600.0
SWEEP_SECONDS = 60.0
_log = logging.getLogger(__name__)
_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}


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


def peer_uid(connection: socket.socket) -> int:
    """Return the uid of the process at the other end of a unix socket. Source: unix(7), SO_PEERCRED."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


class _HungUp(Exception):  # noqa: N818  # not an error: clients do that
    """The client went away, or what it sends cannot be followed any further."""


class Connection(asyncio.Protocol):
    """One client. Its requests are served one after another, in the order in which they came."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._paused = False
        self._arrival: asyncio.Future[None] | None = None  # we wait for bytes
        self._relief: asyncio.Future[None] | None = None  # the client is slow to read
        self.idle_since: float | None = self._loop.time()

    # --------------------------------------------------------------------- called by asyncio
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._uid = peer_uid(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self._server.connections.add(self)
        self.task = self._loop.create_task(self._run())

    def connection_lost(self, exc: Exception | None) -> None:  # asyncio's signature
        """Nobody wants the answer any more."""
        self._server.connections.discard(self)
        self.task.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes; hold the client back when nobody asks for more."""
        self._buffer += data
        if self._arrival is not None:
            if not self._arrival.done():
                self._arrival.set_result(None)
        elif len(self._buffer) > BUFFER_BYTES:
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The client is slow to read."""
        self._relief = self._loop.create_future()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._relief is not None and not self._relief.done():
            self._relief.set_result(None)
        self._relief = None

    # ------------------------------------------------------------------- one request at a time
    async def _run(self) -> None:
        try:
            while await self._serve_one():
                pass
        except _HungUp:
            pass
        except Exception:  # noqa: BLE001  # the top of this connection's loop
            _log.exception("a connection failed")
        finally:
            self._transport.close()

    async def _serve_one(self) -> bool:
        """Serve one request; return whether another may follow."""
        try:
            head = await self._read_head()
        except CloudException as exc:
            await self._send(error_reply(exc), keep_alive=False, with_body=True)
            return False
        exchange = self._server.open_exchange(head, self._uid)
        body: Body
        body = ChunkedBody() if head.length_bytes is None else LengthBody(head.length_bytes)
        if (
            head.headers.get("expect", "").lower() == "100-continue"
            and exchange.refusal is None
        ):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            reply = await self._reply(exchange, body)
            keep_alive = body.done and head.keep_alive
            await self._send(reply, keep_alive=keep_alive, with_body=head.method != "HEAD")
        finally:
            if exchange.sink is not None:
                exchange.sink.abort()
        return keep_alive

    async def _reply(self, exchange: Exchange, body: Body) -> Reply:
        if exchange.refusal is not None:
            await self._discard(body)
            return exchange.fail(exchange.refusal)
        kept = b""
        try:
            if exchange.sink is not None:
                while piece := await self._take(body):
                    await exchange.sink.write(piece)
            elif not body.done:
                kept = await self._collect(body, exchange.body_bytes)
        except _HungUp:
            raise
        except Exception as exc:  # noqa: BLE001  # the door: all becomes an answer
            await self._discard(body)
            return exchange.fail(exc)
        return await exchange.serve(kept)

    async def _read_head(self) -> Head:
        buffer = self._buffer
        self.idle_since = self._loop.time()
        while (end := buffer.find(END_OF_HEAD)) < 0:
            if len(buffer) > MAX_HEAD_BYTES:
                raise CloudException("the head of the request is too long", status=431)
            await self._arrive()
        self.idle_since = None
        data = bytes(buffer[:end])
        del buffer[: end + len(END_OF_HEAD)]
        return parse_head(data)

    async def _collect(self, body: Body, limit_bytes: int) -> bytes:
        """Return the whole body.

        Raises:
            PayloadTooLarge: it is larger than ``limit_bytes``.
        """
        pieces = []
        size_bytes = 0
        while piece := await self._take(body):
            size_bytes += len(piece)
            if size_bytes > limit_bytes:
                raise PayloadTooLarge(
                    f"this request takes a body of at most {limit_bytes} bytes"
                )
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _take(self, body: Body) -> bytes:
        """Return the next piece of the body; empty at its end."""
        while not body.done:
            piece = body.take(self._buffer, PIECE_BYTES)
            if piece:
                return piece
            if not body.done:
                await self._arrive()
        return b""

    async def _discard(self, body: Body) -> None:
        """Drop the rest of a refused body, so that the client gets to reading why."""
        dropped_bytes = 0
        try:
            while dropped_bytes < DISCARD_BYTES and (piece := await self._take(body)):
                dropped_bytes += len(piece)
        except CloudException:
            return  # not even a body: the answer goes out and the connection ends

    async def _arrive(self) -> None:
        """Wait for bytes."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._arrival = self._loop.create_future()
        try:
            await self._arrival
        finally:
            self._arrival = None

    # ------------------------------------------------------------------------------ answering
    async def _send(self, reply: Reply, *, keep_alive: bool, with_body: bool) -> None:
        size_bytes = sum(map(len, reply.parts)) + reply.stream_bytes
        lines = [_LINES.get(reply.status) or f"HTTP/1.1 {reply.status} Unknown\r\n"]
        lines.append(f"Content-Type: {reply.content_type}\r\nContent-Length: {size_bytes}\r\n")
        lines.extend(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        lines.append("\r\n" if keep_alive else "Connection: close\r\n\r\n")
        head = "".join(lines).encode("latin-1")
        if not with_body:
            self._transport.write(head)
        elif size_bytes <= PIECE_BYTES and reply.stream is None:
            self._transport.write(b"".join((head, *reply.parts)))
        else:
            await self._send_pieces(head, reply)

    async def _send_pieces(self, head: bytes, reply: Reply) -> None:
        gathered: list[Buffer] = [head]
        gathered_bytes = 0
        for part in reply.parts:
            gathered.append(part)
            gathered_bytes += len(part)
            if gathered_bytes >= PIECE_BYTES:
                await self._write(b"".join(gathered))
                gathered.clear()
                gathered_bytes = 0
        await self._write(b"".join(gathered))
        if reply.stream is None:
            return
        try:
            async for piece in reply.stream:
                await self._write(piece)
        except CloudException as exc:
            # The head is out already: only a cut connection can still say that it went wrong.
            _log.error("a download was cut: %s", exc.parameter)  # known
            self._transport.abort()
            raise _HungUp from exc

    async def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise _HungUp
        self._transport.write(data)
        if self._relief is not None:
            await self._relief


class HttpServer:
    """Listens on one unix socket."""

    def __init__(self, open_exchange: OpenExchange) -> None:
        self.open_exchange = open_exchange
        self.connections: set[Connection] = set()
        self._server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._path: Path | None = None

    async def listen(self, path: Path) -> None:
        """Serve ``path`` from now on; what an earlier process left there is replaced.

        Raises:
            OSError: a socket cannot be made there.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: Connection(self), str(path), backlog=1024
        )
        os.chmod(path, 0o600)
        self._path = path
        self._sweep()

    def _sweep(self) -> None:
        """Hang up on those who asked nothing for an hour."""
        loop = asyncio.get_running_loop()
        limit = loop.time() - IDLE_SECONDS
        for connection in tuple(self.connections):
            if connection.idle_since is not None and connection.idle_since < limit:
                connection.task.cancel()
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)

    async def close(self) -> None:
        """Stop listening, remove the socket, end what is being answered."""
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        tasks = [connection.task for connection in self.connections]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
