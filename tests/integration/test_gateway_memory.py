"""What the gateway holds for clients that ask for much and read little."""

import asyncio
import os
from contextlib import AsyncExitStack

from picloud_services.blobs.store import PIECE_BYTES
from picloud_services.gateway import held_memory
from tests.tools.gateway_harness import connected


async def test_log_when_long_then_read_in_pieces_and_answered_whole(gateway, peer, monkeypatch):
    gateway.output.text = os.urandom(1_000_000)
    limits = []
    read = gateway.output.read_output

    async def noted(*place):
        limits.append(place[-1])
        return await read(*place)

    monkeypatch.setattr(gateway.output, "read_output", noted)
    answer = await peer.ask("GET", "/v1/jobs/1/logs/stdout?offset=5&limit=900000")
    assert answer.body == gateway.output.text[5:900_005]
    assert answer.headers["x-picloud-next"] == "900005"
    assert answer.headers["x-picloud-total"] == "1000000"
    rest = await peer.ask("GET", "/v1/jobs/1/logs/stdout?offset=900005")
    assert rest.body == gateway.output.text[900_005:]
    tail = await peer.ask("GET", "/v1/jobs/1/logs/stdout?tail_bytes=500000")
    assert tail.body == gateway.output.text[500_000:]
    assert max(limits) <= PIECE_BYTES


async def test_log_when_it_goes_away_while_it_is_read_then_the_connection_is_cut(
    gateway, monkeypatch
):
    gateway.output.text = b"x" * 1_000_000
    read = gateway.output.read_output

    async def removed(*place):
        found = await read(*place)
        gateway.output.text = gateway.output.text[:PIECE_BYTES]
        return found

    monkeypatch.setattr(gateway.output, "read_output", removed)
    async with connected(gateway.api) as peer:
        peer.send("GET", "/v1/jobs/1/logs/stdout")
        async with asyncio.timeout(20):
            assert len(await peer.reader.read()) < 300_000


async def test_memory_when_held_on_one_socket_then_it_counts_on_the_other(gateway, monkeypatch):
    monkeypatch.setattr(held_memory, "MAX_BYTES", 3 * PIECE_BYTES)
    gateway.output.text = b"x" * 4_000_000
    inside = {"Authorization": "Bearer " + gateway.job_key()}
    async with AsyncExitStack() as stack:
        lazy = await stack.enter_async_context(connected(gateway.api))
        lazy.send("GET", "/v1/jobs/1/logs/stdout")
        assert await lazy.reader.readexactly(12) == b"HTTP/1.1 200"
        peer = await stack.enter_async_context(connected(gateway.inside))
        assert (await peer.ask("GET", "/v1/jobs/1/logs/stdout", **inside)).status == 503
        lazy.writer.transport.abort()
