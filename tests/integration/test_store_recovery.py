"""What survives crashes, restarts, lost nodes and late reports: the real store, a fake engine."""

import asyncio
import contextlib
import time

import pytest

from picloud_jupyter.protocol.errors import Conflict, Unavailable
from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.protocol.jobs import GIB, EndReason, RetryPolicy
from picloud_services.base.database import open_database
from picloud_services.base.sql import Statement
from picloud_services.dispatch import upkeep
from picloud_services.dispatch.engine import EngineEvent
from picloud_services.jobs.leasing import Leased
from picloud_services.jobs.lifecycle import MAX_LOST_STARTS
from picloud_services.jobs.links import SpecBook
from picloud_services.jobs.recovery import load
from picloud_services.jobs.store import lease_text
from tests.tools.fake_engine import Does, FakeEngine, report
from tests.tools.job_system import USER, function, running_system, spec


async def until(condition, seconds: float = 10.0):
    async with asyncio.timeout(seconds):
        while not (found := condition()):
            await asyncio.sleep(0.005)
    return found


@pytest.fixture
def slow() -> FakeEngine:
    return FakeEngine(behaviour=lambda _chunk, _at, a: Does(seconds=0.3, body=a))


async def test_running_job_is_taken_up_again_after_a_restart(tmp_path, slow):
    async with running_system(tmp_path, engine=slow) as system:
        jid = await system.call(b"a", restartable=False)
        await until(lambda: system.live.running)
    async with running_system(tmp_path, engine=slow) as system:
        assert await system.status(jid) == "processing"
        assert await system.join(jid) == {"done": 1}
        assert (await system.service.info(USER, [(jid, jid)], ["attempt"]))[jid] == {
            "attempt": 1
        }
    assert len(slow.submitted) == 1


async def test_job_that_ended_while_the_service_was_down_is_told_again(tmp_path, slow):
    async with running_system(tmp_path, engine=slow) as system:
        jid = await system.call(b"a", restartable=False)
        await until(lambda: system.live.running)
    await until(lambda: not slow.running())
    async with running_system(tmp_path, engine=slow) as system:
        assert await system.join(jid) == {"done": 1}
    assert len(slow.submitted) == 1


async def test_map_without_jobs_yet_still_waits_for_its_dependencies_after_a_restart(tmp_path):
    away = FakeEngine()
    away._nodes["n1"].connected = False
    async with running_system(tmp_path, engine=away) as system:
        first = await system.call()
        fields = spec(depends_on=((first, first),))
        made = await system.service.create_map(USER, fields, "", None, function())
    async with running_system(tmp_path) as system:
        pack = pack_records([b"a", b"b"])
        part = await system.service.put_part(USER, made.map, 0, 0, 2, pack)
        await system.service.seal_map(USER, made.map, 2, 1)
        assert await system.join([(part.first_jid, part.first_jid + 1)]) == {"done": 2}


async def test_queued_jobs_run_after_a_restart(tmp_path):
    away = FakeEngine()
    away._nodes["n1"].connected = False
    async with running_system(tmp_path, engine=away) as system:
        jids = await system.map([b"%d" % i for i in range(2500)])
        call = await system.call()
        assert (
            "no machine"
            in (await system.service.wait(USER, [(call, call)], timeout_seconds=0)).why[call]
        )
    async with running_system(tmp_path) as system:
        assert await system.join([*jids, (call, call)]) == {"done": 2501}


async def test_waiting_jobs_and_open_maps_go_on_after_a_restart(tmp_path, slow):
    async with running_system(tmp_path, engine=slow) as system:
        first = await system.call(b"a")
        waiting = await system.call(b"b", depends_on=((first, first),))
        made = await system.service.create_map(USER, spec(), "", 2, function())
        await system.service.put_part(USER, made.map, 0, 0, 1, pack_records([b"c"]))
    async with running_system(tmp_path, engine=slow) as system:
        await system.service.put_part(USER, made.map, 1, 1, 1, pack_records([b"d"]))
        jids = await system.service.seal_map(USER, made.map, 2, 2)
        assert await system.join([*jids, (waiting, waiting)]) == {"done": 3}


