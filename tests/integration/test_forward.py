"""A container's socket, a real listener behind it, bytes through both."""

import asyncio
import json
import os
import socket
from typing import Any

import pytest

from picloud_services.agent.forward import Forwarder
from picloud_services.agent.splice import Side, join


class Upstream:
    """What stands for the control plane: keeps each connection's reader and writer."""

    def __init__(self, path):
        self.path = path
        self.connections: asyncio.Queue[Any] = asyncio.Queue()
        self.server: Any = None

    async def start(self):
        async def accept(reader, writer):
            await self.connections.put((reader, writer))

        self.server = await asyncio.start_unix_server(accept, str(self.path))

    async def stop(self):
        self.server.close()
        while not self.connections.empty():
            self.connections.get_nowait()[1].close()


@pytest.fixture
async def upstream(tmp_path):
    upstream = Upstream(tmp_path / "jobs.sock")
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def make_forwarder(tmp_path):
    made = []

    async def make(**options):
        forwarder = Forwarder(tmp_path / "api.sock", tmp_path / "jobs.sock", **options)
        await forwarder.start()
        made.append(forwarder)
        return forwarder

    yield make
    for forwarder in made:
        await forwarder.close()


async def connect(tmp_path):
    return await asyncio.open_unix_connection(str(tmp_path / "api.sock"))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_connect_when_bytes_are_sent_at_once_then_none_is_lost(
    tmp_path, upstream, make_forwarder
):
    await make_forwarder()
    reader, writer = await connect(tmp_path)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    server_reader, server_writer = await upstream.connections.get()
    assert await server_reader.readuntil(b"\r\n\r\n") == b"GET / HTTP/1.1\r\n\r\n"
    server_writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 204 No Content\r\n\r\n"
    writer.close()
    server_writer.close()


async def test_join_when_a_side_had_spoken_and_ended_before_then_all_is_passed_on():
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(2)]
    sides = []
    for mine, _ in pairs:
        _, side = await loop.connect_accepted_socket(Side, mine)
        sides.append(side)
    outside = [await asyncio.open_connection(sock=theirs) for _, theirs in pairs]
    for end, (_, writer) in enumerate(outside):
        writer.write(b"spoke first, %d" % end)
        writer.write_eof()
    await asyncio.sleep(0.05)  # the loop has had every chance to read too early
    join(*sides)
    async with asyncio.timeout(5):
        assert await outside[1][0].read() == b"spoke first, 0"
        assert await outside[0][0].read() == b"spoke first, 1"
    await until(lambda: all(side.transport is None for side in sides))
    for _, writer in outside:
        writer.close()


async def test_half_close_when_client_has_sent_all_then_it_still_receives(
    tmp_path, upstream, make_forwarder
):
    forwarder = await make_forwarder()
    reader, writer = await connect(tmp_path)
    body = os.urandom(3_000_000)
    writer.write(body)
    writer.write_eof()
    server_reader, server_writer = await upstream.connections.get()
    assert await server_reader.read(-1) == body
    server_writer.write(body)
    server_writer.close()
    assert await reader.read(-1) == body
    writer.close()
    await until(lambda: forwarder.connections == 0)


async def test_slow_reader_when_much_is_sent_then_the_buffers_stay_small(
    tmp_path, upstream, make_forwarder
):
    await make_forwarder()
    _, writer = await connect(tmp_path)
    server_reader, server_writer = await upstream.connections.get()
    server_reader._transport.pause_reading()
    sent = 0

    async def send_much() -> None:
        nonlocal sent
        while sent < 50_000_000:
            writer.write(bytes(100_000))
            sent += 100_000
            await writer.drain()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send_much(), 1)
    assert 0 < sent < 5_000_000
    writer.transport.abort()
    server_writer.transport.abort()


async def test_connections_when_without_end_then_most_are_closed_at_once(
    tmp_path, upstream, make_forwarder
):
    forwarder = await make_forwarder(max_connections=3)
    opened = [await connect(tmp_path) for _ in range(30)]
    reader, _ = opened[-1]
    assert await asyncio.wait_for(reader.read(-1), 0.5) == b""
    assert forwarder.connections <= 6
    for _, writer in opened:
        writer.close()


async def test_control_plane_when_away_then_clients_read_a_503_to_retry(
    tmp_path, make_forwarder
):
    forwarder = await make_forwarder()
    reader, writer = await connect(tmp_path)
    writer.write(
        b"POST /v1/calls HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000)
    )
    head, _, body = (await asyncio.wait_for(reader.read(-1), 5)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Content-Length: %d" % len(body) in head
    error = json.loads(body)["error"]
    assert error["code"] == "unavailable"
    assert error["retry"] is True
    writer.close()
    await until(lambda: forwarder.connections == 0)


async def test_control_plane_when_back_then_the_next_connection_works(
    tmp_path, upstream, make_forwarder
):
    await make_forwarder()
    await upstream.stop()
    (tmp_path / "jobs.sock").unlink(missing_ok=True)
    reader, writer = await connect(tmp_path)
    assert b"503" in await reader.readline()
    writer.close()
    await upstream.start()
    reader, writer = await connect(tmp_path)
    writer.write(b"x")
    server_reader, server_writer = await asyncio.wait_for(upstream.connections.get(), 5)
    assert await server_reader.readexactly(1) == b"x"
    writer.close()
    server_writer.close()


async def test_control_plane_when_it_dies_then_the_client_sees_the_end(
    tmp_path, upstream, make_forwarder
):
    forwarder = await make_forwarder()
    reader, writer = await connect(tmp_path)
    _, server_writer = await upstream.connections.get()
    server_writer.transport.abort()
    assert await asyncio.wait_for(reader.read(-1), 5) == b""
    writer.close()
    await until(lambda: forwarder.connections == 0)


async def test_connections_when_over_the_cap_then_the_next_is_refused_and_others_go_on(
    tmp_path, upstream, make_forwarder
):
    forwarder = await make_forwarder(max_connections=2)
    first = await connect(tmp_path)
    second = await connect(tmp_path)
    await until(lambda: forwarder.connections == 2)
    reader, writer = await connect(tmp_path)
    assert b"503" in await asyncio.wait_for(reader.readline(), 5)
    assert b"2 connections" in await asyncio.wait_for(reader.read(-1), 5)
    writer.close()
    first[1].write(b"x")
    server_reader, server_writer = await upstream.connections.get()
    assert await server_reader.readexactly(1) == b"x"
    _, other_writer = await upstream.connections.get()
    for each in (first[1], second[1], server_writer, other_writer):
        each.close()
    await until(lambda: forwarder.connections == 0)


async def test_connection_when_silent_for_long_then_is_closed(
    tmp_path, upstream, make_forwarder
):
    await make_forwarder(idle_seconds=0.1)
    reader, writer = await connect(tmp_path)
    assert await asyncio.wait_for(reader.read(-1), 5) == b""
    writer.close()


async def test_start_when_an_old_socket_is_left_then_it_is_replaced(
    tmp_path, upstream, make_forwarder
):
    (tmp_path / "api.sock").write_bytes(b"")
    await make_forwarder()
    assert (tmp_path / "api.sock").stat().st_mode & 0o777 == 0o666
    _, writer = await connect(tmp_path)
    writer.close()
