"""Quotas in a service with its store and a fake engine: what is held back, what goes on, what is lost."""

import asyncio

import pytest

from picloud_jupyter.protocol.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded
from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.protocol.jobs import GIB, EndReason
from picloud_jupyter.protocol.users import Quota
from picloud_services.base.sql import Statement
from picloud_services.jobs.ending import SLICE
from tests.tools.fake_engine import Does, FakeEngine, report
from tests.tools.job_system import USER, System, function, running_system, spec

OTHER = 2000


async def until(check, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.005)


async def why(system: System, jid: int, user_id: int = USER) -> str:
    answer = await system.service.wait(user_id, [(jid, jid)], timeout_seconds=0)
    return answer.why[jid]


def four_cores(seconds: float = 0.02) -> FakeEngine:
    return FakeEngine(report(cores=4), behaviour=lambda *_: Does(seconds=seconds))


# ------------------------------------------------------------------------------ cores, memory
async def test_running_jobs_stay_within_the_quota_of_cores(tmp_path):
    async with running_system(tmp_path, engine=four_cores()) as system:
        await system.accounts.set_quota(USER, Quota(cores=2))
        jids = await system.map([b"x"] * 60)
        others = await system.map([b"x"] * 4, user_id=OTHER)
        most = 0.0
        while not (await system.service.wait(USER, jids, timeout_seconds=0)).finished:
            held = system.dispatcher.held()
            most = max(most, held[USER].cores if USER in held else 0)
            await asyncio.sleep(0.002)
        assert most == 2
        assert await system.join(others, user_id=OTHER) == {"done": 4}


async def test_queued_job_names_the_quota_and_starts_when_it_is_raised(tmp_path):
    async with running_system(tmp_path, engine=four_cores(5)) as system:
        await system.accounts.set_quota(USER, Quota(cores=1))
        first = await system.call()
        second = await system.call()
        assert (await why(system, second)).startswith(
            "queued because your jobs hold 1 core, and your quota is 1 core"
        )
        await system.accounts.set_quota(USER, Quota(memory_bytes=3 * GIB))
        assert "your quota is 3.0 GiB" in await why(system, second)
        await system.accounts.set_quota(USER, Quota())
        await until(lambda: len(system.live.running) == 2)
        await system.service.kill(USER, [(first, second)])


async def test_job_that_needs_more_than_the_quota_is_refused_at_submit(tmp_path):
    async with running_system(tmp_path, quota=Quota(cores=2), engine=four_cores()) as system:
        with pytest.raises(QuotaExceeded, match="It needs 4 cores, and your quota is 2 cores"):
            await system.call(core_type="c2", cores=4)
        with pytest.raises(QuotaExceeded) as caught:
            await system.map([b"x"], core_type="c2", cores=4)
        assert caught.value.reason == EndReason.NEVER_SCHEDULED
        await system.accounts.set_quota(USER, Quota(cores=0))
        assert await system.join(await system.call(core_type="c2", cores=4)) == {"done": 1}


# --------------------------------------------------------------------------------------- cost
async def test_map_that_reaches_the_quota_of_cost_waits_and_goes_on_when_it_is_raised(tmp_path):
    async with running_system(tmp_path, engine=four_cores(0.005)) as system:
        await system.accounts.set_quota(USER, Quota(cost=1e-6))
        jids = await system.map([b"x"] * 500, part_count=100)  # each part is taken
        await until(lambda: system.accounts.is_paused(USER))
        await until(lambda: not system.engine.running())
        answer = await system.service.wait(USER, jids, timeout_seconds=0)
        assert 0 < answer.counts["queued"] < 500
        assert "your jobs have cost" in await why(system, jids[0][1])
        with pytest.raises(QuotaExceeded) as caught:
            await system.call()
        assert caught.value.reason == EndReason.CAP_REACHED
        assert await system.join(await system.call(user_id=OTHER), user_id=OTHER)
        await system.accounts.set_quota(USER, Quota(cost=0))
        assert await system.join(jids) == {"done": 500}


# --------------------------------------------------------------------------------------- disk
async def test_part_over_the_quota_of_the_disk_is_refused_and_comes_again_after_it_is_raised(
    tmp_path,
):
    async with running_system(tmp_path, quota=Quota(disk_bytes=5000)) as system:
        service = system.service
        made = await service.create_map(USER, spec(), "", 20, function())
        pack = pack_records([b"x" * 200] * 10)
        await service.put_part(USER, made.map, 0, 0, 10, pack)
        with pytest.raises(QuotaExceeded, match="of the disk, this needs .* more"):
            await service.put_part(USER, made.map, 1, 10, 10, pack)
        with pytest.raises(Conflict):
            await service.seal_map(USER, made.map, 20, 2)
        await system.accounts.set_quota(USER, Quota(disk_bytes=20_000))
        await service.put_part(USER, made.map, 1, 10, 10, pack)
        assert await system.join(await service.seal_map(USER, made.map, 20, 2)) == {"done": 20}


