"""Single calls through service, store and dispatcher: who waits, who leaves early, who may not submit."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from picloud_jupyter.protocol.errors import NotFound, QuotaExceeded
from picloud_jupyter.protocol.users import Quota
from tests.tools.fake_engine import Does
from tests.tools.job_system import USER, System, running_system

OTHER = 2000


def takes_its_argument(_chunk, _position, argument) -> Does:
    return Does(seconds=float(argument), body=argument)


@pytest.fixture
async def system(tmp_path) -> AsyncIterator[System]:
    async with running_system(tmp_path, behaviour=takes_its_argument) as found:
        yield found


async def results(system, jid, wait_seconds, user_id=USER):
    asked = system.service.results(
        user_id, [(jid, jid)], limit_bytes=100, wait_seconds=wait_seconds
    )
    return [item.body for item in (await asked).items]


def watchers(system, jid):
    span = system.live.find(jid)
    return None if span is None else span.watchers


async def test_result_waited_for_comes_when_its_job_ends(system):
    jid = await system.call(b"0.05")
    waiting = asyncio.create_task(results(system, jid, 30))
    assert await results(system, jid, 0) == []
    assert await waiting == [b"0.05"]
    assert await results(system, jid, 30) == [b"0.05"]


async def test_wait_that_ends_first_gives_nothing_and_leaves_no_watcher(system):
    jid = await system.call(b"5")
    assert await results(system, jid, 0.05) == []
    assert watchers(system, jid) == []


async def test_wait_that_is_cancelled_leaves_no_watcher(system):
    jid = await system.call(b"5")
    waiting = asyncio.create_task(results(system, jid, 30))
    await asyncio.sleep(0)
    assert len(watchers(system, jid)) == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert watchers(system, jid) == []


async def test_wait_for_a_job_of_somebody_else_is_refused(system):
    jid = await system.call(b"5")
    with pytest.raises(NotFound):
        await results(system, jid, 30, OTHER)


async def test_call_whose_submitter_leaves_before_its_commit_runs_all_the_same(system):
    first = await system.call(b"0")
    await system.join(first)
    slow = system.database.write(lambda _tx: time.sleep(0.1))
    await asyncio.sleep(0)  # it is on the writer's thread
    submitting = asyncio.create_task(system.call(b"0"))
    await asyncio.sleep(0)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    await slow
    while await system.service.counts(USER) != {"done": 2}:
        await asyncio.sleep(0.01)
    assert not system.dispatcher._cluster.leases


async def test_call_that_is_refused_gives_its_lease_back(tmp_path):
    async with running_system(
        tmp_path, behaviour=takes_its_argument, quota=Quota(cost=1e-12)
    ) as system:
        await system.join(await system.call(b"0.01"))
        for _ in range(5):
            with pytest.raises(QuotaExceeded):
                await system.call(b"0")
        assert not system.dispatcher._cluster.leases
        again = await system.call(b"0", user_id=OTHER)
        assert await system.join(again, user_id=OTHER) == {"done": 1}


async def test_key_that_was_used_answers_a_user_over_the_cap(tmp_path):
    async with running_system(
        tmp_path, behaviour=takes_its_argument, quota=Quota(cost=1e-12)
    ) as system:
        jid = await system.call(b"0.01", key="k")
        await system.join(jid)
        assert await system.call(b"0.01", key="k") == jid
        with pytest.raises(QuotaExceeded):
            await system.call(b"0.01", key="other")


async def test_counts_tell_waiting_queued_processing_and_finished_apart(system):
    await system.join(await system.call(b"0"))
    running = [await system.call(b"5") for _ in range(2)]
    queued = [await system.call(b"5") for _ in range(3)]
    await system.call(b"0", depends_on=((running[0], running[0]),))
    await system.call(b"5", user_id=OTHER)
    while (await system.service.counts(USER)).get("processing") != 2:
        await asyncio.sleep(0.01)
    counts = {"done": 1, "processing": 2, "queued": 3, "waiting": 1}
    assert await system.service.counts(USER) == counts
    assert await system.service.counts(OTHER) == {"queued": 1}
    await system.service.kill(USER, [(jid, jid) for jid in queued])
    counts = {"done": 1, "processing": 2, "killed": 3, "waiting": 1}
    assert await system.service.counts(USER) == counts


async def test_counts_are_the_same_after_a_restart(tmp_path):
    async with running_system(tmp_path, behaviour=takes_its_argument) as system:
        await system.join(await system.call(b"0"))
        first = await system.call(b"5")
        await system.call(b"0", depends_on=((first, first),))
    async with running_system(tmp_path, behaviour=takes_its_argument) as system:
        counts = await system.service.counts(USER)
        assert counts.pop("queued", 0) + counts.pop("processing", 0) == 1
        assert counts == {"done": 1, "waiting": 1}


async def test_results_of_several_come_when_any_has_ended(system):
    slow, quick = await system.call(b"5"), await system.call(b"0.05")
    asked = system.service.results(
        USER, [(slow, slow), (quick, quick)], limit_bytes=100, wait_seconds=30
    )
    assert [item.jid for item in (await asked).items] == [quick]
    again = system.service.results(
        USER, [(slow, slow), (quick, quick)], limit_bytes=100, wait_seconds=30
    )
    assert [item.jid for item in (await asyncio.wait_for(again, 3)).items] == [quick]
    none = system.service.results(
        USER, [(slow, slow), (slow + 9, slow + 9)], limit_bytes=100, wait_seconds=0.05
    )
    with pytest.raises(NotFound):
        await none
    assert watchers(system, slow) == []
