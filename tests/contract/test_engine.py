"""What every `Engine` promises the dispatcher; run against the local engine and a real agent."""

import asyncio
import contextlib
import functools
import os
import time
from dataclasses import dataclass

import pytest

from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.serialize.payload import dump_call, load
from picloud_services.dispatch.engine import Engine, FilePayload
from tests.tools.running_agent import (
    NODE,
    Listener,
    RunningAgent,
    connected,
    make_chunk,
    make_spec,
    running_agent,
    until,
)


@dataclass
class Case:
    """An engine with what stands behind it."""

    engine: Engine
    said: Listener
    node: str
    agent: RunningAgent

    def submit(self, function, values, **changes):
        chunk = make_chunk(function, values, **changes)
        self.engine.submit(self.node, chunk)
        return chunk

    async def over(self, *chunks) -> None:
        for chunk in chunks:
            await until(functools.partial(self.said.is_over, chunk.lease))

    def values(self, chunk) -> list[object]:
        return [load(body) for body in self.said.bodies(chunk.lease)]


@pytest.fixture(params=["local"])
async def case(tmp_path):
    async with (
        running_agent(tmp_path) as agent,
        connected(agent.settings) as (engine, said),
    ):
        yield Case(engine, said, NODE, agent)


def double(x):
    return 2 * x


def say(x):
    print("element", x)
    return x


def process_id(_x):
    return os.getpid()


def make_waiting_function(folder):
    """A function that says that it runs, then waits until the test lets it go."""

    def wait(x):
        (folder / f"started-{x}").touch()
        while not (folder / "go").exists():
            time.sleep(0.002)
        return x

    return wait


def started(folder, x):
    return (folder / f"started-{x}").exists


async def test_submit_when_the_chunk_runs_then_each_position_has_its_result(case):
    chunk = case.submit(double, list(range(100)))
    await case.over(chunk)
    assert case.said.covered(chunk.lease) == list(range(100))
    assert case.values(chunk) == [2 * x for x in range(100)]
    assert {item[1] for item in case.said.items(chunk.lease)} == {"done"}


async def test_submit_when_a_slot_gets_many_chunks_then_they_run_one_after_another(case):
    chunks = [case.submit(process_id, [x]) for x in range(5)]
    await case.over(*chunks)
    ends = [case.said.items(chunk.lease)[0][2] for chunk in chunks]
    assert ends == sorted(ends)
    assert len({case.values(chunk)[0] for chunk in chunks}) == 1


async def test_submit_when_slots_differ_then_chunks_run_side_by_side(case, tmp_path):
    wait = make_waiting_function(tmp_path)
    chunks = [case.submit(wait, [x], slot=f"s{x}") for x in range(2)]
    for x in range(2):
        await until(started(tmp_path, x))
    (tmp_path / "go").touch()
    await case.over(*chunks)


