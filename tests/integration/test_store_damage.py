"""Payloads in rows that a disk has damaged: told in words, job by job, and never handed out."""

import sqlite3
from collections.abc import AsyncIterator

import pytest

from picloud_jupyter.protocol.errors import Corrupt
from picloud_jupyter.protocol.frames import pack_records
from picloud_services.base.sql import Statement
from tests.tools.fake_engine import FakeEngine
from tests.tools.job_system import USER, System, function, running_system, spec


@pytest.fixture
async def system(tmp_path) -> AsyncIterator[System]:
    async with running_system(tmp_path) as found:
        yield found


async def damage(system: System, sql: str, **values: object) -> None:
    changed = await system.database.write(lambda tx: tx.run(Statement(sql), **values))
    assert changed


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("UPDATE results SET data = :value WHERE first_jid = :jid", b"wrong"),
        (
            "UPDATE results SET items = replace(items, ',5,', :value) WHERE first_jid = :jid",
            ",4,",
        ),
    ],
)
async def test_result_is_refused_and_its_neighbours_are_not(system, sql, value):
    jid, other = await system.call(b"right"), await system.call(b"other")
    await system.join([(jid, other)])
    items = Statement("SELECT items FROM results WHERE first_jid = :jid")
    assert ",5," in await system.database.read(lambda tx: tx.value(items, jid=jid))
    await damage(system, sql, jid=jid, value=value)
    system.service._results.forget([(jid, other)])
    with pytest.raises(Corrupt, match="damaged on the disk") as raised:
        await system.service.result(USER, jid)
    assert raised.value.jid == jid
    assert (await system.service.result(USER, other)).body == b"other"


async def test_arguments_that_are_damaged_are_never_run_with(tmp_path):
    away = FakeEngine()
    away._nodes["n1"].connected = False
    async with running_system(tmp_path, engine=away) as system:
        made = await system.service.create_map(USER, spec(), "", 4, function())
        for part in range(2):
            pack = pack_records([b"a", b"b"])
            await system.service.put_part(USER, made.map, part, 2 * part, 2, pack)
        jids = await system.service.seal_map(USER, made.map, 4, 2)
        first = jids[0][0]
    with sqlite3.connect(tmp_path / "store.db") as store:
        pack = pack_records([b"a", b"c"])
        store.execute("UPDATE parts SET arguments = ? WHERE part = 0", (pack,))
    async with running_system(tmp_path) as system:
        counts = await system.join(jids, seconds=60)
        assert counts == {"stalled": 2, "done": 2}
        ended = await system.service.result(USER, first)
        assert (ended.reason, ended.body) == ("start_failed", None)
        assert "damaged on the disk" in ended.message
        with pytest.raises(Corrupt, match="called with"):
            await system.service.arguments(USER, first)
        given = [pair for chunk in system.engine.submitted for pair in chunk.jids]
        assert min(given)[0] == first + 2


async def test_function_that_is_damaged_is_never_run(tmp_path):
    away = FakeEngine()
    away._nodes["n1"].connected = False
    async with running_system(tmp_path, engine=away) as system:
        jid = await system.call(b"a")
    with sqlite3.connect(tmp_path / "store.db") as store:
        store.execute("UPDATE functions SET data = ?", (b"g",))
    async with running_system(tmp_path) as system:
        assert await system.join(jid, seconds=60) == {"stalled": 1}
        assert system.engine.submitted == []
