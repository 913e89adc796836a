"""Passes requests of code inside a container on to the control plane, byte by byte.

Each container has a socket of its own in a folder that only it sees. Who asks is decided by the
job key in each request, not here. While the control plane is away the answer is an HTTP 503 in the
product's own words, so that clients try again.
"""

import asyncio
import logging
import os
from pathlib import Path

from picloud_jupyter.protocol.errors import Unavailable, error_to_wire
from picloud_jupyter.protocol.frames import encode_json
from picloud_services.agent.splice import Side, join

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
IDLE_SECONDS = 300.0  # well above the longest answer the control plane holds back
LINGER_SECONDS = 1.0  # for a refused client to read why; as many as may be served can do that


class Forwarder:
    """Serves one container's ``api.sock`` and joins each connection to the control plane's.

    ``path`` is replaced if it exists; ``target`` is RUN/jobs.sock. Connections over
    ``max_connections`` are answered 503, those over twice as many closed without a word; silent
    ones are closed after ``idle_seconds``.
    """

    def __init__(
        self,
        path: Path,
        target: Path,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._path = path
        self._target = target
        self._max_connections = max_connections
        self._idle_seconds = idle_seconds
        self._server: asyncio.AbstractServer | None = None
        self._clients: dict[Side, asyncio.Task[None] | None] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Listen; every user of this machine may connect who can see the folder.

        Raises:
            OSError: the path is too long or its folder is missing.
        """
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self), str(self._path))
        os.chmod(self._path, 0o666)  # noqa: S103  # the job's uid differs; the folder is private
        self._sweep()

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)
        tasks = [task for task in self._clients.values() if task is not None]
        for client in list(self._clients):
            client.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._clients)

    def accept(self, client: Side) -> None:
        """Join ``client``, which has just connected, to the control plane."""
        if len(self._clients) >= 2 * self._max_connections:
            client.close()
            return
        if len(self._clients) >= self._max_connections:
            self._clients[client] = None
            _refuse(
                client,
                f"this container has {self._max_connections} connections open already; "
                "close some, or reuse one",
            )
            return
        task = asyncio.get_running_loop().create_task(self._join(client))
        self._clients[client] = task

    def forget(self, client: Side) -> None:
        """Drop ``client``, which is closed."""
        task = self._clients.pop(client, None)
        if task is not None:
            task.cancel()

    async def _join(self, client: Side) -> None:
        loop = asyncio.get_running_loop()
        upstream = Side()
        try:
            await loop.create_unix_connection(lambda: upstream, str(self._target))
        except OSError as error:
            logger.info("control plane not reached at %s: %s", self._target, error)
            _refuse(client, "the control plane is away just now; it is being started again")
            return
        finally:
            if client in self._clients:
                self._clients[client] = None
        join(client, upstream)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._idle_seconds
        for client in [c for c in self._clients if c.active_at < oldest]:
            client.close()
        self._sweeper = loop.call_later(self._idle_seconds / 4, self._sweep)


class _Client(Side):
    """A connection from inside the container."""

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__(forwarder.forget)
        self._forwarder = forwarder

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._forwarder.accept(self)


def _refuse(client: Side, message: str) -> None:
    transport = client.transport
    if transport is None:
        return
    body = encode_json(error_to_wire(Unavailable(message, hint="try again in a second")))
    transport.write(
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        b"Retry-After: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    transport.write_eof()
    # A close with unread bytes would reset the connection and lose the answer: read them away.
    client.read_away()
    asyncio.get_running_loop().call_later(LINGER_SECONDS, client.close)
