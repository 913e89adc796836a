"""The HTTP server over real sockets: what it refuses in words, its limits, how it ends."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import CloudException, Corrupt, NotFound
from picloud_services.blobs.store import PIECE_BYTES
from picloud_services.gateway import held_memory, http_server
from picloud_services.gateway.http_server import Connection, HttpServer
from picloud_services.gateway.words import Head, Reply, Sink, error_reply
from tests.tools.gateway_harness import Answer, Peer

MIB = 1024**2


class GatedSink:
    """Takes a piece, then nothing until the gate opens."""

    def __init__(self, gate: asyncio.Event) -> None:
        self.gate = gate
        self.size_bytes = 0
        self.aborted = asyncio.Event()

    async def write(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        await self.gate.wait()

    async def finish(self) -> Reply:
        return Reply((b"%d" % self.size_bytes,))

    def abort(self) -> None:
        self.aborted.set()


class Exchange:
    """/echo answers its body, /wait when the gate opens, /sink takes any body, other paths are refused.

    /large is at hand, /endless comes piece by piece.
    """

    def __init__(self, world: "World", head: Head, uid: int) -> None:
        self.world = world
        self.head = head
        self.user_id: int | None = uid
        self.body_bytes = 100_000
        self.sink: Sink | None = None
        self.refusal: CloudException | None = None
        world.uids.append(uid)
        world.heads.append(head)
        if head.path == "/sink":
            world.sink = self.sink = GatedSink(world.gate)
        elif head.path not in ("/echo", "/wait", "/large", "/stream", "/endless"):
            self.refusal = NotFound(f"nothing at {head.path}")

    async def serve(self, body: bytes) -> Reply:
        if self.sink is not None:
            return await self.sink.finish()
        if self.head.path == "/wait":
            try:
                await self.world.gate.wait()
            except asyncio.CancelledError:
                self.world.cancelled.set()
                raise
        if self.head.path == "/large":
            return Reply((b"x" * (4 * MIB),))
        if self.head.path == "/stream":
            return Reply((b"head ",), stream=self.world.stream(), stream_bytes=10)
        if self.head.path == "/endless":
            stream = self.world.pieces()
            self.world.endless.append(weakref.ref(stream))
            return Reply(stream=stream, stream_bytes=10**12)
        return Reply((body,), content_type="text/plain")

    def fail(self, error: Exception) -> Reply:
        assert isinstance(error, CloudException)
        return error_reply(error)


class World:
    """A server and what its exchanges met."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = HttpServer(lambda head, uid: Exchange(self, head, uid))
        self.gate = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.sink: GatedSink | None = None
        self.uids: list[int] = []
        self.heads: list[Head] = []
        self.streamed: list[bytes | Exception] = []
        self.endless: list[weakref.ref[AsyncGenerator[bytes]]] = []
        self.handed_over = 0

    async def stream(self) -> AsyncIterator[bytes]:
        for piece in self.streamed:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def pieces(self) -> AsyncGenerator[bytes]:
        while True:
            self.handed_over += 1
            yield b"x" * PIECE_BYTES


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "http.sock")
    await made.server.listen(made.path)
    yield made
    await made.server.close()


@pytest.fixture
async def peer(world: World) -> AsyncIterator[Peer]:
    opened = await Peer.open(world.path)
    yield opened
    with contextlib.suppress(ConnectionError):  # some tests are hung up on while they write
        await opened.close()


def words_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["message"])


def transport_of(peer: Peer) -> asyncio.Transport:
    assert isinstance(peer.writer.transport, asyncio.Transport)
    return peer.writer.transport


async def ended(peer: Peer) -> bool:
    async with asyncio.timeout(20):
        return await peer.reader.read() == b""


