"""What goes with the jobs that are removed: specs with their variables, and output of every attempt."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from picloud_jupyter.protocol.errors import Conflict, InvalidRequest
from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.protocol.ids import MAX_JID, JidRange
from picloud_services.base.sql import Statement
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs import links, removal, retention
from picloud_services.jobs.retention import Limits, Retention
from tests.tools.fake_engine import Does
from tests.tools.job_system import USER, System, function, running_system, spec

SPECS = Statement("SELECT data FROM specs")

SEEN = Statement("SELECT seen_seconds FROM sequences")
NUMBERS = Statement("SELECT spec FROM batches ORDER BY batch")


@pytest.fixture
async def system(tmp_path) -> AsyncIterator[System]:
    async with running_system(tmp_path) as found:
        yield found


def make_retention(system: System, **limits: float) -> Retention:
    return Retention(
        system.database,
        system.engine,
        system.accounts,
        system.dispatcher._clock,
        Limits(**limits),  # type: ignore[arg-type]
    )


async def specs(system: System) -> int:
    return len(await system.database.read(lambda tx: tx.all(SPECS)))


# ------------------------------------------------------------------------------------- specs
async def test_variables_go_with_the_last_job_that_has_them(system):
    secret = {"variables": (("TOKEN", "secret"),)}
    jids = [await system.call(**secret) for _ in range(2)]
    for jid in jids:
        await system.join(jid)
    assert await specs(system) == 1
    await system.service.delete(USER, [(jids[0], jids[0])])
    assert await specs(system) == 1
    assert (await system.service.info(USER, [(jids[1], jids[1])], None))[jids[1]]
    await system.service.delete(USER, [(jids[1], jids[1])])
    assert await specs(system) == 0


async def test_spec_that_was_removed_is_entered_again(tmp_path):
    async with running_system(tmp_path) as system:
        jid = await system.call(process_id=2)
        await system.join(jid)
        await system.service.delete(USER, [(jid, jid)])
        other = await system.call(process_id=1)
        again = await system.call(process_id=2)
        await system.join([(other, other), (again, again)])
        assert await specs(system) == 2
    async with running_system(tmp_path) as system:  # without what memory knew
        numbers = await system.database.read(lambda tx: tx.all(NUMBERS))
        found = await system.database.read(
            lambda tx: [system.service._book.read(tx, number) for (number,) in numbers]
        )
        assert [each.process_id for each in found] == [1, 2]


async def test_specs_in_memory_are_bounded(system, monkeypatch):
    monkeypatch.setattr(links, "KEPT_SPECS", 3)
    jids = [await system.call(process_id=number) for number in range(6)]
    for jid in jids:
        await system.join(jid)
    book = system.service._book
    assert len(book._specs) == len(book._numbers) == 3
    assert len(await system.service.info(USER, [(jids[0], jids[-1])], None)) == 6


# ------------------------------------------------------------------------------------ output
async def _lost_twice(system: System) -> int:
    """Run a job whose container is lost, then fails to start, then runs."""
    ends = [Does(exits={"wait_status": 9, "oom_count": 0}), Does("node_lost"), Does()]
    system.engine.behaviour = lambda *_: ends.pop(0)
    jid = await system.call()
    assert await system.join(jid) == {"done": 1}
    assert len(system.engine.submitted) == 3
    return jid


async def test_delete_removes_the_output_of_lost_attempts(system):
    jid = await _lost_twice(system)
    assert await system.service.delete(USER, [(jid, jid)]) == 1
    assert set(system.engine.deleted) == {chunk.lease for chunk in system.engine.submitted}


async def test_retention_removes_the_output_of_lost_attempts(system):
    await _lost_twice(system)
    await make_retention(system, retention_seconds=-1, unread_seconds=-1).prune()
    assert set(system.engine.deleted) == {chunk.lease for chunk in system.engine.submitted}


async def test_output_that_was_not_removed_with_its_rows_goes_with_the_next_sweep(
    system, monkeypatch
):
    """The service was killed behind the commit of a deletion."""
    kept, removed = [await system.call() for _ in range(2)]
    await system.join([(kept, removed)])
    gone = next(c.lease for c in system.engine.submitted if c.jids == ((removed, removed),))
    system.engine.behaviour = lambda *_: Does(seconds=60)
    running = await system.call()
    assert system.dispatcher.lease_of(running) is not None
    with monkeypatch.context() as patch:

        async def killed(_node, _leases):
            raise ConnectionError("killed")

        patch.setattr(system.engine, "delete_output", killed)
        with pytest.raises(ConnectionError):
            await system.service.delete(USER, [(removed, removed)])
    await make_retention(system).sweep_output(now_at=0.0)
    assert len(system.engine.submitted) == 3
    assert system.engine.deleted == [gone]


async def test_output_of_a_lost_lease_goes_with_its_job(system):
    system.engine.behaviour = lambda *_: Does(seconds=60)
    jid = await system.call()
    held = system.dispatcher.lease_of(jid)
    assert held is not None
    system.engine.behaviour = lambda *_: Does()
    system.engine.crash("n1")
    system.dispatcher._lose(held.lease, "n1")
    system.engine.connect("n1")
    await system.join(jid)
    await system.service.delete(USER, [(jid, jid)])
    assert held.lease in system.engine.deleted


async def _half_done(system: System) -> tuple[JidRange, str]:
    """Return jobs that are finished, and the lease of the chunk whose other jobs still run."""
    system.engine.behaviour = lambda _chunk, _at, argument: Does(
        seconds=60 if argument == b"slow" else 0
    )
    await system.join(await system.call())  # how long such a job takes is known now
    system.dispatcher._assigner.estimates.learn((function().digest, "c1"), 100, 0.001)
    ((first, last),) = await system.map([b"x", b"x", b"slow", b"x"])
    async with asyncio.timeout(10):
        while (chunk := system.engine.submitted[-1]).jids != ((first, last),):
            await asyncio.sleep(0.005)
    await system.join([(first, first + 1)])
    return (first, first + 1), chunk.lease


async def test_delete_keeps_the_output_of_jobs_that_share_a_chunk_and_still_run(system):
    ended, lease = await _half_done(system)
    assert await system.service.delete(USER, [ended]) == 2
    assert lease not in system.engine.deleted
    _, last = ended
    await system.service.kill(USER, [(last + 1, last + 2)])
    await system.service.delete(USER, [(last + 1, last + 2)])
    assert lease in system.engine.deleted


async def test_delete_whose_client_goes_away_still_removes_the_output(system, monkeypatch):
    jid = await system.call()
    await system.join(jid)
    is_removing, goes_on = asyncio.Event(), asyncio.Event()
    commit = removal.delete_jobs

    def committing(*arguments):
        loop.call_soon_threadsafe(is_removing.set)
        return commit(*arguments)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(removal, "delete_jobs", committing)
    remove = system.engine.delete_output

    async def removing(node: str, leases: Sequence[str]) -> None:
        await remove(node, leases)
        goes_on.set()

    monkeypatch.setattr(system.engine, "delete_output", removing)
    client = asyncio.ensure_future(system.service.delete(USER, [(jid, jid)]))
    async with asyncio.timeout(10):
        await is_removing.wait()
        client.cancel()
        await goes_on.wait()
    assert system.engine.deleted == [system.engine.submitted[0].lease]


async def test_retention_keeps_the_output_of_a_chunk_that_still_runs(system):
    _, lease = await _half_done(system)
    await make_retention(system, retention_seconds=-1, unread_seconds=-1).prune()
    assert system.engine.deleted
    assert lease not in system.engine.deleted


# -------------------------------------------------------------------------------------- rows
async def test_repeated_deletion_of_more_than_anybody_has_is_refused(system):
    jid = await system.call()
    await system.join(jid)
    assert await system.service.delete(USER, [(jid, jid)], "key") == 1
    async with asyncio.timeout(10):
        with pytest.raises(InvalidRequest, match="at most"):
            await system.service.delete(USER, [(1, MAX_JID)], "key")
    assert await system.service.delete(USER, [(jid, jid)], "key") == 1


async def test_time_that_passed_is_counted_once_by_two_steps_at_once(system):
    retention = make_retention(system)
    retention._noted -= 1000
    await asyncio.gather(retention.note_time(), retention.note_time())
    seen = await system.database.read(lambda tx: tx.value(SEEN))
    assert 1000 <= seen < 1100


async def test_old_map_that_never_had_a_job_goes_too(system):
    made = await system.service.create_map(USER, spec(), "", 0, function())
    await system.service.seal_map(USER, made.map, 0, 0)
    await make_retention(system, row_seconds=-1).prune()
    left = Statement("SELECT COUNT(*) FROM batches")
    assert await system.database.read(lambda tx: tx.value(left)) == 0


@pytest.mark.parametrize(
    ("statement", "index"),
    [(retention._TOTAL, "results_by_age"), (retention._OLD_BATCHES, "batches_finished")],
)
async def test_retention_reads_an_index_and_not_the_rows(system, statement, index):
    plan = Statement("EXPLAIN QUERY PLAN " + statement.sqlite)
    values = {"before": 0.0} if ":before" in statement.sqlite else {}
    rows = await system.database.read(lambda tx: tx.all(plan, **values))
    assert any(f"INDEX {index}" in row[3] for row in rows), rows
    assert not any("TEMP B-TREE" in row[3] for row in rows), rows


async def test_code_of_unfinished_jobs_is_in_use(system):
    system.engine.behaviour = lambda *_: Does(seconds=60)
    await system.call(code_version="ab" * 32)
    assert "ab" * 32 in {code for _, code in system.service.code_versions()}


async def test_jobs_of_a_map_that_is_still_sent_are_not_deleted(system):
    service = system.service
    made = await service.create_map(USER, spec(), "", 2, function())
    part = await service.put_part(USER, made.map, 0, 0, 1, pack_records([b"a"]))
    jids = [(part.first_jid, part.first_jid)]
    await system.join(jids)
    with pytest.raises(Conflict, match="still being sent"):
        await service.delete(USER, jids)
    with pytest.raises(Conflict, match="still being sent"):  # whatever the image in memory says
        await system.database.write(lambda tx: removal.delete_jobs(USER, *jids[0], 0.0, tx))
    again = await service.put_part(USER, made.map, 0, 0, 1, pack_records([b"a"]))
    assert again == part
    await service.put_part(USER, made.map, 1, 1, 1, pack_records([b"b"]))
    jids = await service.seal_map(USER, made.map, 2, 2)
    await system.join(jids)
    assert await service.delete(USER, jids) == 2


async def test_what_was_deleted_is_told_and_nothing_of_others(system):
    told: list[int] = []
    system.events.listen("jobs.deleted", told.extend)
    mine, others = await system.call(b"a"), await system.call(b"b", user_id=USER + 1)
    await system.join(mine)
    await system.join(others, user_id=USER + 1)
    await system.service.delete(USER, [(mine, mine)], "key")
    await system.service.delete(USER, [(mine, mine)], "key")  # repeated: those are nobody's now
    assert told == [mine]


async def test_blob_without_a_row_is_left_to_the_sweep(system):
    large = await system.call(BlobRef("ab" * 16, 10**6, ""))
    await system.join(large)
    await system.service.delete(USER, [(large, large)])
    keeping = make_retention(system)
    unlinked = Statement("UPDATE blobs SET unlinked_at = 1")
    await system.database.write(lambda tx: tx.run(unlinked))
    assert await keeping.referenced(["ab" * 16]) == {"ab" * 16}
    await keeping.prune()
    assert await keeping.referenced(["ab" * 16]) == set()
