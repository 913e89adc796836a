"""The proxy on a real listener. What may be reached is decided in reachability: here the tests
let one address of this machine through, for there is no other server to ask."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from picloud_services.agent import proxy as proxy_module
from picloud_services.agent.proxy import Proxy
from picloud_services.agent.reachability import refusal


class PortProxy(Proxy):
    """A proxy that knows its port."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener)
        self.port = listener.getsockname()[1]


@dataclass
class Server:
    """A server, and the heads of the requests that it saw."""

    listener: asyncio.Server
    seen: asyncio.Queue[bytes]

    @property
    def port(self) -> int:
        return int(self.listener.sockets[0].getsockname()[1])


@pytest.fixture
async def proxy():
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = PortProxy(listener)
    proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
async def server(monkeypatch):
    """A server on 127.0.0.2 that answers with what it was sent; that address is let through."""
    monkeypatch.setattr(
        proxy_module,
        "refusal",
        lambda address: "" if address == "127.0.0.2" else refusal(address),
    )
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(reader, writer):
        writer.write(b"hello ")
        head = await reader.readuntil(b"\r\n\r\n")
        await seen.put(head)
        writer.write(head)
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.2", 0)
    yield Server(listener, seen)
    listener.close()


async def ask(proxy, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(-1), 10)
    writer.close()
    return answer


async def test_connect_when_allowed_then_bytes_pass_both_ways(proxy, server):
    head = f"CONNECT 127.0.0.2:{server.port} HTTP/1.1\r\n\r\n".encode()
    answer = await ask(proxy, head + b"early\r\n\r\n")
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nhello early\r\n\r\n"
    received, sent = proxy.traffic
    assert (received, sent) == (len(b"hello early\r\n\r\n"), len(b"early\r\n\r\n"))


async def test_get_when_plain_http_then_the_server_sees_an_ordinary_request(proxy, server):
    answer = await ask(
        proxy,
        f"GET http://127.0.0.2:{server.port}/x?y HTTP/1.1\r\nProxy-Connection: a\r\n\r\n".encode(),
    )
    assert answer.startswith(b"hello GET /x?y HTTP/1.1\r\n")
    assert await server.seen.get() == b"GET /x?y HTTP/1.1\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "0.0.0.0"]
)
async def test_connect_when_the_address_is_forbidden_then_403_says_why(proxy, host):
    answer = await ask(proxy, f"CONNECT {host}:80 HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"jobs may not reach it" in answer


async def test_connect_when_nobody_listens_then_502(proxy, server):
    port = server.port
    server.listener.close()
    answer = await ask(proxy, f"CONNECT 127.0.0.2:{port} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 502 ")


async def test_connect_when_the_name_is_unknown_then_502(proxy):
    answer = await ask(proxy, b"CONNECT no-such-host.invalid:80 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 502 ")


async def test_connect_when_the_threads_of_others_are_taken_then_names_are_found_all_the_same(
    proxy,
):
    is_over = threading.Event()
    with ThreadPoolExecutor(1) as taken:
        asyncio.get_running_loop().set_default_executor(taken)
        taken.submit(is_over.wait)
        try:
            answer = await ask(proxy, b"CONNECT localhost:80 HTTP/1.1\r\n\r\n")
        finally:
            is_over.set()
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")


async def test_request_when_it_is_nonsense_then_400(proxy):
    assert (await ask(proxy, b"hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_request_when_its_head_never_ends_then_400(proxy):
    assert (await ask(proxy, b"GET " + b"x" * 70_000)).startswith(b"HTTP/1.1 400 ")


async def test_request_when_nothing_comes_then_504(proxy, monkeypatch):
    monkeypatch.setattr(proxy_module, "HEAD_SECONDS", 0.05)
    assert (await ask(proxy, b"GET")).startswith(b"HTTP/1.1 504 ")


async def test_close_when_connections_are_open_then_they_end(proxy):
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"GET")
    await writer.drain()
    await asyncio.sleep(0)
    await proxy.close()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5)
    writer.close()