# ----------------------------------------------------------------------- refused, in words
POST = b"POST /echo HTTP/1.1\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"nonsense\r\n\r\n", 400, "method"),
        (b"\x16\x03\x01\x02\x00\x01\xfc", 400, "method"),  # TLS
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "url"),
        (b"GET /echo HTTP/3\r\n\r\n", 400, "dot"),
        (b"GET /echo HTTP/2.0\r\n\r\n", 505, "HTTP/1.1 is spoken here, not HTTP/2.0"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "PRI"),
        (b"GET /echo\r\n\r\n", 505, "HTTP/0.9"),
        (b"GET /echo\nContent-Length: 5\r\n\r\nhello", 505, "HTTP/0.9"),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", 400, "Content-Length"),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi", 400, "Content-Length"),
        (POST + b"Content-Length: 2, 2\r\n\r\nhi", 400, "Content-Length"),
        (POST + b"Content-Length: +2\r\n\r\nhi", 400, "Content-Length"),
        (POST + b"Content-Length: 0x2\r\n\r\nhi", 400, "Content-Length"),
        (POST + b"Content-Length:\r\n\r\nhi", 400, "Content-Length"),
        (POST + b"Content-Length: " + b"9" * 20 + b"\r\n\r\nhi", 400, "overflow"),
        (CHUNKED + b"Content-Length: 2\r\n\r\n0\r\n\r\n", 400, "Content-Length"),
        (
            POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "Content-Length",
        ),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "gzip"),
        (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400, "Transfer-Encoding"),
        (POST + b"Transfer-Encoding: identity\r\n\r\nhi", 400, "identity"),
        (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400, "value char"),
        (
            POST + b"Transfer-Encoding: gzip\r\n" + CHUNKED[len(POST) :] + b"\r\n0\r\n\r\n",
            400,
            "twice",
        ),
        (CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n", 400, "chunked by HTTP/1.1"),
        (b"GET /echo HTTP/1.1\nHost: x\n\n", 400, "CRLF"),
        (b"GET /echo HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400, "CR"),
        (b"GET /echo HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", 400, "LF"),
        (b"GET /echo HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400, "whitespace"),
        (b"GET /echo HTTP/1.1\r\n Host: x\r\n\r\n", 400, "space"),
        (b"GET /echo HTTP/1.1\r\nHost : x\r\n\r\n", 400, "header"),
        (b"GET /echo HTTP/1.1\r\nHost: a\0b\r\n\r\n", 400, "header value"),
        (b"GET /echo HTTP/1.1\r\nno colon\r\n\r\n", 400, "header"),
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400, "'host' stands twice"),
        (b"GET /echo HTTP/1.1\r\nRange: a\r\nRange: a\r\n\r\n", 400, "'range' stands twice"),
        (b"CONNECT other:80 HTTP/1.1\r\n\r\n", 400, "CONNECT"),
        (
            POST
            + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 27\r\n\r\nGET /echo HTTP/1.1\r\n\r\n",
            400,
            "Upgrade",
        ),
        (b"GET / HTTP/1.1\r\nA:" + b"x" * 70_000, 431, "65536"),
        (b"GET /" + b"x" * 70_000, 431, "65536"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 12_000, 431, "65536"),
    ],
)
async def test_head_when_it_could_be_read_in_two_ways_then_refused_in_words(
    world, peer, data, status, words
):
    peer.writer.write(data)
    answer = await peer.receive()
    assert answer.status == status
    assert words.lower() in words_of(answer).lower()
    assert answer.headers["connection"] == "close"
    assert await ended(peer)
    assert world.heads == []  # nobody was asked


@pytest.mark.parametrize(
    "chunks",
    [
        b"2\nhi\r\n0\r\n\r\n",
        b"2\r\nhi\n0\r\n\r\n",
        b"2\r\nhi0\r\n\r\n",
        b"2 \r\nhi\r\n0\r\n\r\n",
        b"-2\r\nhi\r\n0\r\n\r\n",
        b"0x2\r\nhi\r\n0\r\n\r\n",
        b"f" * 17 + b"\r\nhi",
        b'2;x="a\nb"\r\nhi\r\n0\r\n\r\n',
        b"2\r\nhi\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
        b"2\r\nhi\r\n0\r\nContent-Length: 5\r\n\r\n",
    ],
)
@pytest.mark.parametrize("path", [b"/echo", b"/nowhere"])
async def test_body_when_its_chunks_are_broken_then_refused_and_nothing_of_it_is_a_request(
    world, peer, chunks, path
):
    head = b"POST " + path + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    peer.writer.write(head + chunks + b"GET /echo HTTP/1.1\r\n\r\n")
    answer = await peer.receive()
    assert answer.status == (400 if path == b"/echo" else 404)
    assert await ended(peer)
    assert len(world.heads) == 1


async def test_requests_before_a_broken_one_are_answered_first(peer):
    peer.send("POST", "/echo", b"one")
    peer.send("POST", "/echo", b"two")
    peer.writer.write(b"nonsense\r\n\r\n")
    answers = [await peer.receive() for _ in range(3)]
    assert [(a.status, a.body[:3]) for a in answers[:2]] == [(200, b"one"), (200, b"two")]
    assert answers[2].status == 400
    assert await ended(peer)


