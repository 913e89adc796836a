"""HTTP/1.1 over unix sockets: a request becomes an `Exchange`, its `Reply` bytes."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from picloud_jupyter.protocol.errors import (
    CloudException,
    InvalidRequest,
    PayloadTooLarge,
    Unavailable,
)
from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.transport.peers import peer_uid
from picloud_services.gateway.held_memory import HeldMemory
from picloud_services.gateway.http_answers import CONTINUE, cut_or_join, head_of, held_bytes
from picloud_services.gateway.http_parser import IncomingRequest, RequestParser
from picloud_services.gateway.words import Exchange, Head, Reply, error_reply

READ_BYTES = 256 * 1024
DISCARD_BYTES = 64 * 1024 * 1024  # what a refused body may still send before we hang up
HEAD_SECONDS = 30.0  # from the first byte of a head to its last
BODY_SECONDS = 60.0  # for the next byte of a body
IDLE_SECONDS = 3600.0
SWEEP_SECONDS = 15.0
END_SECONDS = 2.0  # what a client has at the end to take the answer that is on its way
_log = logging.getLogger(__name__)


OpenExchange = Callable[[Head, int], Exchange]  # head, uid of the peer; raises nothing


class _HungUp(Exception):
    """The client went away, or its answer cannot be ended."""


class Connection(asyncio.BufferedProtocol):
    """One client. Its requests are served one after another, in the order in which they came."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser()
        self._arrival: asyncio.Future[None] | None = None  # we wait for bytes
        self._relief: asyncio.Future[None] | None = None  # the client is slow to read
        self._waiting = False  # for a request, or within a body, since:
        self._within_body = False
        self._since = 0.0
        self._sending = False
        self._ending = False
        self._held_bytes = 0  # of the request that is served
        self.lost: asyncio.Future[None] = self._loop.create_future()

    # --------------------------------------------------------------------- called by asyncio
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=0)  # it has one piece at most: `held_bytes`
        self.uid = peer_uid(transport.get_extra_info("socket"))
        self._task = self._loop.create_task(self._run())
        self._server.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # asyncio's signature
        """Nobody wants the answer any more."""
        self._server.connections.discard(self)
        self._task.cancel()
        self.lost.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:  # asyncio's signature
        """Return where to read to: one place for all, since what it holds is parsed at once."""
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes; hold the client back while nobody asks for more."""
        parser = self._parser
        began_before = parser.head_open
        parser.feed(self._server.buffer[:nbytes])
        if parser.head_open and not began_before:
            self._since = self._loop.time()
        if self._arrival is None:
            self.transport.pause_reading()
        else:
            self._wake()

    def pause_writing(self) -> None:
        """The client is slow to read."""
        self._relief = self._loop.create_future()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._relief is not None and not self._relief.done():
            self._relief.set_result(None)
        self._relief = None

    # ------------------------------------------------------------------- called by the server
    def check_limits(self, now: float) -> None:
        """Hang up on a client that asked nothing for an hour, or does not end its head or body."""
        if not self._waiting:
            return
        waited_seconds = now - self._since
        if self._within_body:
            if waited_seconds > BODY_SECONDS:
                words = f"nothing came of the request's body for {BODY_SECONDS:g} s"
                self._parser.refuse(Unavailable(words, hint="send the request again"))
                self._wake()
        elif self._parser.head_open:
            if waited_seconds > HEAD_SECONDS:
                self._parser.refuse(
                    InvalidRequest(
                        f"the head of the request did not end within {HEAD_SECONDS:g} s",
                        status=408,
                    )
                )
                self._wake()
        elif waited_seconds > IDLE_SECONDS:
            self.transport.abort()

    def end(self) -> None:
        """Hang up; an answer that is on its way goes out before."""
        self._ending = True
        if not self._sending:
            self._task.cancel()
            self.transport.close()  # a task that never began closes nothing

    # ------------------------------------------------------------------- one request at a time
    async def _run(self) -> None:
        try:
            while await self._serve_one():
                pass
        except (_HungUp, asyncio.CancelledError):
            pass  # the task would keep what cancelled it, and with that, in a cycle, the answer
        except Exception:  # noqa: BLE001  # the top of this connection's loop
            _log.exception("a connection failed")
        finally:
            self.transport.close()

    async def _serve_one(self) -> bool:
        """Serve one request; return whether another may follow."""
        try:
            request = await self._next_request()
        except CloudException as exc:
            await self._send(error_reply(exc), "1.1", keep_alive=False)
            return False
        exchange = self._server.open_exchange(request.head, self.uid)
        try:
            reply = await self._reply(exchange, request)
            try:
                self._hold(exchange, held_bytes(reply))
            except CloudException as exc:
                reply = exchange.fail(exc)
            self._server.on_answer(exchange, reply.status)
            keep_alive = request.whole and request.keep_alive
            await self._send(
                reply,
                request.version,
                keep_alive=keep_alive,
                with_body=request.head.method != "HEAD",
            )
        finally:
            self._server.held.give_back(exchange.user_id, self._held_bytes)
            self._held_bytes = 0
            if exchange.sink is not None:
                exchange.sink.abort()
        return keep_alive and not self._ending

    async def _reply(self, exchange: Exchange, request: IncomingRequest) -> Reply:
        if exchange.refusal is not None:
            if not request.awaits_continue:
                await self._discard(request)
            return exchange.fail(exchange.refusal)
        if request.awaits_continue:
            self.transport.write(CONTINUE)
        body = b""
        try:
            if exchange.sink is None:
                body = await self._collect(request, exchange)
            else:
                while piece := await self._take(request):
                    await exchange.sink.write(piece)
        except Exception as exc:  # noqa: BLE001  # the door: all becomes an answer
            await self._discard(request)
            return exchange.fail(exc)
        return await exchange.serve(body)

    async def _next_request(self) -> IncomingRequest:
        """Return the next request as soon as its head is there.

        Raises:
            CloudException: what comes is none.
        """
        parser = self._parser
        self._since = self._loop.time()
        self._waiting = True
        while not parser.requests:
            if parser.error is not None:
                raise parser.error
            await self._arrive()
        self._waiting = False
        return parser.requests.popleft()

    async def _collect(self, request: IncomingRequest, exchange: Exchange) -> bytes:
        """Return the whole body.

        Raises:
            PayloadTooLarge: it is larger than the exchange takes.
            InvalidRequest: its chunks are broken.
            Unavailable: its user has too much in memory already.
        """
        limit_bytes = exchange.body_bytes
        body: bytes | bytearray = await self._take(request)
        self._hold(exchange, len(body))
        if not request.whole:
            body = bytearray(body)
            while len(body) <= limit_bytes and (piece := await self._take(request)):
                self._hold(exchange, len(piece))
                body += piece
        if len(body) > limit_bytes:
            raise PayloadTooLarge(f"this request takes a body of at most {limit_bytes} bytes")
        return bytes(body)

    def _hold(self, exchange: Exchange, size_bytes: int) -> None:
        self._server.held.take(exchange.user_id, size_bytes)
        self._held_bytes += size_bytes

    async def _take(self, request: IncomingRequest) -> bytes:
        """Return the next piece of the body; empty at its end."""
        while not request.pieces and not request.whole:
            if self._parser.error is not None:
                raise self._parser.error
            self._since = self._loop.time()
            self._waiting = self._within_body = True
            await self._arrive()
            self._waiting = self._within_body = False
        return request.take()

    async def _discard(self, request: IncomingRequest) -> None:
        """Drop the rest of a refused body, so that the client gets to reading why."""
        dropped_bytes = 0
        try:
            while dropped_bytes < DISCARD_BYTES and (piece := await self._take(request)):
                dropped_bytes += len(piece)
        except CloudException:
            return  # not even a body: the answer goes out and the connection ends

    async def _arrive(self) -> None:
        """Wait for bytes."""
        self._arrival = self._loop.create_future()
        self.transport.resume_reading()
        await self._arrival

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
        self._arrival = None

    # ------------------------------------------------------------------------------ answering
    async def _send(
        self, reply: Reply, version: str, *, keep_alive: bool, with_body: bool = True
    ) -> None:
        self._sending = True
        head = head_of(reply, version, keep_alive=keep_alive)
        for piece in cut_or_join((head, *reply.parts)) if with_body else (head,):
            await self._write(piece)
        if reply.stream is not None and with_body:
            await self._send_stream(reply.stream, reply.stream_bytes)
        await self._drain()
        self._sending = False

    async def _send_stream(self, stream: AsyncIterator[bytes], size_bytes: int) -> None:
        left_bytes = size_bytes
        try:
            async for piece in stream:
                left_bytes -= len(piece)
                await self._write(piece)
        except CloudException as exc:
            why = exc.parameter
        else:
            if not left_bytes:
                return
            why = f"{left_bytes} of its {size_bytes} bytes are missing"
        # The head is out already: only a cut connection can still say that it went wrong.
        _log.error("a download was cut: %s", why)
        self.transport.abort()
        raise _HungUp

    async def _write(self, data: Buffer) -> None:
        await self._drain()  # not after the write: of a stream the next piece is read meanwhile
        if self.transport.is_closing():
            raise _HungUp
        self.transport.write(data)

    async def _drain(self) -> None:
        """Wait until the client has taken what was written."""
        if self._relief is not None:
            await self._relief


class HttpServer:
    """Listens on one unix socket. ``most_of_a_user``: connections of one uid, root's not counted."""

    def __init__(
        self,
        open_exchange: OpenExchange,
        most_of_a_user: int | None = None,
        on_answer: Callable[[Exchange, int], None] = lambda _exchange, _status: None,
        held: HeldMemory | None = None,
    ) -> None:
        self.open_exchange = open_exchange
        self.on_answer = on_answer  # told each answer's status
        self._most_of_a_user = most_of_a_user
        self.connections: set[Connection] = set()
        self.held = held or HeldMemory()  # of a user on all sockets together
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._path: Path | None = None
        self._closed = False

    async def listen(self, path: Path, mode: int = 0o600) -> None:
        """Serve ``path`` from now on; what an earlier process left there is replaced.

        ``mode`` says who may connect.

        Raises:
            OSError: a socket cannot be made there.
        """
        path.unlink(missing_ok=True)  # noqa: ASYNC240  # once, in memory
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
            os.chmod(path, mode)
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: Connection(self), sock=listener, backlog=1024
            )
        except OSError:
            listener.close()
            raise
        self._path = path

    def stop_listening(self) -> None:
        """Take no more connections; those that there are go on."""
        if self._server is not None:
            self._server.close()
        self._server = self._path = None

    def add(self, connection: Connection) -> None:
        """Keep ``connection`` in view until it is lost."""
        self.connections.add(connection)
        if self._closed or self._is_too_many(connection.uid):
            connection.end()
        elif self._sweeper is None:
            self._plan_sweep()

    def _is_too_many(self, uid: int) -> bool:
        if self._most_of_a_user is None or uid == 0:
            return False
        if sum(other.uid == uid for other in self.connections) <= self._most_of_a_user:
            return False
        _log.warning("uid %d has %d connections; more are closed", uid, self._most_of_a_user)
        return True

    def _plan_sweep(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in tuple(self.connections):
            connection.check_limits(now)
        self._sweeper = None
        if self.connections:
            self._plan_sweep()

    async def close(self) -> None:
        """Stop listening, remove the socket, end what is being answered.

        An answer that is on its way goes out, if its client takes it within END_SECONDS.
        """
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        open_ones = tuple(self.connections)
        for connection in open_ones:
            connection.end()
        if open_ones:
            lost = [connection.lost for connection in open_ones]
            await asyncio.wait(lost, timeout=END_SECONDS)
            for connection in tuple(self.connections):
                connection.transport.abort()
            await asyncio.wait(lost)
