"""What may go wrong in a client while it waits, sends and gives back, against a played control API."""

import asyncio
import functools
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from picloud_jupyter import cloud
from picloud_jupyter.cloud import executor as executor_module
from picloud_jupyter.cloud import maps, outcomes, results
from picloud_jupyter.cloud.array_table import ArrayTable
from picloud_jupyter.cloud.keywords import DEFAULT_OPTIONS
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol.errors import NotFound, QuotaExceeded, Unreachable
from picloud_jupyter.transport.client import Client
from picloud_jupyter.transport.paths import service_paths
from tests.tools.play_gateway import played_service
from tests.tools.service_under_test import eventually


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with played_service(tmp_path, monkeypatch) as played:
        yield played
        cloud.close()
        eventually(lambda: all(t.name != "picloud-watcher" for t in threading.enumerate()))


def same(x=0):
    return x


def delete_unseen(gateway, jid):
    """End and delete a job before anybody who watches it has looked again."""
    gateway.run(jid)
    del gateway.jobs[jid]
    with gateway.changed:
        gateway.changed.notify_all()


def fail_once(monkeypatch, owner, name, error):
    """Have the next call of ``owner.name`` raise ``error``."""
    true = getattr(owner, name)
    left = [error]

    def failing(*args, **kwargs):
        if left:
            raise left.pop()
        return true(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


# ------------------------------------------------------------------------------ who watches
def test_a_deleted_job_takes_no_callback_of_another_along(gateway):
    gateway.hold = True
    seen: list[int] = []
    jids = [cloud.call(same, _callback=seen.append) for _ in range(5)]
    delete_unseen(gateway, jids[2])
    others = [*jids[:2], *jids[3:]]
    eventually(lambda: gateway.count("POST /v1/status") > 1)
    for jid in others:
        gateway.run(jid)
    eventually(lambda: sorted(seen) == others)


def test_a_deleted_job_takes_no_future_of_another_along(gateway):
    gateway.hold = True
    executor = cloud.Executor()
    futures = [executor.submit(same, k) for k in range(4)]
    delete_unseen(gateway, futures[1].jid)
    with pytest.raises(NotFound):
        futures[1].result(timeout=20)
    for k in (0, 2, 3):
        gateway.run(futures[k].jid)
        assert futures[k].result(timeout=20) == k


def test_an_unknown_job_ends_no_other_wait(gateway):
    gateway.hold = True
    jid = cloud.call(same, 5)

    async def main():
        waiting = asyncio.ensure_future(cloud.aresult(jid))
        await asyncio.sleep(0)  # it is watched now
        with pytest.raises(NotFound):
            await cloud.aresult(999)
        gateway.run(jid)
        async with asyncio.timeout(20):
            return await waiting

    assert asyncio.run(main()) == 5


def test_an_exit_in_a_callback_ends_no_other_callback(gateway):
    seen: list[int] = []
    cloud.call(same, _callback=lambda: sys.exit(1))
    eventually(lambda: gateway.count("POST /v1/status"))
    jid = cloud.call(same, _callback=seen.append)
    eventually(lambda: seen == [jid])


def test_futures_and_awaits_end_with_the_connection(gateway):
    gateway.hold = True
    future = cloud.Executor().submit(same)

    async def main():
        waiting = asyncio.ensure_future(cloud.aresult(cloud.call(same)))
        await asyncio.sleep(0)
        cloud.close()
        async with asyncio.timeout(20):
            await waiting

    with pytest.raises(cloud.CloudException, match="connection was closed"):
        asyncio.run(main())
    with pytest.raises(cloud.CloudException, match="connection was closed"):
        future.result(timeout=20)


def test_thread_that_could_not_start_is_started_by_the_next_watch(gateway, monkeypatch):
    true = threading.Thread.start

    def start(thread):
        if thread.name == "picloud-watcher":
            raise RuntimeError("can't start new thread")
        true(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="thread"):
            cloud.call(same, _callback=print)
    seen: list[int] = []
    jid = cloud.call(same, _callback=seen.append)
    eventually(lambda: seen == [jid])


def test_awaited_generator_of_jids_gives_all_results(gateway):
    jids = [cloud.call(same, k) for k in range(3)]

    async def main():
        return await cloud.aresult(jid for jid in reversed(jids))

    assert asyncio.run(main()) == [2, 1, 0]


# -------------------------------------------------------------------------------- executors
@pytest.mark.parametrize("error", [OSError("no memory"), SystemExit("no memory")])
def test_result_that_cannot_be_had_is_raised_by_its_future(gateway, monkeypatch, error):
    fail_once(monkeypatch, outcomes, "_map_file", error)
    executor = cloud.Executor()
    with pytest.raises(type(error), match="no memory"):
        executor.submit(bytes, 100_000).result(timeout=20)
    assert executor.submit(bytes, 100_000).result(timeout=20) == bytes(100_000)


def test_call_cancelled_while_its_job_is_made_does_not_run(gateway, monkeypatch):
    gateway.hold = True
    executor = cloud.Executor(max_workers=1)
    first, second = executor.submit(same), executor.submit(same)
    true = vars(executor_module)["submit_call"]

    def cancelled_meanwhile(*args, **kwargs):
        jid = true(*args, **kwargs)
        assert second.cancel()
        return jid

    monkeypatch.setattr(executor_module, "submit_call", cancelled_meanwhile)
    gateway.run(first.jid)
    eventually(lambda: len(gateway.jobs) == 2 and gateway.jobs[2]["status"] == "killed")
    assert second.cancelled()


def test_executor_keeps_nothing_of_what_it_cancelled_or_could_not_send(gateway):
    gateway.hold = True
    executor = cloud.Executor(max_workers=1)
    first, second, third = (
        executor.submit(same),
        executor.submit(same),
        executor.submit(type, threading.Lock()),
    )
    assert second.cancel()
    gateway.run(first.jid)
    with pytest.raises(Exception, match="lock"):
        third.result(timeout=20)
    eventually(lambda: executor._list_unfinished() == [])


def test_map_that_cannot_be_sent_whole_leaves_no_job(gateway):
    gateway.hold = True
    executor = cloud.Executor(max_workers=9)
    with pytest.raises(Exception, match="lock"):
        executor.map(type, [1, 2, threading.Lock()])
    assert [job["status"] for job in gateway.jobs.values()] == ["killed", "killed"]


def test_unordered_results_come_as_they_are_ready(gateway):
    gateway.hold = True
    found = cloud.pool_interface.imap_unordered(same, [1, 2, 3])
    for jid in (3, 1, 2):
        gateway.run(jid)
        assert next(found) == jid
    assert list(found) == []


def test_shared_memory_of_two_types_is_two_arrays(gateway):
    numpy = pytest.importorskip("numpy")
    floats = numpy.zeros(9_000, [("a", "f8"), ("b", "f8")])
    integers = floats.view([("c", "i8"), ("d", "i8")])
    table = ArrayTable()
    calls = [functools.partial(lambda a: a.dtype.names, a) for a in (floats, integers) * 3]
    jids = [table.submit(call, DEFAULT_OPTIONS) for call in calls]
    assert cloud.result(jids) == [("a", "b"), ("c", "d")] * 3


# ----------------------------------------------------------------------------------- iresult
def test_iresult_gives_each_once_though_asking_ahead_failed(gateway, monkeypatch):
    jids = cloud.map(same, range(9))
    iterator = cloud.iresult(jids, num_in_parallel=3)
    found = [next(iterator), next(iterator), next(iterator)]
    fail_once(monkeypatch, results, "start_fetch", Unreachable("it restarts"))
    with pytest.raises(Unreachable):
        next(iterator)
    assert found + list(iterator) == list(range(9))


def test_iresult_gives_each_once_though_an_answer_failed(gateway, monkeypatch):
    jids = cloud.map(same, range(9))
    iterator = cloud.iresult(jids, num_in_parallel=3)
    fail_once(monkeypatch, outcomes.PendingOutcomes, "take", Unreachable("it restarts"))
    with pytest.raises(Unreachable):
        next(iterator)
    assert list(iterator) == list(range(9))


def test_iresult_gives_the_same_again_whose_bytes_could_not_be_fetched(gateway, monkeypatch):
    iterator = cloud.iresult(cloud.map(bytes, [100_000, 5]))
    fail_once(monkeypatch, outcomes.Outcome, "_bytes", Unreachable("it restarts"))
    with pytest.raises(Unreachable):
        next(iterator)
    assert [len(found) for found in iterator] == [100_000, 5]


# -------------------------------------------------------------------------------------- maps
def test_quota_met_by_an_upload_leaves_the_part_under_way(gateway, monkeypatch):
    monkeypatch.setattr(maps, "MAX_PART_COUNT", 2)
    fail_once(monkeypatch, maps, "upload", QuotaExceeded("Your quota is reached."))
    with pytest.raises(QuotaExceeded, match="first 4 elements") as caught:
        cloud.map(len, [b"a"] * 4 + [bytes(100_000)])
    assert list(caught.value.jid) == [1, 2, 3, 4]
    assert gateway.maps[1]["sealed"]


def test_map_with_the_key_of_an_earlier_one_does_not_end_its_jobs(gateway, monkeypatch):
    monkeypatch.setattr(maps, "MAX_PART_COUNT", 2)
    gateway.hold = True

    def elements():
        yield from range(5)
        raise OSError("no more data")

    with pytest.raises(OSError, match="no more data") as caught:
        cloud.map(same, elements(), _key="order-17")
    assert "jobs 1-4 of the map with this _key are not ended" in caught.value.__notes__[0]
    assert {job["status"] for job in gateway.jobs.values()} == {"queued"}


def test_guard_names_the_element_of_the_map(gateway, monkeypatch):
    monkeypatch.setattr(maps, "MAX_PART_COUNT", 10)
    monkeypatch.setattr(cloud.config, "max_transmit_data", 5_000)
    with pytest.raises(cloud.CloudException, match="arguments of element 25 are"):
        cloud.map(len, [*["a"] * 25, bytes(6_000)])


def test_map_of_what_has_another_length_than_elements(gateway):
    class Table:
        """As those of pandas: the columns are iterated over, the rows counted."""

        def __len__(self):
            return 100

        def __getitem__(self, name):
            return name

        def __iter__(self):
            return iter("ab")

    assert cloud.map(same, Table()).result() == ["a", "b"]
    assert gateway.maps[1]["count"] is None
    numpy = pytest.importorskip("numpy")
    for sized in ([1, 2], range(2), {1, 2}, {1: 2, 3: 4}, numpy.arange(2)):
        cloud.map(same, sized)
    assert [found["count"] for found in gateway.maps.values()][1:] == [2] * 5


# ------------------------------------------------------------------------------------ others
def test_connection_that_comes_back_to_a_closed_client_is_closed(gateway):
    cloud.call(same)
    client = session().client
    under_way = client.exchange("GET", "/v1/service")
    client.close()
    assert under_way.answer().status == 200
    assert not client.close()
    client.get("/v1/service")
    assert client.close()


def test_result_that_is_not_kept_any_more_is_said_so(gateway):
    gateway.hold = True
    jid = cloud.call(same)
    gateway.end(jid, "done", "done", b"", message="Its result was removed: it was older.")
    with pytest.raises(NotFound, match="was removed"):
        cloud.result(jid)


def test_service_elsewhere_chooses_no_file_of_this_machine(gateway, monkeypatch, tmp_path):
    monkeypatch.setenv("PICLOUD_URL", f"unix://{service_paths().api_socket}")
    cloud.close()
    assert cloud.result(cloud.call(len, bytes(100_000))) == 100_000
    assert not (tmp_path / "u1").exists()


def test_fields_of_info_come_from_the_service_that_was_asked(gateway):
    from picloud_jupyter.cloud.information import info
    from picloud_jupyter.cloud.session import DEFAULT, Service

    other = Service(DEFAULT.find, DEFAULT.start)
    jid = cloud.call(same, 7)
    found = other.run(info, jid, "status")[jid]
    cloud.close()
    assert found["args"] == (7,)
    assert DEFAULT.opened is None
    other.close()


def test_removed_working_folder_is_named_in_words(gateway, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(cloud.RequestError, match="working folder .* was removed"):
        cloud.call(same)
    os.chdir(tmp_path)
    assert cloud.result(cloud.call(same, 1)) == 1


def test_code_that_the_service_lost_is_sent_again(gateway, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_module_of_this_test.py").write_text("def f(): return 5\n")
    import a_module_of_this_test as module  # type: ignore[import-not-found]

    try:
        cloud.call(module.f)
        assert len(gateway.codes) == 1
        gateway.codes.clear()  # as by `picloud down --purge`
        with monkeypatch.context() as patch:
            fail_once(patch, Client, "send_frame", NotFound("the code version is not here"))
            with pytest.raises(NotFound):
                cloud.call(module.f)
        cloud.call(module.f)
        assert len(gateway.codes) == 1
    finally:
        del sys.modules[module.__name__]


def test_setkey_ends_a_simulation_and_an_immutable_one_prevents_it(gateway, monkeypatch):
    from picloud_jupyter.cloud import session as module

    monkeypatch.setattr(module, "_choice", module._Choice())
    url = f"unix://{service_paths().api_socket}"
    cloud.start_simulator()
    assert cloud.is_simulated()
    cloud.setkey("one", server_url=url, immutable=True)
    assert not cloud.is_simulated()
    assert cloud.connection_info()["server_url"] == url
    cloud.start_simulator()
    assert not cloud.is_simulated()


@pytest.mark.parametrize("by_registry", [False, True])
def test_module_that_travels_by_value_is_sent_as_it_is_now(gateway, monkeypatch, by_registry):
    table = types.ModuleType("table_of_this_test")
    if by_registry:
        monkeypatch.setitem(sys.modules, table.__name__, table)
        cloudpickle.register_pickle_by_value(table)
    try:
        names: dict[str, Any] = {"__name__": "__main__", "table": table}
        exec("def f(): return table.value", names)
        found = []
        for table.value in (1, 2, 3):  # type: ignore[attr-defined]
            found.append(cloud.result(cloud.call(names["f"])))
        assert found == [1, 2, 3]
    finally:
        if by_registry:
            cloudpickle.unregister_pickle_by_value(table)


def test_results_of_several_maps_at_once(gateway):
    first, second = cloud.map(same, [1, 2]), cloud.map(same, [3])
    assert cloud.result([first, second, first[0]]) == [1, 2, 3, 1]
    cloud.call(same, _depends_on=[first, second])
    assert gateway.jobs[4]["spec"]["depends_on"] == [[1, 3]]


def test_a_map_that_breaks_off_ends_its_jobs_though_its_last_part_was_refused(
    gateway, monkeypatch
):
    monkeypatch.setattr(maps, "PART_SECONDS", float("inf"))
    gateway.hold = True
    gateway.faults.append(("full", "/v1/maps/1/parts/1"))

    def elements():
        yield from range(2_000)
        raise ValueError("no more of them")

    with pytest.raises(ValueError, match="no more of them"):
        cloud.map(same, elements())
    assert [job["status"] for job in gateway.jobs.values()] == ["killed"] * 1_000
    assert gateway.maps[1]["sealed"]