@pytest.mark.parametrize(("restartable", "status"), [(True, "done"), (False, "stalled")])
async def test_lost_machine_runs_again_or_stalls(tmp_path, monkeypatch, restartable, status):
    monkeypatch.setattr(upkeep, "DOUBT_SECONDS", 0.1)
    monkeypatch.setattr("picloud_services.dispatch.dispatcher.DOUBT_SECONDS", 0.1)
    tries = []

    def behave(_chunk, _at, argument):
        tries.append(argument)
        return Does(seconds=30 if len(tries) == 1 else 0, body=argument)

    engine = FakeEngine(behaviour=behave)
    async with running_system(tmp_path, engine=engine) as system:
        jid = await system.call(b"a", restartable=restartable)
        await until(lambda: system.live.running)
        engine.crash("n1")
        engine.connect("n1")
        assert await system.join(jid) == {status: 1}
        item = await system.service.result(USER, jid)
        if restartable:
            assert item.body == b"a"
        else:
            assert item.reason == "node_lost"
            assert "_restartable" in item.message


async def test_late_and_repeated_reports_change_nothing(tmp_path):
    engine = FakeEngine()
    async with running_system(tmp_path, engine=engine) as system:
        jids = await system.map([b"a", b"b", b"c"])
        await system.join(jids)
        events = [
            EngineEvent(
                "n1",
                "batch",
                1000 + n,
                chunk.lease,
                {
                    "items": [[0, "error", 1.0, 0.0, 0, 0, 1, None]],
                    "end": True,
                    "running": None,
                },
                b"!",
            )
            for n, chunk in enumerate(engine.submitted)
        ]
        unknown = EngineEvent(
            "n1", "returned", 2000, "0" * 16, {"first": 0, "count": 1, "over": True}
        )
        for event in [*events, unknown]:
            engine._on_event(event)
        async with asyncio.timeout(10):
            while engine.acknowledged_n < 2000:
                await asyncio.sleep(0.001)
        assert await system.service.counts(USER) == {"done": 3}
        answer = await system.service.results(USER, jids, limit_bytes=100)
        assert [item.body for item in answer.items] == [b"a", b"b", b"c"]


async def test_link_that_breaks_and_comes_back_loses_nothing(tmp_path):
    engine = FakeEngine(behaviour=lambda _chunk, _at, a: Does(seconds=0.002, body=a))
    async with running_system(tmp_path, engine=engine) as system:
        jids = await system.map([b"%d" % i for i in range(300)], restartable=False)
        for _ in range(5):
            await asyncio.sleep(0.02)
            engine.disconnect("n1")
            await asyncio.sleep(0.02)
            engine.connect("n1")
        assert await system.join(jids) == {"done": 300}
        ran = [r for chunk in engine.submitted for r in chunk.jids]
        assert sum(b - a + 1 for a, b in ran) >= 300


async def test_large_results_become_blobs_before_their_row(tmp_path):
    extra = {"file": "ab" * 16, "size": 10**6, "digest": "cd" * 32}
    engine = FakeEngine(behaviour=lambda *_: Does(extra=dict(extra)))
    async with running_system(tmp_path, engine=engine) as system:
        jid = await system.call()
        await system.join(jid)
        item = await system.service.result(USER, jid)
        assert item.blob is not None
        assert (item.blob.blob, item.size_bytes, item.body) == ("ab" * 16, 10**6, None)
        assert system.blobs.adopted == ["ab" * 16]


async def test_failed_start_is_tried_again_and_then_stalls(tmp_path, monkeypatch):
    monkeypatch.setattr("picloud_services.jobs.lifecycle.START_RETRY_SECONDS", 0.01)
    engine = FakeEngine()

    def refuse(node, chunk):
        engine.submitted.append(chunk)
        engine._say(
            node, "start_failed", chunk.lease, {"reason": "start_failed", "message": "no bwrap"}
        )

    engine.submit = refuse  # type: ignore[method-assign]
    async with running_system(tmp_path, engine=engine) as system:
        jid = await system.call(restartable=False)
        assert await system.join(jid) == {"stalled": 1}
        item = await system.service.result(USER, jid)
        assert item.reason == EndReason.START_FAILED
        assert "no bwrap" in item.message
        assert len(engine.submitted) == 3


class LosingEngine(FakeEngine):
    """One whose launcher is killed in each of the next ``left`` starts."""

    left = 0

    def submit(self, node, chunk):
        if not self.left:
            super().submit(node, chunk)
            return
        self.left -= 1
        self.submitted.append(chunk)
        words = {"reason": "lost_worker", "message": "the launcher ended"}
        self._say(node, "start_failed", chunk.lease, words)


