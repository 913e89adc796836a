"""The control plane's end of the agent's link, against a scripted agent."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter.protocol.frames import pack_frame
from picloud_services.dispatch import local_engine
from picloud_services.dispatch.local_engine import LocalEngine

REFUSED = {"t": "refused", "message": "not you"}
TOO_OLD = {"t": "hello", "wire": 0, "oldest": 0, "role": "agent"}


@pytest.mark.parametrize("answer", [REFUSED, TOO_OLD])
async def test_link_when_refused_then_it_is_not_tried_again_at_once(
    tmp_path: Path, monkeypatch, answer
):
    monkeypatch.setattr(local_engine, "REFUSED_SECONDS", 0.3)
    loop = asyncio.get_running_loop()
    came_at: list[float] = []
    twice = asyncio.Event()

    nothing: Any = None
    engine = LocalEngine(tmp_path / "agent.sock", output=nothing, logs=tmp_path)

    async def agent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came_at.append(loop.time())
        writer.write(pack_frame(answer))
        writer.close()
        if len(came_at) == 2:
            twice.set()

    server = await asyncio.start_unix_server(agent, tmp_path / "agent.sock")
    await engine.start(lambda _event: None)
    async with asyncio.timeout(20):
        await twice.wait()
    await engine.stop()
    server.close()
    assert came_at[1] - came_at[0] >= 0.3
    assert engine.nodes() == []
