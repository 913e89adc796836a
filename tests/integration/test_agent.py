"""The agent as a process of its own: what survives it, what it leaves, whom it listens to."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from picloud_jupyter.protocol.frames import FrameReader, pack_frame
from picloud_jupyter.serialize.payload import load
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.agent.guardian import agent_record, read_agent_process
from picloud_services.agent.leftovers import hold_layer
from picloud_services.agent.processes import find_process
from picloud_services.base.frame_link import hello
from picloud_services.config import command
from tests.tools.running_agent import (
    connected,
    make_chunk,
    make_settings,
    running_agent,
    short_run_folder,
    until,
)

ROOT = Path(__file__).parents[2]


class AgentProcess:
    """`python -m picloud_services agent`, which the test may kill."""

    def __init__(self, settings) -> None:
        self.settings = settings

    async def start(self) -> None:
        self.settings.home.mkdir(parents=True, exist_ok=True)
        paths = os.pathsep.join(str(ROOT / name) for name in ("", "kernels", "services"))
        environment = {**os.environ, **self.settings.exported(), "PYTHONPATH": paths}
        self.process = subprocess.Popen(
            command("agent", self.settings.paths),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await until(lambda: read_agent_process(agent_record(self.settings.run)))

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
async def agent(tmp_path):
    with short_run_folder() as run:
        agent = AgentProcess(make_settings(tmp_path, run))
        await agent.start()
        try:
            yield agent
        finally:
            if agent.process.poll() is None:
                async with connected(agent.settings) as (engine, _):
                    await engine.stop_node(engine.nodes()[0].node, kill=True)
                    await asyncio.to_thread(agent.process.wait, 20)
            assert not list((run / "c").glob("*"))
            assert not list((agent.settings.home / "layers").glob("*"))


def make_waiting_function(folder):
    def wait(x):
        (folder / "started").touch()
        while not (folder / "go").exists():
            time.sleep(0.002)
        return x

    return wait


def node_of(engine) -> str:
    return str(engine.nodes()[0].node)


async def test_kill_9_when_a_job_runs_then_the_next_agent_takes_it_over(agent, tmp_path):
    chunk = make_chunk(make_waiting_function(tmp_path), [41, 42])
    async with connected(agent.settings) as (engine, said):
        engine.submit(node_of(engine), chunk)
        await until((tmp_path / "started").exists)
        agent.end(signal.SIGKILL)
        await until(lambda: said.named("node_down"))
        began_at = time.monotonic()
        await agent.start()
        await until(lambda: len(said.named("node_up")) == 2)
        assert time.monotonic() - began_at < 5
        assert said.named("node_up")[1].fields["leases"] == {chunk.lease: "s1"}
        known = len(said.named("samples"))
        await until(
            lambda: len(said.named("samples")) > known
        )  # its memory is watched again, too
        assert said.named("samples")[-1].fields["items"][0]["jid"] == chunk.jids[0][0]
        (tmp_path / "go").touch()
        await until(lambda: said.is_over(chunk.lease))
        assert [load(body) for body in said.bodies(chunk.lease)] == [41, 42]


async def test_kill_9_when_events_were_not_acknowledged_then_the_next_agent_has_them(agent):
    chunk = make_chunk(abs, [-1])
    async with connected(agent.settings) as (engine, said):
        engine.submit(node_of(engine), chunk)
        await until(lambda: said.is_over(chunk.lease))
        agent.end(signal.SIGKILL)
    await agent.start()
    async with connected(agent.settings) as (_, said):
        await until(lambda: said.is_over(chunk.lease))
        assert said.named("node_up")[0].fields["leases"] == {}


async def test_sigterm_when_a_job_runs_then_the_agent_leaves_at_once_and_the_job_goes_on(
    agent, tmp_path
):
    chunk = make_chunk(make_waiting_function(tmp_path), [7])
    async with connected(agent.settings) as (engine, said):
        engine.submit(node_of(engine), chunk)
        await until((tmp_path / "started").exists)
        assert agent.end(signal.SIGTERM) == 0
        await agent.start()
        await until(lambda: len(said.named("node_up")) == 2)
        (tmp_path / "go").touch()
        await until(lambda: said.is_over(chunk.lease))


async def test_sigterm_when_chunks_wait_in_the_agent_then_they_come_back(agent, tmp_path):
    wait = make_waiting_function(tmp_path)
    async with connected(agent.settings) as (engine, said):
        node = node_of(engine)
        engine.submit(node, make_chunk(wait, [1]))
        await until((tmp_path / "started").exists)
        behind = make_chunk(wait, [2])
        waiting = [make_chunk(wait, [n, n + 1]) for n in (3, 5)]
        for chunk in (behind, *waiting):
            engine.submit(node, chunk)
        await asyncio.to_thread(agent.end, signal.SIGTERM)
        await until(lambda: all(said.is_over(chunk.lease) for chunk in waiting))
        for chunk in waiting:
            (event,) = said.named("returned", chunk.lease)
            assert (event.fields["first"], event.fields["count"]) == (0, 2)
        await agent.start()
        (tmp_path / "go").touch()
        await until(lambda: said.is_over(behind.lease))
        assert len(said.items(behind.lease)) == 1


async def test_supervisor_lost_when_a_job_runs_then_its_lease_ends_and_nothing_stays(
    agent, tmp_path
):
    chunk = make_chunk(make_waiting_function(tmp_path), [7])
    async with connected(agent.settings) as (engine, said):
        engine.submit(node_of(engine), chunk)
        await until((tmp_path / "started").exists)
        (status_path,) = agent.settings.run.glob("c/*/status.json")
        status = json.loads(status_path.read_bytes())
        os.kill(status["pid"], signal.SIGKILL)
        await until(lambda: said.is_over(chunk.lease))
        (event,) = said.named("exited", chunk.lease)
        assert event.fields["lost"] is True
        await until(lambda: not status_path.parent.exists())
        await until(lambda: find_process(status["init_pid"]) is None)
        again = make_chunk(abs, [-3])
        engine.submit(node_of(engine), again)
        await until(lambda: said.is_over(again.lease))


async def test_start_when_a_dead_container_is_left_then_it_is_cleaned(agent, tmp_path):
    chunk = make_chunk(make_waiting_function(tmp_path), [7])
    async with connected(agent.settings) as (engine, _):
        engine.submit(node_of(engine), chunk)
        await until((tmp_path / "started").exists)
        agent.end(signal.SIGKILL)
    (status_path,) = agent.settings.run.glob("c/*/status.json")
    status = json.loads(status_path.read_bytes())
    with pytest.raises(BlockingIOError):  # its supervisor does
        hold_layer(str(agent.settings.home / "layers" / status["container"]))
    os.kill(status["pid"], signal.SIGKILL)
    stray = agent.settings.home / "layers" / "of-an-earlier-boot"
    stray.mkdir()
    held = stray.with_name("of-a-supervisor-without-its-run-directory")
    held.mkdir()
    holder = hold_layer(str(held))
    await agent.start()
    os.close(holder)
    held.rmdir()
    assert not status_path.parent.exists()
    assert not stray.exists()
    await until(lambda: find_process(status["init_pid"]) is None)


async def test_second_agent_when_one_runs_then_it_leaves_with_a_code_of_its_own(agent):
    environment = {**os.environ, **agent.settings.exported()}
    environment["PYTHONPATH"] = os.pathsep.join(
        str(ROOT / name) for name in ("", "kernels", "services")
    )
    with short_run_folder() as elsewhere:
        for run in (agent.settings.run, elsewhere):
            paths = ServicePaths(agent.settings.home, run)
            done = subprocess.run(
                command("agent", paths), env=environment, timeout=20, check=False
            )
            assert done.returncode == 3
    assert agent.process.poll() is None


async def test_hello_when_the_peer_is_too_old_then_it_is_refused_with_words(agent):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(agent.settings.paths.agent_socket))
        peer.sendall(pack_frame({**hello("control"), "wire": 0, "oldest": 0}))
        data = b""
        while piece := peer.recv(65536):
            data += piece
    ((header, _),) = FrameReader(counted=True).feed(data)
    assert header["t"] == "refused"
    assert "picloud up --replace" in header["message"]


async def test_connect_when_it_sends_no_frames_then_it_is_cut_off_and_others_are_served(agent):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(agent.settings.paths.agent_socket))
        peer.sendall(b"\xff" * 64)
        assert peer.recv(1) == b""
    async with connected(agent.settings) as (engine, _):
        assert engine.nodes()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second uid")
async def test_socket_when_another_user_connects_then_it_cannot_or_is_refused(agent):
    path = agent.settings.paths.agent_socket
    assert path.stat().st_mode & 0o777 == 0o600
    script = (
        "import os,socket,sys; os.setuid(65534); s=socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\nexcept OSError: sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], timeout=20, check=False)
    assert done.returncode == 7


async def test_newest_when_a_second_control_plane_connects_then_the_first_is_closed(agent):
    def connect():
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(10)
        peer.connect(str(agent.settings.paths.agent_socket))
        peer.sendall(pack_frame(hello("control", epoch="e")))
        ((header, _),) = FrameReader(counted=True).feed(peer.recv(65536))
        assert header["t"] == "hello"
        return peer

    with connect() as first, connect() as second:
        while first.recv(65536):  # until its end; a timeout fails the test
            pass
        second.sendall(pack_frame({"t": "renew", "leases": []}))
        second.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                assert second.recv(65536), "the newest was closed, too"


async def test_idle_when_containers_end_by_themselves_then_nobody_is_told(tmp_path):
    async with (
        running_agent(tmp_path) as agent,
        connected(agent.settings) as (engine, said),
    ):
        chunk = make_chunk(lambda _: os.getpid(), [0])
        engine.submit("here", chunk)
        await until(lambda: said.is_over(chunk.lease))
        (pid,) = [load(body) for body in said.bodies(chunk.lease)]
        os.kill(pid, signal.SIGKILL)
        engine.acknowledge("here", said.events[-1].n)
        await until(lambda: not agent.containers())
        assert not said.named("exited")


async def test_full_when_events_are_not_acknowledged_then_nothing_is_lost(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("picloud_services.agent.upstream.FULL_BYTES", 100_000)
    async with (
        running_agent(tmp_path) as agent,
        connected(agent.settings) as (engine, said),
    ):
        chunks = [make_chunk(lambda n: b"x" * n, [50_000] * 2) for _ in range(6)]
        for chunk in chunks:
            engine.submit("here", chunk)
        await until(lambda: said.named("batch"))
        while not all(said.is_over(chunk.lease) for chunk in chunks):
            engine.acknowledge("here", max(event.n for event in said.events))
            await asyncio.sleep(0.01)
        assert [len(said.items(chunk.lease)) for chunk in chunks] == [2] * 6
