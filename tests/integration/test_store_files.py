"""The store's file: full disks, damage, newer schemas, readers that cannot write, group commit."""

import asyncio
import os
import sqlite3
import threading

import pytest

from picloud_jupyter.protocol.errors import (
    Conflict,
    Corrupt,
    DiskFull,
    Incompatible,
    Unavailable,
)
from picloud_services.base.ballast import BALLAST_BYTES
from picloud_services.base.connections import Source, connect, log_bytes
from picloud_services.base.database import CHECKPOINT_BYTES, open_database
from picloud_services.base.migrations import load_migrations
from picloud_services.base.sql import Statement
from picloud_services.jobs.retention import Limits, Retention
from tests.tools.job_system import USER, function, running_system, spec

NEXT = Statement("UPDATE sequences SET jid = jid + 1 RETURNING jid")
JID = Statement("SELECT jid FROM sequences")


@pytest.fixture
async def database(tmp_path):
    found = open_database(tmp_path / "store.db")
    await found.open()
    yield found
    await found.close()


async def test_writes_that_gather_share_commits_and_keep_their_order(database):
    seen: list[int] = []
    futures = [database.write(lambda tx: tx.value(NEXT), seen.append) for _ in range(200)]
    numbers = await asyncio.gather(*futures)
    assert numbers == seen == list(range(2, 202))


async def test_one_failing_piece_undoes_itself_alone(database):
    def fail(tx):
        tx.value(NEXT)
        raise Conflict("no")

    results = await asyncio.gather(
        *(database.write(fail if i % 2 else lambda tx: tx.value(NEXT)) for i in range(10)),
        return_exceptions=True,
    )
    assert [r for r in results if isinstance(r, int)] == [2, 3, 4, 5, 6]
    assert await database.read(lambda tx: tx.value(JID)) == 6


async def test_write_while_it_closes_is_refused_and_what_was_queued_is_kept(tmp_path):
    database = open_database(tmp_path / "store.db")
    await database.open()
    goes_on = threading.Event()

    def slow(tx):
        goes_on.wait(10)
        return tx.value(NEXT)

    queued = database.write(slow)
    closing = asyncio.ensure_future(database.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="closed"):
        await database.write(lambda tx: tx.value(NEXT))
    goes_on.set()
    async with asyncio.timeout(10):
        await closing
        assert await queued == 2


async def test_reserve_that_finds_no_room_is_made_when_there_is_some(
    database, tmp_path, caplog
):
    database._ballast = tmp_path / "no such folder" / "ballast"
    database._reserve_used = True
    async with asyncio.timeout(10):
        while "no room for the reserve" not in caplog.text:
            await database.write(lambda tx: tx.value(NEXT))
        database._ballast = tmp_path / "ballast"
        while not database._ballast.exists():
            await database.write(lambda tx: tx.value(NEXT))


async def test_log_is_folded_in_after_a_few_large_pieces(database, tmp_path):
    made = Statement("CREATE TABLE large (data BLOB)")
    await database.write(lambda tx: tx.run(made))
    add = Statement("INSERT INTO large VALUES (zeroblob(8000000))")
    for _ in range(12):
        await database.write(lambda tx: tx.run(add))
    assert log_bytes(tmp_path / "store.db") < 3 * CHECKPOINT_BYTES


async def test_quick_and_slow_work_keep_one_order(database):
    seen: list[int] = []
    futures = []
    for i in range(60):
        futures.append(database.write(lambda tx: tx.value(NEXT), seen.append, quick=i % 3 == 0))
        if i % 4 == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*futures)
    assert seen == list(range(2, 62))


async def test_readers_cannot_write(database):
    with pytest.raises(Unavailable, match="readonly"):
        await database.read(lambda tx: tx.value(NEXT))


async def test_log_is_folded_in_and_nothing_is_lost(database, tmp_path, monkeypatch):
    monkeypatch.setattr("picloud_services.base.database.CHECKPOINT_BYTES", 100_000)
    for _ in range(300):
        await database.write(lambda tx: tx.value(NEXT), quick=True)
    assert (tmp_path / "store.db-wal").stat().st_size < 2_000_000
    assert await database.read(lambda tx: tx.value(JID)) == 301
    assert await database.check() == []


async def test_log_that_was_begun_anew_is_as_long_as_what_is_in_use(tmp_path):
    path = tmp_path / "log.db"
    assert log_bytes(path) == 0
    connection = connect(Source(path))
    connection.execute("CREATE TABLE t (text TEXT)")
    for _ in range(100):
        connection.execute("INSERT INTO t VALUES ('x')")
    filled = log_bytes(path)
    assert filled > 100 * 2048
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    connection.execute("INSERT INTO t VALUES ('y')")
    assert 0 < log_bytes(path) <= filled / 20
    assert (tmp_path / "log.db-wal").stat().st_size >= filled
    connection.close()


