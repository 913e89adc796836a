"""An agent that cannot take what a supervisor says hears it again, and forgets none of it."""

import errno
import os
import signal

import pytest

from picloud_jupyter.serialize.payload import load
from picloud_services.agent import upstream
from tests.tools.running_agent import connected, make_chunk, running_agent, until


def failing_once(monkeypatch, name: str, error: Exception) -> list[str]:
    """Let the first call of ``upstream.name`` raise ``error``; return a list that has its name then."""
    real = getattr(upstream, name)
    failed: list[str] = []

    def call(*arguments):
        if not failed:
            failed.append(name)
            raise error
        return real(*arguments)

    monkeypatch.setattr(upstream, name, call)
    return failed


def large(x: int) -> bytes:
    return bytes([x]) * 300_000


async def test_result_in_a_file_when_no_thread_can_move_it_then_it_comes_again(
    tmp_path, monkeypatch, caplog
):
    error = RuntimeError("can't start new thread")
    failed = failing_once(monkeypatch, "move_results", error)
    async with running_agent(tmp_path) as agent, connected(agent.settings) as (engine, heard):
        chunk = make_chunk(large, [1, 2, 3])
        engine.submit(engine.nodes()[0].node, chunk)
        await until(lambda: heard.is_over(chunk.lease))
        assert failed
        assert heard.covered(chunk.lease) == [0, 1, 2]
    assert "could not be taken; it says it again" in caplog.text


@pytest.mark.parametrize("where", ["the look at its files", "the handler"])
async def test_end_of_a_container_when_it_cannot_be_taken_then_it_comes_again(
    tmp_path, monkeypatch, where
):
    def dies(x):
        os.kill(os.getpid(), signal.SIGKILL)

    error = OSError(errno.EIO, os.strerror(errno.EIO))
    name = "has_files" if where == "the look at its files" else "decode_header"
    async with running_agent(tmp_path) as agent, connected(agent.settings) as (engine, heard):
        node = engine.nodes()[0].node
        first = make_chunk(str, [0])
        engine.submit(node, first)
        await until(lambda: heard.is_over(first.lease))
        chunk = make_chunk(dies, [1, 2])
        failed = failing_once(monkeypatch, name, error)
        engine.submit(node, chunk)
        await until(lambda: heard.named("exited", chunk.lease))
        assert failed
        assert heard.covered(chunk.lease) == [0, 1]
        after = make_chunk(lambda x: x + 1, [41])
        engine.submit(node, after)
        await until(lambda: heard.is_over(after.lease))
        assert [load(body) for body in heard.bodies(after.lease)] == [42]