async def test_lost_starts_cost_a_job_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("picloud_services.jobs.lifecycle.LOST_START_SECONDS", 0.001)
    engine = LosingEngine()
    async with running_system(tmp_path, engine=engine) as system:
        for restartable in (True, False):
            engine.left = MAX_LOST_STARTS - 1
            jid = await system.call(b"a", restartable=restartable)
            assert await system.join(jid) == {"done": 1}
            found = (await system.service.info(USER, [(jid, jid)], ["attempt"]))[jid]
            assert found == {"attempt": 1}
    assert len(engine.submitted) == 2 * MAX_LOST_STARTS


async def test_starts_that_are_always_lost_end_also_across_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr("picloud_services.jobs.lifecycle.LOST_START_SECONDS", 0.001)
    engine = LosingEngine()
    engine.left = 2 * MAX_LOST_STARTS
    async with running_system(tmp_path, engine=engine) as system:
        jid = await system.call(b"a", restartable=False)
        await until(lambda: len(engine.submitted) > 3)
    async with running_system(tmp_path, engine=engine) as system:
        assert await system.join(jid) == {"stalled": 1}
        item = await system.service.result(USER, jid)
        assert item.reason == EndReason.START_FAILED
        assert f"{MAX_LOST_STARTS} starts in a row were lost" in item.message
    assert MAX_LOST_STARTS <= len(engine.submitted) <= MAX_LOST_STARTS + 1


async def test_crash_in_a_used_runner_is_run_again_in_a_fresh_one(tmp_path):
    def behave(chunk, _at, argument):
        if argument == b"bad" and not chunk.fresh:
            return Does(exits={"wait_status": 11, "oom_count": 0})
        return Does(body=argument)

    async with running_system(tmp_path, behaviour=behave) as system:
        jids = await system.map([b"a", b"bad", b"c"])
        assert await system.join(jids) == {"done": 3}
        assert [c.fresh for c in system.engine.submitted if c.attempt == 2] == [True]


async def test_silent_map_is_given_up(tmp_path, slow):
    async with running_system(tmp_path, engine=slow) as system:
        service = system.service
        blockers = [await system.call(b"x") for _ in range(2)]
        made = await service.create_map(USER, spec(), "", 5, function())
        part = await service.put_part(USER, made.map, 0, 0, 2, pack_records([b"a", b"b"]))
        assert await service.abandon_silent_maps(60) == 0
        assert await service.abandon_silent_maps(0) == 1
        jids = [(part.first_jid, part.first_jid + 1)]
        assert await system.join(jids) == {"stalled": 2}
        assert (await service.result(USER, part.first_jid)).reason == "abandoned"
        with pytest.raises(Exception, match="given up"):
            await service.put_part(USER, made.map, 1, 2, 1, pack_records([b"c"]))
        await system.join([(jid, jid) for jid in blockers])


async def test_blocked_jobs_give_their_cores_to_those_they_wait_for(tmp_path):
    """fib by calls, each waiting for two: 67 jobs on 2 cores."""
    engine = FakeEngine()

    async with running_system(tmp_path, engine=engine) as system:

        async def fib(jid: int, n: int) -> int:
            if n < 2:
                return n
            await until(lambda: jid in system.live.running)
            children = [await system.call(b"%d" % m) for m in (n - 1, n - 2)]
            with system.dispatcher.blocked(jid):
                parts = await asyncio.gather(fib(children[0], n - 1), fib(children[1], n - 2))
                await system.join([(c, c) for c in children])
            done[jid].set()
            return sum(parts)

        done: dict[int, asyncio.Event] = {}

        def behave(chunk, _at, argument):
            jid = chunk.jids[0][0]
            if int(argument) < 2:
                return Does(body=argument)
            event = done.setdefault(jid, asyncio.Event())
            return Does(seconds=0.0 if event.is_set() else 0.02, body=argument)

        original = engine._go_on

        def go_on(node, slot):
            running = engine._nodes[node].slots[slot][0]
            jid = running.chunk.jids[0][0]
            if running.started and not done[jid].is_set():
                loop = asyncio.get_running_loop()
                running.timer = loop.call_later(0.005, go_on, node, slot)
                return
            original(node, slot)

        engine._go_on = go_on  # type: ignore[method-assign]
        engine.behaviour = behave
        root = await system.call(b"8")
        async with asyncio.timeout(30):
            assert await fib(root, 8) == 21
            await system.join(root)
        assert await system.service.counts(USER) == {"done": 67}
        assert all(node.free.cores == 2 for node in system.dispatcher._cluster.nodes.values())