async def test_map_may_be_sealed_short_of_the_part_that_was_refused(tmp_path):
    async with running_system(tmp_path, quota=Quota(disk_bytes=5000)) as system:
        service = system.service
        made = await service.create_map(USER, spec(), "", 20, function())
        pack = pack_records([b"x" * 200] * 10)
        await service.put_part(USER, made.map, 0, 0, 10, pack)
        with pytest.raises(Conflict, match="was made for 20"):
            await service.seal_map(USER, made.map, 10, 1)
        jids = await service.seal_map(USER, made.map, 10, 1, short=True)
        assert await service.seal_map(USER, made.map, 10, 1, short=True) == jids
        assert await system.join(jids) == {"done": 10}
        assert not system.live.batches
        empty = await service.create_map(OTHER, spec(), "", 20, function())
        assert await service.seal_map(OTHER, empty.map, 0, 0, short=True) == []


async def test_results_that_fill_the_disk_hold_jobs_back_until_some_are_deleted(tmp_path):
    engine = FakeEngine(behaviour=lambda *_: Does(body=b"r" * 4000))
    async with running_system(
        tmp_path, quota=Quota(disk_bytes=10_000), engine=engine
    ) as system:
        jids = await system.map([b"x"] * 40)
        await until(lambda: system.accounts.is_paused(USER))
        await until(lambda: not system.engine.running())
        done = (await system.service.wait(USER, jids, timeout_seconds=0)).counts["done"]
        assert 0 < done < 40
        first = jids[0][0]
        assert "your jobs occupy" in await why(system, jids[0][1])
        with pytest.raises(QuotaExceeded) as caught:
            await system.call()
        assert "cloud.delete" in (caught.value.hint or "")
        await system.service.delete(USER, [(first, first + done - 1)])
        while not (await system.service.counts(USER)).get("done"):  # some go on
            await asyncio.sleep(0.01)
        await system.accounts.set_quota(USER, Quota(disk_bytes=0))
        left = [(first + done, jids[0][1])]
        assert await system.join(left) == {"done": 40 - done}


async def test_uploads_on_their_way_are_shown_as_they_are_counted(tmp_path):
    async with running_system(tmp_path) as system:
        await system.join(await system.call(b"hello"))
        before = (await system.accounts.user(USER, {})).use.disk_bytes
        system.accounts.require_room(USER, 600, "u1")
        assert (await system.accounts.user(USER, {})).use.disk_bytes == before + 600
        system.accounts.sent(["u1"])
        assert (await system.accounts.user(USER, {})).use.disk_bytes == before


async def test_uploads_on_their_way_count(tmp_path):
    async with running_system(tmp_path, quota=Quota(disk_bytes=1000)) as system:
        accounts = system.accounts
        accounts.require_room(USER, 600, "u1")
        accounts.require_room(USER, 600, "u1")  # the same again
        with pytest.raises(QuotaExceeded):
            accounts.require_room(USER, 600, "u2")
        accounts.require_room(OTHER, 600, "u3")
        accounts.sent([None, "u1"])
        accounts.require_room(USER, 600, "u2")


# ----------------------------------------------------------------------------------- accounts
async def test_quota_and_use_are_kept_over_a_restart_and_shown(tmp_path):
    async with running_system(tmp_path, quota=Quota(cores=8)) as system:
        await system.join(await system.call(b"hello"))
        await system.accounts.set_quota(USER, Quota(cost=7.0))
    async with running_system(tmp_path, quota=Quota(cores=8)) as system:
        report_ = await system.accounts.user(USER, system.dispatcher.held())
        assert report_.own == Quota(cost=7.0)
        assert report_.quota == Quota(8, 0, 0, 7.0)
        assert report_.use.disk_bytes > 64
        assert report_.created_at
        assert [user.user_id for user in await system.accounts.users({})] == [USER]
        nobody = await system.accounts.user(OTHER, {})
        assert (nobody.own, nobody.quota.cores) == (Quota(), 8)


async def test_who_used_much_before_a_restart_waits_after_it(tmp_path):
    async with running_system(tmp_path) as system:
        await system.join(await system.call())
        system.dispatcher._fair.charge(USER, 100.0, system.dispatcher._clock.steady_seconds())
    async with running_system(tmp_path) as system:
        used = system.dispatcher._fair.used(USER, system.dispatcher._clock.steady_seconds())
        assert 95 < used <= 100.1


