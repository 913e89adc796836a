"""The HTTP and HTTPS proxy of containers that have no other way out. asyncio.

It listens on 127.0.0.1 *inside* a container (the namespace helper made the socket there) and
connects from outside, so no process of ours runs inside. It resolves names itself and checks each
address it connects to, so a name that points to loopback does not open it.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from picloud_services.agent.proxy_head import MAX_HEAD_BYTES, HeadError, ProxyHead, read_head
from picloud_services.agent.reachability import refusal
from picloud_services.agent.splice import Side, join

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
HEAD_SECONDS = 30.0
CONNECT_SECONDS = 15.0
IDLE_SECONDS = 3600.0
LOOKUPS = 4  # of names at once: each waits in a thread, for long if a server does not answer

_Address = tuple[socket.AddressFamily, str]


class Proxy:
    """Serves one container's listening socket, which it closes at the end."""

    def __init__(self, listener: socket.socket, *, idle_seconds: float = IDLE_SECONDS) -> None:
        listener.setblocking(False)  # noqa: FBT003  # its only parameter
        self._listener = listener
        self._idle_seconds = idle_seconds
        self._accepting: asyncio.Task[None] | None = None
        self._clients: dict[_Client, asyncio.Task[None] | None] = {}
        # Its own: names that nobody answers for must not hold up other containers, or their results.
        self._lookups = ThreadPoolExecutor(LOOKUPS, "proxy-lookup")
        self._sweeper: asyncio.TimerHandle | None = None
        self._past = (0, 0)  # traffic of connections that are closed

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes (received by, sent by) the container so far."""
        received, sent = self._past
        for client in self._clients:
            received += client.server.received_bytes if client.server is not None else 0
            sent += client.received_bytes
        return received, sent

    def start(self) -> None:
        """Accept connections."""
        self._accepting = asyncio.get_running_loop().create_task(self._accept())
        self._sweep()

    async def close(self) -> None:
        """Stop and end all connections."""
        tasks = [t for t in (self._accepting, *self._clients.values()) if t is not None]
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for client in list(self._clients):
            client.close()
        self._listener.close()
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # Out of descriptors, or a client that left before it was accepted.
                logger.warning("a proxy could not accept: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._clients) >= MAX_CONNECTIONS:
                sock.close()
                continue
            client = _Client(self._forget)
            await loop.connect_accepted_socket(partial(_itself, client), sock)
            self._clients[client] = loop.create_task(self._serve(client))

    async def _serve(self, client: "_Client") -> None:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = read_head(await client.head)
            server = await _connect(head, await self._look_up(head))
        except HeadError as error:
            client.answer("400 Bad Request", str(error))
        except TimeoutError:
            client.answer("504 Gateway Timeout", "the server did not answer in time")
        except _RefusedError as error:
            client.answer("403 Forbidden", str(error))
        except OSError as error:
            client.answer("502 Bad Gateway", f"the server was not reached: {error}")
        else:
            client.begin(server, head)
        finally:
            if client in self._clients:
                self._clients[client] = None

    async def _look_up(self, head: ProxyHead) -> list[_Address]:
        """Return what the host's name stands for.

        Raises:
            HeadError: it is no name.
            OSError: nobody knows it.
        """
        look = partial(socket.getaddrinfo, head.host, head.port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._lookups, look)
        except UnicodeError as error:
            raise HeadError(f"{head.host!r} is not the name of a host") from error
        return [(family, str(address[0])) for family, _, _, _, address in found]

    def _forget(self, client: Side) -> None:
        assert isinstance(client, _Client)
        received, sent = self._past
        received += client.server.received_bytes if client.server is not None else 0
        self._past = (received, sent + client.received_bytes)
        task = self._clients.pop(client, None)
        if task is not None:
            task.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._idle_seconds
        for client in [c for c in self._clients if c.active_at < oldest]:
            client.close()
        self._sweeper = loop.call_later(self._idle_seconds / 4, self._sweep)


def _itself(side: Side) -> Side:
    return side


class _RefusedError(Exception):
    """An address that a job must not reach; the text says why."""


async def _connect(head: ProxyHead, found: list[_Address]) -> Side:
    """Return a connected side to the first address of the host that answers."""
    loop = asyncio.get_running_loop()
    refused = ""
    problem: OSError | None = None
    for family, address in found:
        why = refusal(address.partition("%")[0])
        if why:
            refused = why
            continue
        side = Side()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.create_connection(
                    partial(_itself, side), address, head.port, family=family
                )
        except OSError as error:  # a time-out too
            problem = error
            continue
        return side
    if problem is not None:
        raise problem
    raise _RefusedError(f"{refused}; jobs may not reach it")


class _Client(Side):
    """A connection from inside a container.

    ``head`` resolves to the head of its request; ``server`` is the side it was joined to.
    """

    def __init__(self, on_lost: Callable[[Side], None]) -> None:
        super().__init__(on_lost)
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.server: Side | None = None
        self._early = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            super().data_received(data)
            return
        if self.head.done():  # refused: what still comes is read away
            return
        self._early += data
        end = self._early.find(b"\r\n\r\n")
        if end >= 0:
            self.head.set_result(bytes(self._early[: end + 4]))
            del self._early[: end + 4]
            assert self.transport is not None
            self.transport.pause_reading()
        elif len(self._early) > MAX_HEAD_BYTES:
            error = HeadError(f"the head of a request has at most {MAX_HEAD_BYTES} bytes")
            self.head.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.head.cancel()
        super().connection_lost(exc)

    def begin(self, server: Side, head: ProxyHead) -> None:
        """Join this connection to ``server``."""
        if self.transport is not None and head.tunnel:
            self.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if server.transport is not None:
            first = head.forward + bytes(self._early)
            self.received_bytes += len(first)
            server.transport.write(first)
        self._early.clear()
        self.server = server
        join(self, server)

    def answer(self, status: str, text: str) -> None:
        """Refuse the request in words and close."""
        if self.transport is None:
            return
        body = f"picloud proxy: {text}\n".encode()
        self.transport.write(
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        with suppress(OSError):
            self.transport.write_eof()
        self.transport.resume_reading()
        asyncio.get_running_loop().call_later(1.0, self.close)
