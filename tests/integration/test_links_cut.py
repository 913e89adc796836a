"""Frames that are doubled, swapped, torn or cut between control plane, agent and supervisor: each runs once."""

import asyncio
import functools
import os
import random
import time

import pytest

from picloud_jupyter.serialize.payload import load
from tests.tools.middle import MISCHIEF, Middle, cut_connections
from tests.tools.running_agent import NODE, connected, make_chunk, running_agent, until

SEEDS = range(1)


def make_counting_function(folder):
    """A function that leaves a mark for each of its starts."""

    def count(x):
        (folder / f"{x}-{time.monotonic_ns()}").touch()
        return x

    return count


def make_waiting_function(folder):
    """A function that says that it runs, then waits until the test lets it go."""

    def wait(x):
        (folder / f"started-{x}").touch()
        while not (folder / "go").exists():
            time.sleep(0.002)
        return x

    return wait


async def run(engine, said, function, value):
    """Run one element until it has a result, as the control plane would; return the value."""
    while True:
        chunk = make_chunk(function, [value])
        while not engine.nodes():
            await asyncio.sleep(0.005)
        engine.submit(NODE, chunk)
        await until(functools.partial(said.is_over, chunk.lease))
        if said.named("returned", chunk.lease):
            assert not said.items(chunk.lease)
            continue
        (item,) = said.items(chunk.lease)
        assert item[1] == "done"
        return load(said.bodies(chunk.lease)[0])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mischief", MISCHIEF)
@pytest.mark.parametrize("link", ["control plane", "supervisor"])
async def test_chunk_when_a_frame_is_spoilt_then_it_runs_once_and_has_its_result(
    tmp_path, link, mischief, seed
):
    marks = tmp_path / "marks"
    marks.mkdir()
    count = make_counting_function(marks)
    chance = random.Random(seed)
    async with running_agent(tmp_path) as agent, connected(agent.settings) as (engine, said):
        await run(engine, said, count, -1)
        (container,) = agent.containers()
        path = {
            "control plane": agent.settings.paths.agent_socket,
            "supervisor": agent.settings.run / "c" / container / "supervisor.sock",
        }[link]
        middle = Middle(path, chance, by_frames=True)
        try:
            assert cut_connections(os.getpid(), path)
            for value in range(3):
                middle.order(mischief)
                async with asyncio.timeout(20):
                    assert await run(engine, said, count, value) == value
                assert await asyncio.to_thread(middle.wait)
            starts = [name.partition("-")[0] for name in os.listdir(marks)]
            assert sorted(name for name in starts if name) == ["0", "1", "2"]
        finally:
            middle.leave()


async def test_kill_when_the_link_to_the_supervisor_breaks_with_it_then_it_is_sent_again(
    tmp_path,
):
    async with running_agent(tmp_path) as agent, connected(agent.settings) as (engine, said):
        chunk = make_chunk(make_waiting_function(tmp_path), [0])
        engine.submit(NODE, chunk)
        await until((tmp_path / "started-0").exists)
        (container,) = agent.containers()
        path = agent.settings.run / "c" / container / "supervisor.sock"
        middle = Middle(path, random.Random(0), by_frames=True)
        try:
            assert cut_connections(os.getpid(), path)
            await until(lambda: middle.passed)
            middle.order("cut")
            engine.kill(NODE, chunk.lease, 0, "killed")
            await until(lambda: said.named("exited", chunk.lease))
            assert await asyncio.to_thread(middle.wait)
        finally:
            middle.leave()
    assert said.named("exited", chunk.lease)[0].fields["asked"] == "killed"
