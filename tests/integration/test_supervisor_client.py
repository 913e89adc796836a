"""The agent's end of a supervisor's link, against a plain socket in the supervisor's place."""

import asyncio
import os

import pytest

from picloud_jupyter.protocol.frames import FrameReader, pack_frame
from picloud_services.agent.processes import find_process
from picloud_services.agent.supervisor_client import SupervisorClient

HELLO = {"t": "hello", "wire": 1, "oldest": 1, "role": "supervisor", "ready": True}
CHUNK = {"t": "chunk", "lease": "a" * 16, "function": "d" * 64, "function_bytes": 0}


class _Order:
    container = "c1"

    def __init__(self, folder: str) -> None:
        self.folder = folder


class _Supervisor:
    """Reads what the client sends: ``reads`` has the frames that came together."""

    def __init__(self) -> None:
        self.reads: list[list[dict[str, object]]] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameReader()
        writer.write(pack_frame(HELLO))
        while data := await reader.read(1 << 16):
            self.reads.append([header for header, _ in frames.feed(data)])
        writer.close()
        await writer.wait_closed()
        self.ended.set()

    async def read(self, name: str) -> list[dict[str, object]]:
        """Return the frames that came together with the first ``name``."""
        async with asyncio.timeout(5):
            while True:
                for frames in self.reads:
                    if any(header["t"] == name for header in frames):
                        return frames
                await asyncio.sleep(0.001)


@pytest.fixture
async def joined(tmp_path):
    supervisor, connected = _Supervisor(), asyncio.Event()
    server = await asyncio.start_unix_server(
        supervisor.serve, str(tmp_path / "supervisor.sock")
    )
    client = SupervisorClient(
        _Order(str(tmp_path)),  # type: ignore[arg-type]  # only its folder and name are asked for
        on_hello=lambda _: connected.set(),
        on_frame=lambda *_: None,
        on_gone=lambda _: None,
    )
    process = find_process(os.getpid())
    assert process is not None
    client.connect(process)
    async with asyncio.timeout(5):
        await connected.wait()
    client.open()
    yield client, supervisor
    client.leave()
    async with asyncio.timeout(5):
        await supervisor.ended.wait()
    server.close()
    await server.wait_closed()


async def test_acknowledge_when_a_chunk_follows_goes_along_with_it(joined):
    client, supervisor = joined
    client.acknowledge(6)
    client.acknowledge(7)
    client.send_chunk(pack_frame(CHUNK)[12:], CHUNK, b"", b"")
    ack, chunk = await supervisor.read("chunk")
    assert ack == {"t": "ack", "n": 7}
    assert chunk == CHUNK
    client.acknowledge(8)
    assert await supervisor.read("ack")
    async with asyncio.timeout(5):
        while supervisor.reads[-1] != [{"t": "ack", "n": 8}]:
            await asyncio.sleep(0.001)


async def test_acknowledge_when_nothing_follows_is_said_all_the_same(joined):
    client, supervisor = joined
    client.acknowledge(6)
    assert await supervisor.read("ack") == [{"t": "ack", "n": 6}]


async def test_connect_when_the_supervisor_refuses_is_tried_less_and_less_often(
    tmp_path, caplog
):
    came = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        writer.write(pack_frame({"t": "refused", "message": "too old for you"}))
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(refuse, str(tmp_path / "supervisor.sock"))
    client = SupervisorClient(
        _Order(str(tmp_path)),  # type: ignore[arg-type]  # only its folder and name are asked for
        on_hello=lambda _: None,
        on_frame=lambda *_: None,
        on_gone=lambda _: None,
    )
    process = find_process(os.getpid())
    assert process is not None
    client.connect(process)
    await asyncio.sleep(1)
    assert 2 <= came <= 6
    assert "too old for you" in caplog.text
    client.leave()
    server.close()
    await server.wait_closed()
