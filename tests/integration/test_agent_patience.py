"""What does not answer, or cannot be removed yet: the agent goes on, and tries again."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter.protocol.frames import pack_frame
from picloud_services.agent import containers, desk, launcher, launcher_client, upstream
from picloud_services.agent.container import ContainerError
from picloud_services.agent.incoming import move_results
from picloud_services.agent.launcher_client import LauncherClient
from picloud_services.agent.leftovers import clean_up
from picloud_services.agent.process_table import list_pids
from picloud_services.agent.processes import find_process
from picloud_services.agent.supervisor_client import SupervisorClient
from tests.tools.running_agent import NODE, connected, make_chunk, running_agent, until


async def test_adopt_when_a_supervisor_is_stopped_then_it_ends_and_the_agent_listens(
    tmp_path, monkeypatch
):
    """Nobody could say what it runs: its jobs are begun elsewhere, and would run twice at once."""
    monkeypatch.setattr(containers, "GREETING_SECONDS", 0.2)
    async with running_agent(tmp_path) as agent:
        async with connected(agent.settings) as (engine, listener):
            engine.submit(NODE, make_chunk(time.sleep, [60]))
            await until(lambda: listener.named("started"))
        await agent.stop(kill=False)
        (status,) = agent.settings.run.glob("c/*/status.json")
        facts = json.loads(status.read_bytes())
        supervisor, runner = facts["pid"], facts["init_pid"]
        os.kill(supervisor, signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                await agent.start()
            async with connected(agent.settings) as (engine, _):
                assert [node.node for node in engine.nodes()] == [NODE]
            await until(lambda: find_process(runner) is None)
            await until(lambda: not agent.containers())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGCONT)


async def test_adopt_when_a_folder_was_damaged_then_the_job_goes_on(tmp_path):
    def wait(folder):
        while not os.path.exists(f"{folder}/go"):
            time.sleep(0.002)
        return "done"

    async with running_agent(tmp_path) as agent:
        chunk = make_chunk(wait, [str(tmp_path)])
        async with connected(agent.settings) as (engine, listener):
            engine.submit(NODE, chunk)
            await until(lambda: listener.named("started"))
        await agent.stop(kill=False)
        (run,) = agent.settings.run.glob("c/*/run")
        run.rename(tmp_path / "moved_away")
        await agent.start()
        async with connected(agent.settings) as (engine, listener):
            (tmp_path / "go").touch()
            await until(lambda: listener.is_over(chunk.lease))
            assert [item[1] for item in listener.items(chunk.lease)] == ["done"]


async def test_clean_when_the_disk_refuses_for_a_moment_then_it_is_tried_again(
    tmp_path, monkeypatch
):
    tries = []

    def fail_twice(order):
        tries.append(order.container)
        if len(tries) <= 2:
            raise OSError("busy")
        clean_up(order)

    monkeypatch.setattr(containers, "CLEAN_SECONDS", 0.01)
    monkeypatch.setattr(containers, "clean_up", fail_twice)
    async with running_agent(tmp_path) as agent:
        async with connected(agent.settings) as (engine, listener):
            chunk = make_chunk(abs, [1])
            engine.submit(NODE, chunk)
            await until(lambda: listener.is_over(chunk.lease))
            engine.acknowledge(NODE, max(event.n for event in listener.events))
            await engine.stop_node(NODE, kill=True)
            await agent.task
        assert len(tries) == 3
        assert not agent.containers()
        await agent.start()


async def test_lost_when_a_result_is_on_its_way_then_it_still_arrives(tmp_path, monkeypatch):
    begun, may_go_on = threading.Event(), threading.Event()

    def move_later(*args):
        begun.set()
        assert may_go_on.wait(20)
        return move_results(*args)

    monkeypatch.setattr(upstream, "move_results", move_later)
    async with running_agent(tmp_path) as agent:
        async with connected(agent.settings) as (engine, listener):
            chunk = make_chunk(bytes, [200_000])
            engine.submit(NODE, chunk)
            await until(begun.is_set)
            (status,) = agent.settings.run.glob("c/*/status.json")
            (client,) = agent.agent._containers.all()
            os.kill(json.loads(status.read_bytes())["pid"], signal.SIGKILL)
            await until(lambda: client.has_ended)
            may_go_on.set()
            await until(lambda: listener.is_over(chunk.lease))
            assert [item[1] for item in listener.items(chunk.lease)] == ["done"]
            assert not listener.named("exited")
            await until(lambda: not agent.containers())


async def test_launch_when_two_find_the_launcher_lost_then_one_is_started(monkeypatch):
    started = []
    spawn = launcher_client._spawn

    def count_spawn():
        started.append(spawn())
        return started[-1]

    monkeypatch.setattr(launcher_client, "_spawn", count_spawn)
    monkeypatch.setattr(launcher_client, "start_frame", lambda name: {"container": name})
    client = LauncherClient()
    await client.start()
    os.kill(started[0][0], signal.SIGKILL)
    await until(lambda: len(started) == 2)
    orders: list[Any] = ["a", "b"]
    launches = [client.launch(order) for order in orders]
    found = await asyncio.gather(*launches, return_exceptions=True)
    assert [type(error) for error in found] == [ContainerError] * 2
    assert len(started) == 2
    await client.close()
    for pid, _ in started:
        with pytest.raises(ChildProcessError):  # buried
            os.waitpid(pid, os.WNOHANG)


async def test_launch_when_the_launcher_is_killed_in_it_then_the_start_is_lost_and_not_failed(
    tmp_path, monkeypatch
):
    """Whatever the launcher was asked for: its own death is no error of the container."""
    started = []
    spawn = launcher_client._spawn

    def note_spawn():
        started.append(spawn())
        return started[-1]

    monkeypatch.setattr(launcher_client, "_spawn", note_spawn)
    async with (
        running_agent(tmp_path) as agent,
        connected(agent.settings) as (engine, listener),
    ):
        os.kill(started[0][0], signal.SIGSTOP)  # so that the order is in its hands
        first, second = make_chunk(abs, [-1]), make_chunk(abs, [-2], slot="s2")
        engine.submit(NODE, first)
        engine.submit(NODE, second)
        await until(lambda: len(agent.agent._containers._launcher._answers) == 2)
        os.kill(started[0][0], signal.SIGKILL)
        for chunk in (first, second):
            await until(partial(listener.is_over, chunk.lease))
            (failed,) = listener.named("start_failed", chunk.lease)
            assert failed.fields["reason"] == "lost_worker"
            assert "the launcher" in failed.fields["message"]
        again = make_chunk(abs, [-3])
        engine.submit(NODE, again)
        await until(lambda: listener.is_over(again.lease))
        assert [item[1] for item in listener.items(again.lease)] == ["done"]
        await until(lambda: len(agent.containers()) == 1)  # nothing is left of the others


@pytest.fixture
def silent_launcher(monkeypatch):
    """Launchers that are lost when they have begun a supervisor, before they say so; gives their program."""
    program = (
        "import os, socket; from picloud_services.agent import launcher;"
        "launcher.pack_frame = lambda *_: os._exit(1);"
        f"launcher._be_launcher(socket.socket(fileno={launcher_client.LINK_FD}))"
    )
    command = [sys.executable, "-P", "-c", program]
    monkeypatch.setattr(launcher_client, "launcher_command", lambda _fd: command)
    return program.encode()


def processes_of(program):
    found = []
    for pid in list_pids():
        with contextlib.suppress(OSError):
            if program in Path(f"/proc/{pid}/cmdline").read_bytes() and find_process(pid):
                found.append(pid)
    return found


async def test_launch_when_the_launcher_is_lost_with_its_answer_then_no_supervisor_is_left(
    tmp_path, silent_launcher
):
    async with (
        running_agent(tmp_path) as agent,
        connected(agent.settings) as (engine, listener),
    ):
        chunk = make_chunk(abs, [-1])
        engine.submit(NODE, chunk)
        await until(lambda: listener.is_over(chunk.lease))
        (failed,) = listener.named("start_failed", chunk.lease)
        assert failed.fields["reason"] == "lost_worker"
        await until(lambda: not agent.containers())
        # the launcher that replaced it is all there is
        await until(lambda: len(processes_of(silent_launcher)) == 1)


async def test_stop_when_a_lost_start_cannot_be_removed_yet_then_the_other_containers_end(
    tmp_path, monkeypatch
):
    """Its chunk was reported: it must not be given back a second time, nor keep the agent from its end."""
    refused, may_go = [], threading.Event()

    def refuse_lost(order):
        if not (may_go.is_set() or Path(order.folder, "status.json").exists()):
            refused.append(order.container)
            raise OSError("busy")
        clean_up(order)

    monkeypatch.setattr(containers, "CLEAN_SECONDS", 0.01)
    monkeypatch.setattr(containers, "CLEAN_TRIES", 100_000)
    async with running_agent(tmp_path) as agent:
        async with connected(agent.settings) as (engine, listener):
            engine.submit(NODE, make_chunk(time.sleep, [60]))
            await until(lambda: listener.named("started"))
            monkeypatch.setattr(containers, "clean_up", refuse_lost)
            launcher_pid = agent.agent._launcher._pid
            os.kill(launcher_pid, signal.SIGSTOP)  # so that the order is in its hands
            lost = make_chunk(abs, [-1], slot="s2")
            engine.submit(NODE, lost)
            await until(lambda: agent.agent._launcher._answers)
            os.kill(launcher_pid, signal.SIGKILL)
            await until(lambda: listener.is_over(lost.lease) and refused)
            (status,) = agent.settings.run.glob("c/*/status.json")
            runner = json.loads(status.read_bytes())["init_pid"]
            stopping = asyncio.create_task(engine.stop_node(NODE, kill=True))
            await until(lambda: listener.named("exited"))
            engine.acknowledge(NODE, max(event.n for event in listener.events))
            may_go.set()
            await stopping
            await agent.task
            assert find_process(runner) is None
            assert not agent.settings.paths.agent_socket.exists()
            assert not listener.named("returned", lost.lease)
            assert not agent.containers()
        await agent.start()


async def test_launcher_that_ends_each_time_is_begun_again_ever_later(monkeypatch):
    pauses = []

    async def note(seconds):
        pauses.append(seconds)

    def spawn_nothing():
        ours, theirs = socket.socketpair()
        theirs.close()
        return os.posix_spawn("/bin/true", ["true"], {}), ours

    monkeypatch.setattr(launcher_client, "_spawn", spawn_nothing)
    monkeypatch.setattr(launcher_client, "start_frame", lambda name: {"container": name})
    client = LauncherClient()
    async with asyncio.timeout(20):
        monkeypatch.setattr("picloud_services.agent.launcher_client.asyncio.sleep", note)
        await client.start()
        order: Any = "a"
        while len(pauses) < 9:
            with pytest.raises(ContainerError) as raised:
                await client.launch(order)
            assert raised.value.reason == "lost_worker"
        await client.close()
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == launcher_client.CALM_SECONDS


async def test_launcher_that_was_lost_is_replaced_before_anybody_needs_it(monkeypatch):
    started: list[int] = []
    spawn = launcher_client._spawn

    def note_spawn():
        if len(started) == 1:
            started.append(0)
            raise BlockingIOError(11, "no process is left")
        pid, link = spawn()
        started.append(pid)
        return pid, link

    monkeypatch.setattr(launcher_client, "_spawn", note_spawn)
    client = LauncherClient()
    await client.start()
    os.kill(started[0], signal.SIGKILL)
    await until(lambda: len(started) == 2)  # which fails: it is tried again for who needs it
    monkeypatch.setattr(launcher_client, "start_frame", lambda name: {"container": name})
    order: Any = "a"
    with pytest.raises(
        ContainerError, match="could not be started"
    ):  # by a launcher that is there
        await client.launch(order)
    assert len(started) == 3
    os.kill(started[2], signal.SIGKILL)
    await until(lambda: len(started) == 4)
    await client.close()
    for pid in filter(None, started):
        with pytest.raises(ChildProcessError):  # buried
            os.waitpid(pid, os.WNOHANG)


async def test_supervisor_that_is_killed_before_its_runner_is_ready_loses_that_start(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(SupervisorClient, "open", lambda _: None)  # its network takes long
    async with (
        running_agent(tmp_path) as agent,
        connected(agent.settings) as (engine, listener),
    ):
        chunk = make_chunk(abs, [-1])
        monkeypatch.setattr(SupervisorClient, "be_ready", lambda _: None)
        engine.submit(NODE, chunk)
        await until(agent.agent._containers.all)
        (client,) = agent.agent._containers.all()
        await until(lambda: client.process is not None)
        assert client.process is not None
        client.process.kill()
        await until(lambda: listener.is_over(chunk.lease))
        (failed,) = listener.named("start_failed", chunk.lease)
        assert failed.fields["reason"] == "lost_worker"
        await until(lambda: not agent.agent._desk._leases)


def test_fork_when_the_link_closes_then_the_launcher_leaves():
    code = (
        "import os; from picloud_services.agent import launcher; pid, link = launcher.fork(); "
        "link.close(); print(os.waitpid(pid, 0)[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=20, check=True
    )
    assert (done.stdout, done.stderr) == (b"0\n", b"")


async def test_unsent_chunk_when_its_container_is_lost_then_it_is_returned_and_forgotten(
    tmp_path, monkeypatch
):
    def be_ready(client):
        client._is_ready = True  # and nothing is sent for that: one chunk is, not two

    monkeypatch.setattr(SupervisorClient, "be_ready", be_ready)
    async with (
        running_agent(tmp_path) as agent,
        connected(agent.settings) as (engine, listener),
    ):
        lost, behind = make_chunk(time.sleep, [60]), make_chunk(abs, [-1])
        engine.submit(NODE, lost)
        engine.submit(NODE, behind)
        await until(lambda: listener.named("started", lost.lease))
        (client,) = agent.agent._containers.all()
        assert client.process is not None
        client.process.kill()
        await until(lambda: listener.is_over(lost.lease) and listener.is_over(behind.lease))
        assert listener.named("returned", behind.lease)
        await until(lambda: not agent.agent._desk._leases)


@pytest.mark.parametrize("renewed", [None, "ffff"], ids=["stands still", "knows others"])
async def test_lease_is_forgotten_by_a_control_plane_that_renews_others_alone(
    tmp_path, monkeypatch, renewed
):
    monkeypatch.setattr(desk, "FORGOTTEN_SECONDS", 0.1)
    monkeypatch.setattr("picloud_services.dispatch.local_engine.RENEW_SECONDS", 3600.0)
    asked = []
    async with (
        running_agent(tmp_path) as agent,
        connected(agent.settings) as (engine, listener),
    ):
        chunk = make_chunk(time.sleep, [60])
        engine.submit(NODE, chunk)
        await until(lambda: listener.named("started"))
        books = agent.agent._desk
        since = books._leases[chunk.lease].renewed_at
        await until(lambda: time.monotonic() - since > 0.2)
        if renewed is not None:
            assert engine._link is not None
            engine._link.send({"t": "renew", "leases": [renewed]})
            await until(lambda: books._renewed_at)
        with monkeypatch.context() as patched:
            patched.setattr(SupervisorClient, "kill", lambda _, word: asked.append(word))
            books.tick(600.0)
        assert asked == ([] if renewed is None else ["shutdown"])


def test_order_of_an_agent_that_is_gone_is_not_carried_out(monkeypatch):
    answered: list[object] = []
    monkeypatch.setattr(launcher, "_answer", answered.append)
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(pack_frame({"t": "start", "container": "x"}))
        ours.close()
        launcher.serve(theirs)
    assert answered == []
