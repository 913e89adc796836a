"""A kill holds even where the node that was to carry it out is lost, or the job began anew."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from picloud_jupyter.protocol.jobs import RetryPolicy
from picloud_services.base.sql import Statement
from picloud_services.jobs import killing
from tests.tools.fake_engine import Does, FakeEngine
from tests.tools.job_system import USER, System, running_system

_WISHED = Statement("UPDATE jobs SET kill_wished = 1")
_LEFT_OPEN = Statement(
    "SELECT batch FROM batches WHERE open <> 0 OR queued <> 0 OR killed <> 1"
)


@pytest.fixture
async def system(tmp_path, monkeypatch) -> AsyncIterator[System]:
    """A service whose node hears no kills, and which waits for them for a moment only."""
    monkeypatch.setattr(killing, "KILL_SECONDS", 0.2)
    async with running_system(tmp_path) as found:
        monkeypatch.setattr(found.engine, "kill", lambda *_: None)
        yield found


async def _running(system: System, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while len(system.live.running) < count:
            await asyncio.sleep(0.005)


async def test_killed_job_whose_container_is_lost_does_not_run_again(system):
    system.engine.behaviour = lambda *_: Does(seconds=60)
    jid = await system.call()
    await _running(system)
    assert await system.service.kill(USER, [(jid, jid)]) == 1
    assert await system.status(jid) == "processing"
    (slot,) = system.engine._nodes["n1"].slots
    system.engine._exit("n1", slot, {"wait_status": 9, "oom_count": 0})
    assert await system.join(jid) == {"killed": 1}
    assert (await system.service.result(USER, jid)).reason == "killed"
    assert len(system.engine.submitted) == 1
    assert not system.live.killing
    assert await system.service.counts(USER) == {"killed": 1}


async def test_killed_job_whose_lease_is_lost_does_not_run_again(system):
    system.engine.behaviour = lambda *_: Does(seconds=60)
    ((first, _),) = await system.map([b"x"] * 4)
    await _running(system)
    await system.service.kill(USER, [(first, first)])
    held = system.dispatcher.lease_of(first)
    assert held is not None
    system.engine.behaviour = lambda *_: Does()
    system.engine.crash("n1")
    for lease in tuple(system.dispatcher._cluster.leases):
        system.dispatcher._lose(lease, "n1")
    system.engine.connect("n1")
    assert await system.join([(first, first + 3)]) == {"killed": 1, "done": 3}


async def test_killed_job_that_waits_for_its_next_attempt_is_ended(system, monkeypatch):
    """It failed, and was queued anew, after it was seen running and before the command."""
    monkeypatch.setattr(killing, "KILL_SECONDS", 10)
    monkeypatch.setattr(system.live, "wish_end", lambda _jid: None)
    system.engine.behaviour = lambda *_: Does("error", seconds=0.2)
    jid = await system.call(retries=RetryPolicy(count=5, delay_seconds=60))
    await _running(system)
    assert await system.service.kill(USER, [(jid, jid)]) == 1
    assert await system.status(jid) == "killed"


async def test_kills_that_no_node_carried_out_are_ended_each_in_its_own_batch(tmp_path):
    """Calls have neighbouring jids, and each its own counters."""
    away = FakeEngine()
    away._nodes["n1"].connected = False
    async with running_system(tmp_path, engine=away) as system:
        jids = [await system.call(user_id=user) for user in (USER, USER + 1)]
        await system.database.write(lambda tx: tx.run(_WISHED))
    async with running_system(tmp_path, engine=away) as system:
        for jid, user in zip(jids, (USER, USER + 1), strict=True):
            assert await system.status(jid, user_id=user) == "killed"
            assert await system.service.counts(user) == {"killed": 1}
        assert await system.database.read(lambda tx: tx.all(_LEFT_OPEN)) == []