@pytest.mark.parametrize(
    ("user_id", "quota"), [(-1, Quota()), (2**32, Quota()), (1, Quota(cores=-1))]
)
async def test_quota_that_cannot_be_is_refused(tmp_path, user_id, quota):
    async with running_system(tmp_path) as system:
        with pytest.raises(InvalidRequest):
            await system.accounts.set_quota(user_id, quota)


# ------------------------------------------------------------------------------ kill and delete
async def test_deletion_asked_for_again_gives_the_same_answer(tmp_path):
    async with running_system(tmp_path) as system:
        jids = await system.map([b"x"] * 2500)
        await system.join(jids)
        assert await system.service.delete(USER, jids, "k1") == 2500
        assert await system.service.delete(USER, jids, "k1") == 2500
        for key in ("", "k2"):
            with pytest.raises(NotFound):
                await system.service.delete(USER, jids, key)
        with pytest.raises(NotFound):
            await system.service.delete(OTHER, jids, "k1")


async def test_deletion_that_was_cut_short_is_finished_by_the_next(tmp_path):
    async with running_system(tmp_path) as system:
        ((first, last),) = await system.map([b"x"] * 20)
        await system.join([(first, last)])
        assert await system.service.delete(USER, [(first, first + 4)], "k1") == 5
    async with running_system(tmp_path) as system:
        assert await system.service.delete(USER, [(first, last)], "k1") == 20
        assert await system.service.counts(USER) == {}


async def test_deletion_that_is_refused_is_refused_again(tmp_path):
    async with running_system(tmp_path, behaviour=lambda *_: Does(seconds=60)) as system:
        jid = await system.call()
        for _ in range(2):
            with pytest.raises(Conflict):
                await system.service.delete(USER, [(jid, jid)], "k1")
        for _ in range(2):
            with pytest.raises(NotFound):
                await system.service.delete(USER, [(jid + 1, jid + 1)], "k2")
        await system.service.kill(USER, None)


async def test_every_second_job_is_killed_in_few_transactions(tmp_path, monkeypatch):
    async with running_system(tmp_path, behaviour=lambda *_: Does(seconds=60)) as system:
        ((first, last),) = await system.map([b"x"] * 6000)
        await until(lambda: len(system.live.running) == 2)
        writes = 0
        write = system.database.write

        def counted(*values, **options):
            nonlocal writes
            writes += 1
            return write(*values, **options)

        monkeypatch.setattr(system.database, "write", counted)
        wanted = [(jid, jid) for jid in range(first + 1000, last, 2)]
        assert await system.service.kill(USER, wanted) == len(wanted)
        assert len(wanted) / SLICE <= writes <= len(wanted) / SLICE + 4
        assert (await system.service.counts(USER))["killed"] == len(wanted)
        await system.service.kill(USER, None)


async def test_kill_holds_though_the_service_dies_before_its_node_hears_of_it(tmp_path):
    engine = FakeEngine(behaviour=lambda *_: Does(seconds=60))
    async with running_system(tmp_path, engine=engine) as system:
        jids = [await system.call() for _ in range(2)]
        await until(lambda: len(system.live.running) == 2)
        deaf, engine.kill = engine.kill, lambda *_: None  # type: ignore[method-assign]
        killing = asyncio.create_task(system.service.kill(USER, [(jids[0], jids[0])]))
        wished = Statement("SELECT jid FROM jobs WHERE kill_wished = 1")
        while not await system.database.read(lambda tx: tx.all(wished)):
            await asyncio.sleep(0.01)
        killing.cancel()
    engine.kill = deaf  # type: ignore[method-assign]
    async with running_system(tmp_path, engine=engine) as system:
        assert await system.join(jids[0]) == {"killed": 1}
        assert await system.status(jids[1]) == "processing"
        await system.service.kill(USER, None)


async def test_killed_job_whose_node_died_with_the_service_does_not_run_again(tmp_path):
    async with running_system(tmp_path, behaviour=lambda *_: Does(seconds=60)) as system:
        jid = await system.call()
        await until(lambda: bool(system.live.running))
        give_up = Statement("UPDATE jobs SET kill_wished = 1 WHERE jid = :jid")
        await system.database.write(lambda tx: tx.run(give_up, jid=jid))
        await system.database.write(lambda tx: tx.run(Statement("DELETE FROM leases")))
    async with running_system(tmp_path) as system:
        assert await system.status(jid) == "killed"
        assert not system.engine.submitted
        assert not system.live.killing
