"""The store's contract, on SQLite and on PostgreSQL: what commits is exactly what was asked for."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest

from picloud_jupyter.protocol.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from picloud_jupyter.protocol.frames import pack_frame, pack_records
from picloud_jupyter.protocol.jobs import EndReason, RetryPolicy
from picloud_jupyter.protocol.users import Quota
from picloud_services.base import connections
from picloud_services.base.database import open_database
from picloud_services.base.sql import Statement
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs import maps, queries
from tests.tools.fake_engine import Does, FakeEngine
from tests.tools.job_system import USER, System, function, running_system, spec
from tests.tools.postgresql_server import fresh_database, private_server

OTHER = 2000
_names = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with private_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return ""
    server: str = request.getfixturevalue("server")
    return fresh_database(server, f"store{next(_names)}")


@pytest.fixture
async def system(tmp_path, url) -> AsyncIterator[System]:
    async with running_system(tmp_path, url=url) as found:
        yield found


async def counters_agree(system: System) -> None:
    """Check that every counter is what a full count says."""

    def check(tx):
        ended = ("done", "error", "killed", "stalled")
        for table, column, statuses in (
            ("users", "user_id", ended),
            ("batches", "batch", ("waiting", "queued", *ended)),
        ):
            for status in statuses:
                wrong = tx.all(
                    Statement(
                        f"SELECT t.{column}, t.{status}, (SELECT COUNT(*) FROM jobs j WHERE "
                        f"j.{column} = t.{column} AND j.status = '{status}') FROM {table} t"
                    )
                )
                assert all(kept == real for _, kept, real in wrong), (table, status, wrong)
        wrong = tx.all(Statement("SELECT batch, open, waiting + queued FROM batches"))
        assert all(kept == real for _, kept, real in wrong), wrong
        occupied = """SELECT u.user_id, u.disk_bytes,
          (SELECT COALESCE(SUM(LENGTH(arguments) + 64 * count), 0) FROM parts p
            WHERE p.user_id = u.user_id)
          + (SELECT COALESCE(SUM(size_bytes), 0) FROM part_files f WHERE f.user_id = u.user_id)
          + (SELECT COALESCE(SUM(bytes), 0) FROM results r WHERE r.user_id = u.user_id)
        FROM users u"""
        wrong = [row for row in tx.all(Statement(occupied)) if row[1] != row[2]]
        assert not wrong, wrong
        for table, link in (("results", "result"), ("parts", "first_jid")):
            assert not tx.all(Statement(f"SELECT {link} FROM {table} WHERE links < 0"))
        return tx.value(Statement("SELECT COUNT(*) FROM leases"))

    assert await system.database.read(check) == 0


async def test_call_runs_and_gives_its_result(system):
    jid = await system.call(b"hello")
    assert await system.join(jid) == {"done": 1}
    answer = await system.service.results(USER, [(jid, jid)], limit_bytes=100)
    assert [item.body for item in answer.items] == [b"hello"]
    system.service._results.forget([(jid, jid)])  # also from the store
    answer = await system.service.results(USER, [(jid, jid)], limit_bytes=100)
    assert [item.body for item in answer.items] == [b"hello"]
    assert await system.service.arguments(USER, jid) == b"hello"
    assert (await system.service.function(USER, jid)).payload == b"f"
    await counters_agree(system)


async def test_jids_go_on_without_gaps_after_a_restart(tmp_path, url):
    async with running_system(tmp_path, url=url) as system:
        first = await system.call()
        await system.join(first)
    async with running_system(tmp_path, url=url) as system:
        assert await system.call() == first + 1


@pytest.mark.parametrize("known", [True, False])
async def test_map_runs_each_element_once_in_order(system, known):
    arguments = [b"%d" % i for i in range(2500)]
    jids = await system.map(arguments, known=known)
    assert await system.join(jids) == {"done": 2500}
    found: list[bytes | None] = []
    while len(found) < 2500:
        first = jids[0][0] + len(found)
        answer = await system.service.results(USER, [(first, jids[-1][1])], limit_bytes=10**7)
        found += [item.body for item in answer.items]
    assert found == arguments
    covered = sorted(r for chunk in system.engine.submitted for r in chunk.jids)
    assert [a for a, _ in covered] == [jids[0][0], *(b + 1 for _, b in covered[:-1])]
    await counters_agree(system)


async def test_key_of_a_call_is_none_of_a_map(system):
    await system.call(key="call")
    made = await system.service.create_map(USER, spec(), "map", None, function())
    with pytest.raises(Conflict, match="named a map before"):
        await system.call(key="map")
    with pytest.raises(Conflict, match="named a call before"):
        await system.service.create_map(USER, spec(), "call", None, function())
    again = await system.service.create_map(USER, spec(), "map", None, function())
    assert again.map == made.map
    await system.service.seal_map(USER, made.map, 0, 0)
    await system.join(1)


async def test_repeated_requests_make_nothing_twice(system):
    service = system.service
    first = await service.submit_call(USER, spec(), "key", function(), b"x")
    again = await service.submit_call(USER, spec(), "key", function(), b"x")
    assert (again.jid, again.repeated) == (first.jid, True)
    other = await service.submit_call(OTHER, spec(), "key", function(), b"x")
    assert other.jid != first.jid
    made = await service.create_map(USER, spec(), "mapkey", 2, function())
    assert (await service.create_map(USER, spec(), "mapkey", 2, function())).map == made.map
    pack = pack_records([b"a", b"b"])
    part = await service.put_part(USER, made.map, 0, 0, 2, pack)
    assert await service.put_part(USER, made.map, 0, 0, 2, pack) == part
    with pytest.raises(Conflict, match="another content"):
        await service.put_part(USER, made.map, 0, 0, 2, pack_records([b"a", b"c"]))
    jids = await service.seal_map(USER, made.map, 2, 1)
    assert await service.seal_map(USER, made.map, 2, 1) == jids
    await system.join(jids)
    assert await service.seal_map(USER, made.map, 2, 1) == jids
    with pytest.raises(Conflict, match="sealed"):
        await service.put_part(USER, made.map, 1, 2, 1, pack_records([b"c"]))


async def test_map_with_missing_or_wrong_parts_is_not_sealed(system):
    service = system.service
    made = await service.create_map(USER, spec(), "", 3, function())
    await service.put_part(USER, made.map, 0, 0, 2, pack_records([b"a", b"b"]))
    with pytest.raises(Conflict, match="missing parts"):
        await service.seal_map(USER, made.map, 3, 2)
    with pytest.raises(Conflict, match="overlaps"):
        await service.put_part(USER, made.map, 1, 1, 2, pack_records([b"b", b"c"]))
    with pytest.raises(InvalidRequest, match="3 elements"):
        await service.put_part(USER, made.map, 1, 2, 2, pack_records([b"c", b"d"]))
    with pytest.raises(InvalidRequest, match="pack"):
        await service.put_part(USER, made.map, 1, 2, 1, b"no pack")
    with pytest.raises(NotFound):
        await service.put_part(OTHER, made.map, 1, 2, 1, pack_records([b"c"]))


async def test_map_with_a_gap_in_it_is_not_sealed(system):
    service = system.service
    made = await service.create_map(USER, spec(), "", 3, function())
    await service.put_part(USER, made.map, 0, 0, 1, pack_records([b"a"]))
    await service.put_part(USER, made.map, 1, 2, 1, pack_records([b"c"]))
    with pytest.raises(Conflict, match="those between"):
        await service.seal_map(USER, made.map, 2, 2, short=True)
    await service.put_part(USER, made.map, 2, 1, 1, pack_records([b"b"]))
    assert await service.seal_map(USER, made.map, 3, 3) == [
        (made.first_jid, made.first_jid + 2)
    ]


async def test_failures_keep_reason_text_and_neighbours(system):
    failure = pack_frame(
        {"type": "ValueError", "traceback": "Traceback: bad", "message": "bad"}
    )
    system.engine.behaviour = lambda _chunk, _at, argument: (
        Does("error", body=failure) if argument == b"bad" else Does(body=argument)
    )
    jids = await system.map([b"a", b"bad", b"c"])
    answer = await system.service.wait(USER, jids, timeout_seconds=5)
    assert answer.counts == {"done": 2, "error": 1}
    bad = jids[0][0] + 1
    assert answer.failed == [(bad, "error", "error")]
    item = await system.service.result(USER, bad)
    assert (item.status, item.reason, item.body) == ("error", "error", failure)
    found = await system.service.info(USER, [(bad, bad)], ["exception", "reason"])
    assert found[bad] == {"exception": "Traceback: bad", "reason": "error"}
    await counters_agree(system)


async def test_retries_run_again_and_the_last_attempt_counts(system):
    system.engine.behaviour = lambda chunk, _at, _argument: (
        Does("error") if chunk.attempt < 3 else Does(body=b"third")
    )
    jid = await system.call(retries=RetryPolicy(count=2))
    assert await system.join(jid) == {"done": 1}
    assert (await system.service.result(USER, jid)).body == b"third"
    assert (await system.service.info(USER, [(jid, jid)], ["attempt"]))[jid]["attempt"] == 3
    await counters_agree(system)


BROKEN = "the runner broke the protocol: it sent noise"


@pytest.mark.parametrize("restartable", [True, False])
async def test_container_whose_runner_is_not_believed_takes_what_began_and_nothing_begins_twice(
    system, restartable
):
    starts: Counter[tuple[int, int]] = Counter()

    def behave(chunk, at, argument):
        (first, last), attempt = chunk.jids[0], chunk.attempt
        starts[first + at, attempt] += 1
        if argument != b"breaks":
            return Does(body=argument)
        begun = min(3, last + 1 - first - at)
        starts.update((first + at + behind, attempt) for behind in range(1, begun))
        how = {"wait_status": 9, "oom_count": 0, "asked": "broken", "message": BROKEN}
        return Does(exits={**how, "begun": begun})

    system.engine.behaviour = behave
    arguments = [b"%d" % i for i in range(50)]
    arguments[40] = b"breaks"  # chunks have grown by then
    jids = await system.map(arguments, restartable=restartable)
    counts = await system.join(jids)
    assert set(starts.values()) == {1}
    broken = jids[0][0] + 40
    told = await system.service.info(USER, jids, ["reason", "attempt", "exception"])
    attempts = {jid: info["attempt"] for jid, info in told.items() if info["attempt"] > 1}
    assert BROKEN in told[broken]["exception"]
    if restartable:
        assert counts == {"done": 49, "error": 1}
        assert told[broken]["reason"] == "poison"
        assert attempts == {broken: 3, broken + 1: 2, broken + 2: 2}
    else:
        assert counts == {"done": 47, "stalled": 3}
        reasons = [told[broken + behind]["reason"] for behind in range(3)]
        assert reasons == ["lost_worker", "node_lost", "node_lost"]
        assert not attempts
    await counters_agree(system)


@pytest.mark.parametrize("restartable", [True, False])
async def test_result_that_the_disk_did_not_take_is_computed_again_while_it_may(
    system, restartable
):
    refused = {"note": "the machine did not take its result (Input/output error)"}
    tries: Counter[bytes] = Counter()

    def behave(_chunk, _at, argument):
        tries[argument] += 1
        if argument == b"always" or (argument == b"once" and tries[argument] == 1):
            return Does(reason="lost_worker", body=b"told", extra=refused)
        return Does(body=argument)

    system.engine.behaviour = behave
    jids = await system.map([b"fine", b"once", b"always", b"fine"], restartable=restartable)
    first = jids[0][0]
    counts = await system.join(jids)
    told = await system.service.info(USER, jids, ["reason", "attempt", "exception"])
    always = told[first + 2]
    assert refused["note"] in always["exception"]
    if restartable:
        assert counts == {"done": 3, "error": 1}
        assert (always["reason"], always["attempt"]) == ("poison", 3)
        assert told[first + 1]["attempt"] == 2
    else:
        assert counts == {"done": 2, "stalled": 2}
        assert (always["reason"], always["attempt"]) == ("lost_worker", 1)
    await counters_agree(system)


async def test_container_that_dies_costs_its_element_only(system):
    tries: dict[bytes, int] = {}

    def behave(_chunk, _at, argument):
        tries[argument] = tries.get(argument, 0) + 1
        if argument == b"poison":
            return Does(exits={"wait_status": 9, "oom_count": 0})
        return Does(body=argument)

    system.engine.behaviour = behave
    arguments = [b"%d" % i for i in range(50)]
    arguments[20] = b"poison"
    jids = await system.map(arguments)
    assert await system.join(jids) == {"done": 49, "error": 1}
    assert {n for key, n in tries.items() if key != b"poison"} == {1}
    assert tries[b"poison"] == 3
    answer = await system.service.wait(USER, jids, timeout_seconds=0)
    assert answer.failed == [(jids[0][0] + 20, "error", "poison")]
    await counters_agree(system)


async def test_dependencies_wait_run_stall_and_ignore(system):
    release = asyncio.Event()
    system.engine.behaviour = lambda _chunk, _at, argument: Does(
        "error" if argument == b"bad" else "done", seconds=0.05 if argument == b"slow" else 0
    )
    slow = await system.call(b"slow")
    after = await system.call(b"x", depends_on=((slow, slow),))
    assert await system.status(after) == "waiting"
    assert (
        f"{slow}"
        in (await system.service.wait(USER, [(after, after)], timeout_seconds=0)).why[after]
    )
    assert await system.join(after) == {"done": 1}
    bad = await system.call(b"bad")
    await system.join(bad)
    stalled = await system.call(b"x", depends_on=((bad, bad),))
    assert await system.status(stalled) == "stalled"
    item = await system.service.result(USER, stalled)
    assert str(bad) in item.message
    assert item.reason == "dependency_failed"
    ignoring = await system.call(b"x", depends_on=((bad, bad),), depends_on_errors="ignore")
    assert await system.join(ignoring) == {"done": 1}
    slow = await system.call(b"slow")
    jids = await system.map([b"%d" % i for i in range(1500)], depends_on=((slow, slow),))
    assert await system.join(jids) == {"done": 1500}
    with pytest.raises(NotFound, match="_depends_on"):
        await system.call(depends_on=((10**9, 10**9),))
    release.set()
    await counters_agree(system)


async def test_failed_dependency_stalls_a_whole_map(system):
    system.engine.behaviour = lambda _chunk, _at, argument: Does(
        "error" if argument == b"bad" else "done", seconds=0.05
    )
    bad = await system.call(b"bad")
    jids = await system.map([b"x"] * 1200, depends_on=((bad, bad),))
    assert await system.join(jids) == {"stalled": 1200}
    await counters_agree(system)


async def test_kill_ends_waiting_queued_and_running(system):
    system.engine.behaviour = lambda *_: Does(seconds=60)
    running = [await system.call() for _ in range(2)]
    while system.engine.running() < 2:
        await asyncio.sleep(0.01)
    queued = await system.map([b"x"] * 1500)
    waiting = await system.call(depends_on=((running[0], running[0]),))
    assert await system.service.kill(USER, [(queued[0][0], queued[0][0] + 9)]) == 10
    assert await system.service.kill(OTHER, None) == 0
    killed = await system.service.kill(USER, None)
    assert killed == 2 + 1490 + 1
    for jid in (*running, queued[0][0], waiting):
        assert await system.status(jid) == "killed"
    assert (await system.service.result(USER, running[0])).reason == "killed"
    assert system.engine.running() == 0
    await counters_agree(system)


async def test_delete_removes_everything_of_a_job(system):
    jids = await system.map([b"%d" % i for i in range(10)])
    await system.join(jids)
    large = await system.call(BlobRef("ab" * 16, 10**6, ""))
    await system.join(large)
    first, last = jids[0]
    assert await system.service.delete(USER, [(first, first + 4)]) == 5
    with pytest.raises(NotFound):
        await system.service.statuses(USER, [(first, first)])
    assert (await system.service.result(USER, first + 5)).body == b"5"
    await counters_agree(system)
    await system.service.delete(USER, [(first + 5, last), (large, large)])

    def left(tx):
        tables = ("jobs", "parts", "part_files", "batches", "results", "functions")
        counts = {t: tx.value(Statement(f"SELECT COUNT(*) FROM {t}")) for t in tables}
        return counts, tx.all(Statement("SELECT links FROM blobs"))

    counts, blobs = await system.database.read(left)
    assert set(counts.values()) == {0}, counts
    assert blobs == [(0,)]
    leases = {chunk.lease for chunk in system.engine.submitted}
    assert set(system.engine.deleted) == leases


async def test_unfinished_jobs_are_not_deleted(system):
    system.engine.behaviour = lambda *_: Does(seconds=60)
    jid = await system.call()
    with pytest.raises(Conflict, match="not finished"):
        await system.service.delete(USER, [(jid, jid)])


async def test_others_jobs_are_unknown(system):
    jid = await system.call()
    await system.join(jid)
    for request in (
        system.service.statuses(OTHER, [(jid, jid)]),
        system.service.results(OTHER, [(jid, jid)], limit_bytes=10),
        system.service.info(OTHER, [(jid, jid)], None),
        system.service.kill(OTHER, [(jid, jid)]),
        system.service.delete(OTHER, [(jid, jid)]),
        system.service.arguments(OTHER, jid),
        system.service.function(OTHER, jid),
        system.service.wait(OTHER, [(jid, jid)], timeout_seconds=0),
    ):
        with pytest.raises(NotFound):
            await request


async def test_kept_results_of_a_part_are_each_read_once(system, monkeypatch):
    """They are packed many in a record, and the store writes nothing else meanwhile."""
    arguments = [b"%d" % i for i in range(100)]
    await system.join(await system.map(arguments, cache=True))
    read: list[int] = []
    read_row = queries.read_result_row

    def counted(tx, result):
        read.append(result)
        return read_row(tx, result)

    monkeypatch.setattr(queries, "read_result_row", counted)
    jids = await system.map(arguments, cache=True)
    assert len(set(read)) == len(read) < len(arguments)
    monkeypatch.undo()
    answer = await system.service.results(USER, jids, limit_bytes=10_000)
    assert [item.body for item in answer.items] == arguments


async def test_maps_that_a_user_begins_and_does_not_send_are_bounded(system, monkeypatch):
    monkeypatch.setattr(maps, "MAX_OPEN_MAPS", 2)
    made = [await system.service.create_map(USER, spec(), "", 10, function()) for _ in range(2)]
    with pytest.raises(Conflict, match="not complete"):
        await system.service.create_map(USER, spec(), "", 10, function())
    other = await system.service.create_map(OTHER, spec(), "", 0, function())
    await system.service.seal_map(USER, made[0].map, 0, 0, short=True)
    last = await system.service.create_map(USER, spec(), "", 0, function())
    for user, found in ((USER, made[1]), (USER, last), (OTHER, other)):
        await system.service.seal_map(user, found.map, 0, 0, short=True)


async def test_words_with_nul_from_a_container_end_their_job_and_hold_up_nobody(system):
    ends = [Does(exits={"wait_status": 6, "oom_count": 0, "message": "bad\0words"})] * 2
    system.engine.behaviour = lambda *_: ends.pop() if ends else Does()
    jid = await system.call(kill_process=True)
    assert await system.join(jid) == {"error": 1}
    assert await system.join(await system.call()) == {"done": 1}
    assert "badwords" in (await system.service.result(USER, jid)).message


async def test_cached_result_is_taken_over(system):
    first = await system.call(b"a", cache=True)
    await system.join(first)
    again = await system.service.submit_call(USER, spec(cache=True), "", function(), b"a")
    assert again.cached
    assert again.jid != first
    assert (await system.service.result(USER, again.jid)).body == b"a"
    found = await system.service.info(USER, [(again.jid, again.jid)], ["cached_from"])
    assert found[again.jid]["cached_from"] == first
    others = await system.service.submit_call(OTHER, spec(cache=True), "", function(), b"a")
    assert not others.cached
    await system.join(others.jid, user_id=OTHER)
    ran = len(system.engine.submitted)
    jids = await system.map([b"a", b"new", b"a"], cache=True)
    assert await system.join(jids) == {"done": 3}
    assert sum(b - a + 1 for c in system.engine.submitted[ran:] for a, b in c.jids) == 1
    await counters_agree(system)


async def test_cap_is_checked_in_the_submit(tmp_path, url):
    engine = FakeEngine(behaviour=lambda *_: Does(seconds=0.01))
    async with running_system(
        tmp_path, url=url, engine=engine, quota=Quota(cost=1e-9)
    ) as system:
        jid = await system.call()
        await system.join(jid)
        with pytest.raises(QuotaExceeded) as caught:
            await system.call()
        assert caught.value.reason == EndReason.CAP_REACHED


async def test_listing_is_newest_first_and_filters(system):
    system.engine.behaviour = lambda _chunk, _at, argument: Does(
        "error" if argument == b"bad" else "done"
    )
    jids = await system.map([b"a", b"bad", b"c"], label="m")
    await system.join(jids)
    call = await system.call(label="c")
    await system.join(call)
    service, first = system.service, jids[0][0]

    async def listed(**fields):
        return [line.jid for line in await service.list_jobs(USER, **fields)]

    assert await listed() == [call, first + 2, first + 1, first]
    assert await listed(limit=2) == [call, first + 2]
    assert await listed(before=first + 2, limit=1) == [first + 1]
    assert await listed(label="m") == [first + 2, first + 1, first]
    assert await listed(status="error") == [first + 1]
    assert await listed(status="done") == [call, first + 2, first]
    batch = (await service.list_jobs(USER, label="m"))[0].map
    assert await listed(map_id=batch) == [first + 2, first + 1, first]
    assert await service.list_jobs(OTHER) == []
    assert await service.counts(USER) == {"done": 3, "error": 1}


# -------------------------------------------------------------------------------- PostgreSQL alone
async def test_database_serves_one_service_at_a_time(tmp_path, server, monkeypatch):
    url = fresh_database(server, f"store{next(_names)}")
    async with running_system(tmp_path, url=url):
        monkeypatch.setattr(connections, "BUSY_SECONDS", 1.0)
        with pytest.raises(Unavailable, match="in use by another service"):
            await open_database(tmp_path / "other.db", url).open()
        monkeypatch.undo()
    async with running_system(tmp_path, url=url) as system:
        assert await system.join(await system.call()) == {"done": 1}


async def test_value_that_the_database_cannot_keep_is_refused_in_words(tmp_path, server):
    url = fresh_database(server, f"store{next(_names)}")
    async with running_system(tmp_path, url=url) as system:
        with pytest.raises(InvalidRequest, match="cannot keep"):
            await system.call(label="a\0b")
        assert await system.join(await system.call()) == {"done": 1}