async def test_request_after_the_last_one_is_not_served(world, peer):
    peer.send("POST", "/echo", b"one", Connection="close")
    peer.send("POST", "/echo", b"two")
    assert (await peer.receive()).body == b"one"
    assert await ended(peer)
    assert len(world.heads) == 1


# ---------------------------------------------------------------------------------- answers
async def test_exchange_when_opened_then_it_knows_the_peers_uid_and_the_head(world, peer):
    await peer.ask("POST", "/echo?a=b", b"x", X_Any=" value\t")
    assert world.uids == [os.getuid()]
    (head,) = world.heads
    assert (head.method, head.path, head.query, head.length_bytes) == (
        "POST",
        "/echo",
        "a=b",
        1,
    )
    assert head.headers["x-any"] == "value"


async def test_head_request_when_answered_then_the_size_and_no_body(peer):
    peer.writer.write(b"HEAD /large HTTP/1.1\r\n\r\n")
    head = await peer.reader.readuntil(b"\r\n\r\n")
    assert b"Content-Length: 4194304\r\n" in head
    assert (await peer.ask("POST", "/echo", b"next")).body == b"next"


@pytest.mark.parametrize(
    ("asked", "kept"), [(b"", False), (b"Connection: keep-alive\r\n", True)]
)
async def test_http_1_0_when_keep_alive_is_asked_for_then_said_and_done(peer, asked, kept):
    peer.writer.write(b"GET /echo HTTP/1.0\r\n" + asked + b"\r\n")
    answer = await peer.receive()
    assert answer.headers["connection"] == ("keep-alive" if kept else "close")
    if kept:
        assert (await peer.ask("POST", "/echo", b"next")).body == b"next"
    else:
        assert await ended(peer)


@pytest.mark.parametrize(
    "streamed", [[b"12345"], [b"123456", b"123456"], [b"12345", Corrupt("a hole in the file")]]
)
async def test_stream_when_it_is_not_what_was_announced_then_the_connection_is_cut(
    world, peer, caplog, streamed
):
    world.streamed = streamed
    peer.send("GET", "/stream")
    async with asyncio.timeout(10):
        said = await peer.reader.read()
    assert said.endswith(
        b"\r\n\r\nhead " + b"".join(p for p in streamed if isinstance(p, bytes))
    )
    assert "a download was cut" in caplog.text


async def test_stream_when_whole_then_after_its_parts(world, peer):
    world.streamed = [b"12345", b"67890"]
    assert (await peer.ask("GET", "/stream")).body == b"head 1234567890"
    assert (await peer.ask("POST", "/echo", b"next")).body == b"next"


