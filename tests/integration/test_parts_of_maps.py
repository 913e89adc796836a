"""What is asked of parts of a map, and what becomes of maps and jobs that are given up or killed."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from picloud_jupyter.protocol.errors import Conflict
from picloud_jupyter.protocol.frames import pack_records
from picloud_services.base.sql import Statement
from picloud_services.jobs.ending import move
from tests.tools.fake_engine import Does
from tests.tools.job_system import USER, System, function, running_system, spec


@pytest.fixture
async def system(tmp_path) -> AsyncIterator[System]:
    async with running_system(tmp_path) as found:
        yield found


async def test_waiting_for_some_jobs_of_a_map_waits_for_all_of_them(system):
    system.engine.behaviour = lambda _chunk, _at, argument: Does(
        seconds=0.3 if argument == b"slow" else 0.0
    )
    ((first, _),) = await system.map([b"x", b"x", b"slow", b"x"])
    assert await system.join([(first, first), (first + 2, first + 2)]) == {"done": 2}


async def test_statuses_of_scattered_jobs_come_in_the_order_asked(system):
    system.engine.behaviour = lambda _chunk, _at, argument: Does(
        seconds=60 if argument == b"slow" else 0.0
    )
    done = (await system.map([b"x"] * 4))[0][0]
    await system.join([(done, done + 3)])
    late = (await system.map([b"slow"] * 3, depends_on=((done, done),)))[0][0]
    other = (await system.map([b"slow"] * 3, depends_on=((late, late),)))[0][0]
    asked = [(other, other + 1), (done + 2, done + 3), (done + 2, done + 2), (other, other)]
    assert await system.service.statuses(USER, asked) == [
        (other, other + 1, "waiting"),
        (done + 2, done + 3, "done"),
        (done + 2, done + 2, "done"),
        (other, other, "waiting"),
    ]


async def test_statuses_of_every_other_job_of_a_large_map_are_quick(system):
    ((first, last),) = await system.map([b""] * 20_000)
    await system.join([(first, last)])
    asked = [(jid, jid) for jid in range(first, last + 1, 2)]
    started = time.process_time()
    assert len(await system.service.statuses(USER, asked)) == 10_000
    assert time.process_time() - started < 3  # a walk over all for each takes much longer


async def _open_map(system: System) -> int:
    made = await system.service.create_map(USER, spec(), "", None, function())
    await system.service.put_part(USER, made.map, 0, 0, 1, pack_records([b"x"]))
    return made.map


async def test_map_that_is_sealed_while_it_is_given_up_stays_sealed(system):
    number = await _open_map(system)
    batch = system.live.batches[number]
    _, given_up = await asyncio.gather(
        system.service.seal_map(USER, number, 1, 1), system.service._maps._abandon(batch)
    )
    assert not given_up
    state = Statement("SELECT state FROM batches WHERE batch = :batch")
    assert await system.database.read(lambda tx: tx.value(state, batch=number)) == "sealed"


async def test_giving_up_a_map_goes_on_where_a_failure_stopped_it(system, monkeypatch):
    system.engine.behaviour = lambda *_: Does(seconds=60)
    blocker = await system.call()
    made = await system.service.create_map(
        USER, spec(depends_on=((blocker, blocker),)), "", None, function()
    )
    receipt = await system.service.put_part(USER, made.map, 0, 0, 1, pack_records([b"x"]))
    fails = [True]

    def move_later(tx, *, wanted, at):
        if fails.pop() if fails else False:
            raise Conflict("not now")
        return move(tx, wanted, at)

    monkeypatch.setattr("picloud_services.jobs.maps.move", move_later)
    assert await system.service.abandon_silent_maps(0) == 0
    assert await system.service.abandon_silent_maps(0) == 1
    assert await system.status(receipt.first_jid) == "stalled"


async def test_map_whose_client_spoke_while_another_was_given_up_is_kept(system, monkeypatch):
    first, second = await _open_map(system), await _open_map(system)
    maps = system.service._maps
    for number in (first, second):
        maps._heard[number] -= 100
    abandon = maps._abandon

    async def slowly(batch):
        maps._hear(USER, second)
        return await abandon(batch)

    monkeypatch.setattr(maps, "_abandon", slowly)
    assert await maps.abandon_silent(60) == 1
    with pytest.raises(Conflict, match="given up"):
        await system.service.seal_map(USER, first, 1, 1)
    await system.service.seal_map(USER, second, 1, 1)


async def test_cached_result_of_another_folder_is_not_taken(system):
    there = await system.service.submit_call(
        USER, spec(cache=True, folder="/a"), "", function(), b"a"
    )
    await system.join(there.jid)
    for folder, cached in (("/a", True), ("/b", False)):
        again = await system.service.submit_call(
            USER, spec(cache=True, folder=folder), "", function(), b"a"
        )
        assert again.cached is cached