async def test_chunk_whose_lease_is_being_committed_when_the_job_before_it_blocks_goes_elsewhere(
    tmp_path,
):
    def behave(_chunk, _at, argument):
        return Does(seconds=30.0 if argument == b"waits" else 0.0)

    engine = FakeEngine(report(cores=1), behaviour=behave)
    async with running_system(tmp_path, engine=engine) as system:
        await system.join(await system.call(b"x"))  # now an estimate is known
        waiting = await system.call(b"waits")
        await until(lambda: waiting in system.live.running)
        submitting = asyncio.ensure_future(system.call(b"x"))
        cluster = system.dispatcher._cluster
        async with asyncio.timeout(5):
            while len(cluster.leases) < 2:
                await asyncio.sleep(0)  # one turn of the loop: the lease is not committed in it
        assert not any(held.sent for held in cluster.leases.values() if not held.holds(waiting))
        with system.dispatcher.blocked(waiting):
            assert await system.join(await submitting, seconds=5) == {"done": 1}
        await system.service.kill(USER, [(waiting, waiting)])


async def test_elements_behind_a_slow_one_go_to_idle_cores(tmp_path):
    def behave(_chunk, _at, argument):
        return Does(seconds=3.0 if argument == b"slow" else 0.001)

    async with running_system(tmp_path, behaviour=behave) as system:
        await system.join(await system.map([b"x"] * 200))  # now an estimate is known
        jids = await system.map([b"slow"] + [b"x"] * 60)
        others = [(jids[0][0] + 1, jids[0][1])]
        assert await system.join(others, seconds=2.5) == {"done": 60}
        await system.service.kill(USER, jids)


async def test_small_user_waits_little_behind_a_large_one(tmp_path):
    def behave(_chunk, _at, _argument):
        return Does(seconds=0.001)

    async with running_system(tmp_path, behaviour=behave) as system:
        large = await system.map([b"x"] * 4000, user_id=1)
        await asyncio.sleep(0.3)
        loop = asyncio.get_running_loop()
        started = loop.time()
        small = await system.map([b"x"] * 10, user_id=2)
        await system.join(small, user_id=2)
        assert loop.time() - started < 1.5
        assert (await system.service.counts(1)).get("queued", 0) > 0
        await system.service.kill(1, large)


async def test_lower_priority_numbers_and_earlier_batches_run_first(tmp_path):
    order = []

    def behave(_chunk, _at, argument):
        if argument == b"block":
            return Does(seconds=0.2)
        order.append(argument)
        return Does()

    async with running_system(tmp_path, behaviour=behave) as system:
        for _ in range(2):
            await system.call(b"block")
        jids = [
            await system.call(name, priority=priority, func=function(name))
            for name, priority in ((b"late", 9), (b"second", 5), (b"third", 5), (b"first", 1))
        ]
        await system.join([(jid, jid) for jid in jids])
    assert order == [b"first", b"second", b"third", b"late"]


async def test_short_call_runs_beside_chunks_of_short_elements(tmp_path):
    def behave(_chunk, _at, argument):
        return Does(seconds=0.005 if argument == b"x" else 0)

    async with running_system(tmp_path, behaviour=behave) as system:
        short = function(b"short")
        await system.join(await system.call(b"call", func=short))
        jids = await system.map([b"x"] * 400)
        await until(
            lambda: (
                system.engine.running() == 2
                and len(system.engine.submitted[-1].arguments) > 100
            )
        )
        loop = asyncio.get_running_loop()
        started = loop.time()
        await system.join(await system.call(b"call", func=short))
        assert loop.time() - started < 0.15
        assert not (await system.service.wait(USER, jids, timeout_seconds=0)).finished
        await system.service.kill(USER, jids)


async def test_cores_that_others_use_are_left_alone(tmp_path):
    engine = FakeEngine(
        report(cores=4, memory_bytes=32 * GIB), behaviour=lambda *_: Does(seconds=0.05)
    )
    engine.grant = 1
    async with running_system(tmp_path, engine=engine) as system:
        jids = await system.map([b"x"] * 6)
        await system.join(jids)
        assert engine.highest == 1


async def test_job_of_many_cores_claims_them_all(tmp_path):
    engine = FakeEngine(report(cores=4, memory_bytes=32 * GIB))
    claimed = []

    def claim(node, wanted, least=1.0):
        claimed.append(wanted)
        return wanted

    engine.claim_cores = claim  # type: ignore[method-assign]
    async with running_system(tmp_path, engine=engine) as system:
        jid = await system.call(core_type="c2", cores=4)
        assert await system.join(jid) == {"done": 1}
        jids = await system.map([b"a"] * 3, core_type="c2", cores=4)
        assert await system.join(jids) == {"done": 3}
    assert max(claimed) == 4
    assert engine.highest == 1