# ----------------------------------------------------------------------------------- bodies
async def test_body_when_refused_and_continue_is_expected_then_answered_without_it(world, peer):
    peer.writer.write(
        b"POST /nowhere HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    )
    answer = await peer.receive()
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    assert await ended(peer)


async def test_body_when_refused_then_dropped_and_the_connection_goes_on(peer):
    assert (await peer.ask("POST", "/nowhere", b"x" * MIB)).status == 404
    assert (await peer.ask("POST", "/echo", b"x" * 100_001)).status == 413
    assert (await peer.ask("POST", "/echo", b"x" * 100_000)).body == b"x" * 100_000


async def test_body_when_refused_and_endless_then_answered_and_hung_up(peer, monkeypatch):
    monkeypatch.setattr(http_server, "DISCARD_BYTES", MIB)
    peer.writer.write(b"POST /nowhere HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
    peer.writer.write(b"x" * (2 * MIB))
    answer = await peer.receive()
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    with contextlib.suppress(ConnectionResetError):
        assert await ended(peer)


async def test_upload_when_the_sink_is_slow_then_the_client_is_held_back(world):
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(world.path))
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    total_bytes = 30 * MIB
    await loop.sock_sendall(
        client, b"PUT /sink HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % total_bytes
    )
    sending = loop.create_task(loop.sock_sendall(client, b"x" * total_bytes))
    done, _ = await asyncio.wait([sending], timeout=0.5)
    assert not done
    (connection,) = world.server.connections
    assert not connection.transport.is_reading()
    assert 0 < world.sink.size_bytes <= MIB
    world.gate.set()
    await asyncio.wait_for(sending, 20)
    answer = await loop.sock_recv(client, 1000)
    assert answer.endswith(b"\r\n\r\n%d" % total_bytes)
    client.close()


async def test_upload_when_the_client_goes_while_the_sink_is_busy_then_aborted(world):
    peer = await Peer.open(world.path)
    peer.writer.write(b"PUT /sink HTTP/1.1\r\nContent-Length: 100\r\n\r\nsome")
    async with asyncio.timeout(10):
        while world.sink is None or not world.sink.size_bytes:
            await asyncio.sleep(0.01)
    await peer.close()
    await asyncio.wait_for(world.sink.aborted.wait(), 10)


# ------------------------------------------------------------------- slow, idle, many, gone
async def test_reader_when_it_never_reads_then_little_is_held_for_it(world):
    """Neither answers nor requests gather."""
    peer = await Peer.open(world.path)
    transport_of(peer).pause_reading()
    for _ in range(2000):
        peer.send("POST", "/echo", b"x" * 5000)
    await asyncio.sleep(0.3)
    (connection,) = world.server.connections
    assert not connection.transport.is_reading()
    assert 0 < connection.transport.get_write_buffer_size() <= 500_000
    assert len(world.heads) < 1000
    transport_of(peer).resume_reading()
    for _ in range(2000):
        assert len((await peer.receive()).body) == 5000
    await peer.close()


async def ask_and_read_nothing(world) -> Peer:
    """Return a client that asked for a stream without end, once some of it was handed over."""
    lazy = await Peer.open(world.path)
    transport_of(lazy).pause_reading()
    lazy.send("GET", "/endless")
    async with asyncio.timeout(20):
        while not world.handed_over:
            await asyncio.sleep(0.005)
    return lazy


async def test_stream_when_nobody_reads_it_then_two_pieces_are_held_and_counted(world):
    lazy = await ask_and_read_nothing(world)
    await asyncio.sleep(0.1)  # what would be held beyond that comes at once
    (connection,) = world.server.connections
    assert 0 < connection.transport.get_write_buffer_size() <= PIECE_BYTES
    assert world.server.held.of(os.getuid()) == 2 * PIECE_BYTES
    assert world.handed_over <= 3  # the socket itself takes most of one
    transport_of(lazy).abort()


async def test_stream_when_its_reader_goes_then_nothing_of_it_stays(world):
    """Garbage that waits for its collection is memory that nobody counts."""
    gc.collect()
    gc.disable()
    try:
        lazy = await ask_and_read_nothing(world)
        transport_of(lazy).abort()
        async with asyncio.timeout(20):
            while world.server.connections or world.endless[0]() is not None:
                await asyncio.sleep(0.005)
    finally:
        gc.enable()
    assert not world.server.held.of(os.getuid())


async def test_answers_when_a_user_reads_none_then_more_are_refused_until_some_are_read(
    world, peer, monkeypatch
):
    monkeypatch.setattr(held_memory, "MAX_BYTES", 9 * MIB)
    lazy = [await Peer.open(world.path) for _ in range(2)]
    for reader in lazy:
        transport_of(reader).pause_reading()
        reader.send("GET", "/large")
    async with asyncio.timeout(20):
        while world.server.held.of(os.getuid()) < 8 * MIB:
            await asyncio.sleep(0.005)
    refused = await peer.ask("GET", "/large")
    assert refused.status == 503
    assert "memory" in words_of(refused)
    assert (await peer.ask("POST", "/echo", b"small")).body == b"small"
    transport_of(lazy[0]).resume_reading()
    assert len((await lazy[0].receive()).body) == 4 * MIB
    assert len((await peer.ask("GET", "/large")).body) == 4 * MIB
    for reader in lazy:
        transport_of(reader).abort()
    async with asyncio.timeout(20):
        while world.server.held.of(os.getuid()):
            await asyncio.sleep(0.005)


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(http_server, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.6)


async def test_head_when_it_drips_then_408_in_words(short_limits, peer, world):
    assert (await peer.ask("POST", "/echo", b"x")).status == 200

    async def drip() -> None:
        while True:
            peer.writer.write(b"A")
            await asyncio.sleep(0.02)

    peer.writer.write(b"GET /echo HTTP/1.1\r\nA: ")
    dripping = asyncio.get_running_loop().create_task(drip())
    answer = await peer.receive()
    dripping.cancel()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert "did not end within 0.3 s" in words_of(answer)


@pytest.mark.parametrize("path", ["/echo", "/sink"])
async def test_body_when_nothing_more_of_it_comes_then_it_is_refused_and_may_be_sent_again(
    short_limits, monkeypatch, peer, world, path
):
    monkeypatch.setattr(http_server, "BODY_SECONDS", 0.2)
    world.gate.set()
    peer.writer.write(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n" % path.encode()
    )
    for _ in range(8):  # longer than the limit, and never silent for as long
        await asyncio.sleep(0.05)
        peer.writer.write(b"x")
    answer = await peer.receive()
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert "nothing came of the request's body for 0.2 s" in words_of(answer)
    if path == "/sink":
        assert world.sink.size_bytes == 8
        await asyncio.wait_for(world.sink.aborted.wait(), 5)


async def test_limits_when_a_request_waits_or_its_body_is_slow_then_it_is_left_alone(
    short_limits, peer, world
):
    peer.send("GET", "/wait")
    peer.writer.write(b"GET /ec")  # the next head has begun, and nobody waits for it yet
    await asyncio.sleep(0.9)
    world.gate.set()
    assert (await peer.receive()).status == 200
    peer.writer.write(b"ho HTTP/1.1\r\nContent-Length: 2\r\n\r\nh")
    await asyncio.sleep(0.9)
    peer.writer.write(b"i")
    assert (await peer.receive()).body == b"hi"


async def test_connection_when_idle_for_long_then_closed(short_limits, peer, world):
    assert (await peer.ask("POST", "/echo", b"x")).status == 200
    await asyncio.sleep(0.3)
    assert (await peer.ask("POST", "/echo", b"x")).status == 200
    assert await ended(peer)
    async with asyncio.timeout(10):
        while world.server.connections or world.server._sweeper is not None:
            await asyncio.sleep(0.01)


async def test_connections_when_many_are_idle_then_each_is_served(world):
    peers = [await Peer.open(world.path) for _ in range(300)]
    for number, peer in enumerate(peers):
        peer.send("POST", "/echo", b"%d" % number)
    assert [int((await peer.receive()).body) for peer in peers] == list(range(300))
    for peer in peers:
        await peer.close()
    async with asyncio.timeout(10):
        while world.server.connections:
            await asyncio.sleep(0.01)


async def test_request_when_the_client_goes_then_it_is_cancelled(world):
    peer = await Peer.open(world.path)
    peer.send("GET", "/wait")
    async with asyncio.timeout(10):
        while not world.heads:
            await asyncio.sleep(0.01)
        await peer.close()
        await world.cancelled.wait()


# -------------------------------------------------------------------------------- the end
async def test_close_when_an_answer_is_on_its_way_then_it_goes_out_whole(world):
    peer = await Peer.open(world.path)
    waiting = await Peer.open(world.path)
    idle = await Peer.open(world.path)
    waiting.send("GET", "/wait")
    transport_of(peer).pause_reading()
    peer.send("GET", "/large")
    async with asyncio.timeout(10):
        while not any(c.transport.get_write_buffer_size() for c in world.server.connections):
            await asyncio.sleep(0.01)
    closing = asyncio.get_running_loop().create_task(world.server.close())
    await asyncio.wait_for(world.cancelled.wait(), 10)
    assert not closing.done()
    transport_of(peer).resume_reading()
    assert len((await peer.receive()).body) == 4 * MIB
    assert await ended(peer)
    await asyncio.wait_for(closing, 10)
    assert await ended(idle)
    assert await ended(waiting)
    assert not world.path.exists()
    for each in (peer, waiting, idle):
        await each.close()


async def test_close_when_a_client_takes_nothing_then_cut_after_a_while(world, monkeypatch):
    monkeypatch.setattr(http_server, "END_SECONDS", 0.1)
    peer = await Peer.open(world.path)
    transport_of(peer).pause_reading()
    peer.send("GET", "/large")
    async with asyncio.timeout(10):
        while not any(c.transport.get_write_buffer_size() for c in world.server.connections):
            await asyncio.sleep(0.01)
        await world.server.close()
    assert world.server.connections == set()
    await peer.close()


async def test_close_when_a_connection_was_just_made_then_it_ends_too(world):
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(world.path))
    while not world.server.connections:
        await asyncio.sleep(0)
    await world.server.close()
    client.settimeout(10)
    assert await asyncio.to_thread(client.recv, 1) == b""
    client.close()


async def test_close_when_a_connection_is_made_after_it_then_it_ends_at_once(world):
    await world.server.close()
    client, accepted = socket.socketpair()
    client.settimeout(10)
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Connection(world.server), accepted
    )
    assert await asyncio.to_thread(client.recv, 1) == b""
    client.close()
    assert world.server.connections == set()