async def test_newer_schema_is_refused_in_words(tmp_path):
    database = open_database(tmp_path / "store.db")
    await database.open()
    await database.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("INSERT INTO schema_versions VALUES (99, 'later', 0)")
    connection.close()
    with pytest.raises(Incompatible, match="newer version"):
        await open_database(tmp_path / "store.db").open()


async def test_damaged_file_is_refused_and_never_used(tmp_path):
    (tmp_path / "store.db").write_bytes(b"not a database at all, but long enough" * 100)
    with pytest.raises(Corrupt, match="damaged"):
        await open_database(tmp_path / "store.db").open()


async def test_migrations_are_numbered_and_run_once(tmp_path):
    assert [step.version for step in load_migrations()] == list(
        range(1, len(load_migrations()) + 1)
    )
    for _ in range(2):
        database = open_database(tmp_path / "store.db")
        await database.open()
        found = await database.read(
            lambda tx: tx.all(Statement("SELECT version FROM schema_versions"))
        )
        assert found == [(step.version,) for step in load_migrations()]
        await database.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB: a full disk that is really full."""
    import subprocess

    if os.getuid() != 0:
        pytest.skip("a file system of its own needs root; root CI runs it")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
async def test_full_disk_refuses_submits_and_still_records_ends(small_disk):
    filler = small_disk / "filler"
    async with running_system(small_disk) as system:
        system.engine._nodes["n1"].connected = False
        system.dispatcher._cluster.nodes.clear()
        jid = await system.call(b"a")
        with open(filler, "wb") as file:
            try:
                while file.write(b"\0" * 65536):
                    file.flush()
            except OSError:
                pass

        async def submit_much() -> None:
            for _ in range(200):
                await system.call(b"x" * 60_000)

        with pytest.raises(DiskFull, match="full"):
            await submit_much()
        assert (small_disk / "store.db.ballast").stat().st_size == BALLAST_BYTES
        system.engine.connect("n1")
        filler_gone = asyncio.get_running_loop().call_later(3.0, filler.unlink)
        await system.join(jid)
        filler_gone.cancel()
        filler.unlink(missing_ok=True)
        await system.join(await system.call(b"b"))


async def test_old_results_go_and_unread_ones_stay_a_day(tmp_path):
    async with running_system(tmp_path) as system:

        def retention(**limits: float) -> Retention:
            return Retention(
                system.database,
                system.engine,
                system.accounts,
                system.dispatcher._clock,
                Limits(**limits),  # type: ignore[arg-type]
            )

        read, unread = await system.call(b"a"), await system.call(b"b")
        await system.join([(read, read), (unread, unread)])
        await system.service.results(USER, [(read, read)], limit_bytes=10)
        await system.service.flush_read()
        await asyncio.sleep(0.01)
        await retention(retention_seconds=0.0).prune()
        system.service._results.forget([(read, unread)])
        assert "removed" in (await system.service.result(USER, read)).message
        assert (await system.service.result(USER, unread)).body == b"b"
        assert len(system.engine.deleted) == 1
        await retention(retention_seconds=0.0, unread_seconds=0.0).prune()
        assert (await system.service.result(USER, unread)).body is None
        await retention(row_seconds=0.0).prune()
        assert await system.service.counts(USER) == {}


async def test_size_limit_removes_the_oldest_first(tmp_path):
    async with running_system(tmp_path) as system:
        jids = [await system.call(b"x" * 1000) for _ in range(4)]
        await system.join([(jid, jid) for jid in jids])
        retention = Retention(
            system.database,
            system.engine,
            system.accounts,
            system.dispatcher._clock,
            Limits(retention_bytes=2500, unread_seconds=-1.0),
        )
        await retention.prune()
        system.service._results.forget([(jids[0], jids[-1])])
        bodies = [(await system.service.result(USER, jid)).body for jid in jids]
        assert [body is not None for body in bodies] == [False, False, True, True]


async def test_keys_live_a_day_past_the_end(tmp_path):
    async with running_system(tmp_path) as system:
        first = await system.service.submit_call(USER, spec(), "key", function(), b"a")
        await system.join(first.jid)
        retention = Retention(
            system.database,
            system.engine,
            system.accounts,
            system.dispatcher._clock,
            Limits(key_seconds=-1.0),
        )
        await retention.prune()
        again = await system.service.submit_call(USER, spec(), "key", function(), b"a")
        assert again.jid != first.jid