async def test_cancelled_submit_leaves_no_core_taken(tmp_path):
    async with running_system(tmp_path) as system:
        for _ in range(5):
            task = asyncio.ensure_future(system.call())
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await system.join(await system.call())
        await until(lambda: not system.live.batches)
        assert system.dispatcher._cluster.nodes["n1"].free.cores == 2


@pytest.mark.parametrize("jump_seconds", [0.0, -1e8])
async def test_retry_after_hours_is_not_brought_forward_by_a_restart(tmp_path, jump_seconds):
    failing = FakeEngine(behaviour=lambda *_: Does(reason=EndReason.ERROR))
    async with running_system(tmp_path, engine=failing) as system:
        jid = await system.call(retries=RetryPolicy(count=1, delay_seconds=7200.0))
        await until(lambda: len(system.dispatcher._delayed))
    database = open_database(tmp_path / "store.db")
    await database.open()
    loaded = await database.read(lambda tx: load(tx, SpecBook(), time.time() + jump_seconds))
    [ready] = loaded.batches[0].parts[0].ready
    await database.close()
    assert ready.first_jid == jid
    assert 7140 < ready.delay_seconds <= 7200


async def test_giving_up_a_map_goes_on_after_a_crash_cut_it_off(tmp_path, slow, monkeypatch):
    def is_killed(*_, **__):
        raise Conflict("the service is killed here")

    away = FakeEngine()
    away._nodes["n1"].connected = False
    async with running_system(tmp_path, engine=away) as system:
        made = await system.service.create_map(USER, spec(), "", 5, function())
        part = await system.service.put_part(USER, made.map, 0, 0, 1, pack_records([b"a"]))
        monkeypatch.setattr("picloud_services.jobs.maps.move", is_killed)
        assert await system.service.abandon_silent_maps(0) == 0
    monkeypatch.undo()
    async with running_system(tmp_path, engine=slow) as system:
        await until(system.engine.nodes)
        await system.join(await system.call())
        assert await system.status(part.first_jid) == "queued"
        with pytest.raises(Conflict, match="given up"):  # which makes it no younger
            await system.service.put_part(USER, made.map, 1, 1, 1, pack_records([b"b"]))
        assert await system.service.abandon_silent_maps(60) == 1
        assert await system.status(part.first_jid) == "stalled"


async def test_lease_that_was_lost_while_its_node_was_away_is_ended_when_it_is_back(
    tmp_path, slow, monkeypatch
):
    monkeypatch.setattr("picloud_services.dispatch.dispatcher.AWAY_SECONDS", 0.05)
    slow.behaviour = lambda chunk, _at, a: Does(seconds=60 if chunk.attempt == 1 else 0, body=a)
    async with running_system(tmp_path, engine=slow) as system:
        jid = await system.call(b"a")
        await until(lambda: system.live.running)
        slow.disconnect("n1")
        await until(lambda: not system.dispatcher._cluster.leases)
        assert slow.running() == 1
        slow.connect("n1")
        assert await system.join(jid) == {"done": 1}
        await until(lambda: not slow.running())
        assert [chunk.attempt for chunk in slow.submitted] == [1, 2]


async def test_lease_whose_commit_was_not_answered_is_written_once(tmp_path, slow, monkeypatch):
    """As where the connection to a PostgreSQL broke between its commit and its answer."""
    monkeypatch.setattr("picloud_services.dispatch.giving.RETRY_SECONDS", 0.01)
    async with running_system(tmp_path, engine=slow) as system:
        commit = system.database._commit
        lost: list[str] = []

        def commit_unheard(group, *, on_loop=False):
            commit(group, on_loop=on_loop)
            for job in group:
                if isinstance(job.result, Leased) and not lost:
                    lost.append(job.result.request.lease.lease)
                    raise Unavailable("the answer was lost")

        monkeypatch.setattr(system.database, "_commit", commit_unheard)
        jids = await system.map([b"a"])
        await until(lambda: slow.submitted)
        leases = await system.database.read(
            lambda tx: tx.all(Statement("SELECT lease FROM leases"))
        )
        assert lost
        assert [lease_text(lease) for (lease,) in leases] == [slow.submitted[0].lease]
        assert await system.join(jids) == {"done": 1}