async def test_submit_when_the_function_fails_then_its_reason_says_so(case):
    chunk = case.submit(lambda x: 1 // x, [1, 0])
    await case.over(chunk)
    assert [item[1] for item in case.said.items(chunk.lease)] == ["done", "error"]


async def test_submit_when_python_is_missing_then_start_failed_comes(case):
    spec = make_spec()
    python = type(spec.host_python)("/nowhere/python3", "/nowhere", "/nowhere", "3")
    bad = type(spec)(spec.user_id, python)
    chunk = case.submit(double, [1], spec=bad)
    await case.over(chunk)
    (event,) = case.said.named("start_failed", chunk.lease)
    assert "/nowhere" in event.fields["message"]


async def test_single_use_when_chunks_follow_then_each_has_a_process_of_its_own(case):
    chunks = [case.submit(process_id, [x], single_use=True) for x in range(3)]
    chunks.append(case.submit(process_id, [3]))
    await case.over(*chunks)
    assert len({case.values(chunk)[0] for chunk in chunks}) == 4


async def test_fresh_when_the_slot_has_run_something_then_a_new_process_runs_it(case):
    first = case.submit(process_id, [0])
    await case.over(first)
    second = case.submit(process_id, [0], fresh=True)
    third = case.submit(process_id, [0])
    await case.over(second, third)
    assert case.values(first) != case.values(second) == case.values(third)


async def test_release_when_another_slot_has_the_same_sandbox_then_its_process_serves_it(case):
    first = case.submit(process_id, [0])
    await case.over(first)
    case.engine.release(case.node, "s1")
    second = case.submit(process_id, [0], slot="another")
    await case.over(second)
    assert case.values(first) == case.values(second)


async def test_revoke_when_the_first_element_runs_then_the_others_come_back(case, tmp_path):
    chunk = case.submit(make_waiting_function(tmp_path), list(range(10)))
    await until(started(tmp_path, 0))
    case.engine.revoke(case.node, chunk.lease)
    await until(lambda: case.said.named("returned", chunk.lease))
    (tmp_path / "go").touch()
    await case.over(chunk)
    (event,) = case.said.named("returned", chunk.lease)
    assert (event.fields["first"], event.fields["count"]) == (1, 9)
    assert case.said.covered(chunk.lease) == list(range(10))


@pytest.mark.parametrize("ahead", [1, 2])
async def test_revoke_when_the_chunk_waits_then_all_of_it_comes_back(case, tmp_path, ahead):
    wait = make_waiting_function(tmp_path)
    before = [case.submit(wait, [x]) for x in range(ahead)]
    chunk = case.submit(wait, ["a", "b"])
    await until(started(tmp_path, 0))
    case.engine.revoke(case.node, chunk.lease)
    await case.over(chunk)
    (event,) = case.said.named("returned", chunk.lease)
    assert (event.fields["first"], event.fields["count"]) == (0, 2)
    (tmp_path / "go").touch()
    await case.over(*before)


async def test_kill_when_its_position_runs_then_it_ends_and_the_rest_comes_back(case, tmp_path):
    chunk = case.submit(make_waiting_function(tmp_path), list(range(3)))
    behind = case.submit(double, [21])
    await until(started(tmp_path, 0))
    case.engine.kill(case.node, chunk.lease, 0, "killed")
    await case.over(chunk, behind)
    (event,) = case.said.named("exited", chunk.lease)
    assert (event.fields["position"], event.fields["asked"]) == (0, "killed")
    assert case.said.covered(chunk.lease) == [0, 1, 2]
    again = case.submit(double, [21])
    await case.over(again)
    assert case.values(again) == [42]


async def test_kill_when_no_position_is_named_then_what_runs_of_that_lease_ends(case, tmp_path):
    chunk = case.submit(make_waiting_function(tmp_path), list(range(3)))
    behind = case.submit(double, [21])
    await until(started(tmp_path, 0))
    case.engine.kill(case.node, behind.lease, None, "killed")
    await case.over(behind)
    assert not case.said.named("exited")
    case.engine.kill(case.node, chunk.lease, None, "killed")
    await case.over(chunk)
    (event,) = case.said.named("exited", chunk.lease)
    assert (event.fields["position"], event.fields["asked"]) == (0, "killed")
    assert case.said.covered(chunk.lease) == [0, 1, 2]


async def test_kill_when_another_position_runs_then_what_waits_comes_back(case, tmp_path):
    chunk = case.submit(make_waiting_function(tmp_path), list(range(3)))
    await until(started(tmp_path, 0))
    case.engine.kill(case.node, chunk.lease, 2, "killed")
    await until(lambda: case.said.named("returned", chunk.lease))
    (tmp_path / "go").touch()
    await case.over(chunk)
    assert case.said.covered(chunk.lease) == [0, 1, 2]
    assert not case.said.named("exited", chunk.lease)


async def test_exit_when_an_element_ends_the_process_then_exited_names_it(case):
    chunk = case.submit(lambda x: os._exit(3) if x == 1 else x, [0, 1, 2])
    await case.over(chunk)
    (event,) = case.said.named("exited", chunk.lease)
    assert event.fields["position"] == 1
    assert os.waitstatus_to_exitcode(event.fields["wait_status"]) == 3
    assert case.said.covered(chunk.lease) == [0, 1, 2]


async def test_large_result_when_it_is_reported_then_it_is_a_sealed_file_of_the_service(case):
    chunk = case.submit(lambda n: b"x" * n, [10, 1_000_000, 20])
    await case.over(chunk)
    small, large, _ = case.said.items(chunk.lease)
    assert small[7] is None
    path = case.agent.settings.home / "blobs" / "incoming" / large[7]["file"]
    assert path.stat().st_mode & 0o777 == 0o400
    assert path.stat().st_size == large[7]["size"]
    assert load(path.read_bytes()) == b"x" * 1_000_000
    assert [load(body) for body in case.said.bodies(chunk.lease) if body] == [
        b"x" * 10,
        b"x" * 20,
    ]


async def test_file_payload_when_an_argument_is_a_file_then_the_element_gets_it(case, tmp_path):
    path = tmp_path / "argument"
    path.write_bytes(b"".join(dump_call((b"y" * 100_000,), {})))
    file = FilePayload(0, str(path), path.stat().st_size)
    small = b"".join(dump_call((b"abc",), {}))
    chunk = case.submit(len, [0, 0], files=(file,), arguments=pack_records([b"", small]))
    await case.over(chunk)
    assert case.values(chunk) == [100_000, 3]


async def test_read_output_when_elements_print_then_each_has_its_own(case):
    chunk = case.submit(say, [0, 1])
    await case.over(chunk)
    part = await case.engine.read_output(case.node, chunk.lease, 1, "stdout", 0, 100)
    assert (part.data, part.finished) == (b"element 1\n", True)
    await case.engine.delete_output(case.node, [chunk.lease])
    part = await case.engine.read_output(case.node, chunk.lease, 1, "stdout", 0, 100)
    assert part.data == b""


async def test_sweep_output_then_what_no_row_names_is_removed(case):
    chunks = [case.submit(say, [0]) for _ in range(2)]
    await case.over(*chunks)
    named, unnamed = (chunk.lease for chunk in chunks)

    async def ask(leases):
        return {named}.intersection(leases)

    await case.engine.sweep_output(ask, before_at=time.time() + 60)
    for lease, data in ((named, b"element 0\n"), (unnamed, b"")):
        part = await case.engine.read_output(case.node, lease, 0, "stdout", 0, 100)
        assert part.data == data


async def test_reconnect_when_events_were_not_acknowledged_then_a_new_engine_gets_them(case):
    first, second = case.submit(double, [1]), case.submit(double, [2])
    await case.over(first, second)
    case.engine.acknowledge(case.node, case.said.named("batch", first.lease)[-1].n)
    await case.engine.stop()
    async with connected(case.agent.settings) as (_, said):
        await until(lambda: said.is_over(second.lease))
        assert not said.named("batch", first.lease)
        assert said.named("node_up")[0].fields["leases"] == {}


async def test_reconnect_when_a_chunk_runs_then_it_is_listed_and_goes_on(case, tmp_path):
    chunk = case.submit(make_waiting_function(tmp_path), [7])
    await until(started(tmp_path, 7))
    await case.engine.stop()
    async with connected(case.agent.settings) as (_, said):
        assert said.named("node_up")[0].fields["leases"] == {chunk.lease: "s1"}
        (tmp_path / "go").touch()
        await until(lambda: said.is_over(chunk.lease))
        assert said.covered(chunk.lease) == [0]


async def test_agent_restart_when_chunks_run_then_they_go_on_and_are_reported_once(
    case, tmp_path
):
    wait = make_waiting_function(tmp_path)
    chunks = [case.submit(wait, [x], slot=f"s{x % 2}") for x in range(4)]
    for x in range(2):
        await until(started(tmp_path, x))
    before = case.agent.containers()
    await case.agent.restart()
    assert case.agent.containers() == before
    await until(lambda: len(case.said.named("node_up")) == 2)
    assert case.said.named("node_up")[1].fields["leases"] == {
        chunk.lease: chunk.slot for chunk in chunks
    }
    (tmp_path / "go").touch()
    await case.over(*chunks)
    assert [case.values(chunk) for chunk in chunks] == [[0], [1], [2], [3]]


async def test_agent_restart_when_a_kill_was_asked_meanwhile_then_it_is_done(case, tmp_path):
    chunk = case.submit(make_waiting_function(tmp_path), [0])
    await until(started(tmp_path, 0))
    await case.agent.stop(kill=False)
    await until(lambda: case.said.named("node_down"))
    case.engine.kill(case.node, chunk.lease, 0, "killed")
    await case.agent.start()
    await case.over(chunk)
    assert case.said.named("exited", chunk.lease)[0].fields["asked"] == "killed"


async def test_nodes_when_the_agent_leaves_then_there_is_none_and_a_submit_is_dropped(case):
    await case.agent.stop(kill=True)
    await until(lambda: case.said.named("node_down"))
    assert case.engine.nodes() == []
    chunk = case.submit(double, [1])
    await case.agent.start()
    await until(lambda: len(case.said.named("node_up")) == 2)
    assert chunk.lease not in case.said.named("node_up")[1].fields["leases"]


async def test_claim_cores_when_more_is_wanted_than_the_node_has_then_it_grants_those(case):
    assert case.engine.claim_cores(case.node, 1) == 1
    assert case.engine.claim_cores(case.node, 100) == 2
    assert case.engine.claim_cores("unknown", 1) == 0


async def test_events_when_a_batch_is_open_then_results_come_before_its_end(case, tmp_path):
    def wait_at_the_last(x):
        while x == 2 and not (tmp_path / "go").exists():
            time.sleep(0.002)
        return x

    chunk = case.submit(wait_at_the_last, [0, 1, 2])
    with contextlib.suppress(asyncio.CancelledError):
        await until(lambda: case.said.covered(chunk.lease) == [0, 1])
    (tmp_path / "go").touch()
    await case.over(chunk)
    assert case.said.covered(chunk.lease) == [0, 1, 2]
