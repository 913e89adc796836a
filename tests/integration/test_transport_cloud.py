"""The functions of `cloud` against a server that plays the control API."""

import asyncio
import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.cloud import maps
from picloud_jupyter.transport.client import Exchange
from picloud_jupyter.transport.paths import service_paths
from tests.tools.play_gateway import played_service


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with played_service(tmp_path, monkeypatch) as played:
        yield played


def later(action, seconds=0.05):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def divide(a, b=1):
    return a / b


# ------------------------------------------------------------------------------- call, result
def test_call_and_result_need_two_requests(gateway):
    assert cloud.result(cloud.call(divide, 6, b=3)) == 2
    del gateway.requests[:]
    jid = cloud.call(divide, 6, b=3)
    assert jid.result() == 2
    assert [path for _, path in gateway.requests] == ["/v1/calls", "/v1/results"]
    assert gateway.connections == 1


def test_call_sends_one_job_when_the_first_answer_is_lost(gateway):
    gateway.faults.append(("drop_after", "/v1/calls"))
    assert cloud.result(cloud.call(divide, 8, 2)) == 4
    assert gateway.count("POST /v1/calls") == 2
    assert len(gateway.jobs) == 1


def test_same_key_gives_the_same_job(gateway):
    assert cloud.call(divide, 1, _key="order-17") == cloud.call(divide, 1, _key="order-17")


def test_call_with_wrong_arguments_sends_nothing(gateway):
    for wrong in (
        lambda: cloud.call(5),  # type: ignore[arg-type]
        lambda: cloud.call(divide),
        lambda: cloud.call(divide, c=1),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="_label"):
        cloud.call(divide, 1, _lable="x")
    assert gateway.requests == []


def test_spec_holds_what_the_keywords_say(gateway):
    jid = cloud.call(divide, 1, _label="l", _type="c2", _cores=2, _max_runtime=0.5, _retries=3)
    spec = gateway.jobs[jid]["spec"]
    assert (spec["label"], spec["core_type"], spec["cores"]) == ("l", "c2", 2)
    assert (spec["max_runtime_seconds"], spec["retries"]) == (30.0, {"count": 3})
    assert spec["folder"] == os.getcwd()
    assert "divide at " in spec["function_name"]
    assert "label" not in gateway.jobs[cloud.call(divide, 1)]["spec"]


def test_large_payloads_travel_as_files_and_come_back_by_a_map(gateway, tmp_path):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(400_000, dtype=float)
    back = cloud.result(cloud.call(lambda a: a + 1, array))
    assert (back == array + 1).all()
    back[0] = 7  # writable, and the file stays as it is
    assert gateway.count("POST /v1/uploads/u1") == 1
    assert any(path.name.startswith("result-") for path in tmp_path.iterdir())


def test_remote_service_gets_uploads_and_gives_results_by_http(gateway, monkeypatch):
    monkeypatch.setenv("PICLOUD_URL", f"unix://{service_paths().api_socket}")
    monkeypatch.setenv("PICLOUD_API_KEY", "k")
    cloud.close()
    assert cloud.result(cloud.call(lambda a: a * 2, b"x" * 100_000)) == b"x" * 200_000
    assert gateway.count("PUT /v1/uploads/") == 1
    assert gateway.count(r"GET /v1/jobs/\d+/result") == 1


def test_guards_name_what_is_too_large(gateway):
    big_table = b"x" * 17_000_000
    with pytest.raises(cloud.CloudException, match="big_table"):
        cloud.call(lambda: len(big_table))
    cloud.config.max_transmit_data = 1000
    try:
        with pytest.raises(cloud.CloudException, match="max_transmit_data"):
            cloud.call(len, b"x" * 5000)
        with pytest.raises(cloud.CloudException, match="max_transmit_data"):
            cloud.map(len, [b"x" * 100_000])
    finally:
        cloud.config.max_transmit_data = 256 * 1024 * 1024
    assert not gateway.jobs


def test_warnings_of_a_submit_are_shown_once(gateway):
    gateway.warnings = ["numpy differs"]
    with pytest.warns(UserWarning, match="numpy differs"):
        cloud.call(divide, 1)
    cloud.call(divide, 1)


# ------------------------------------------------------------------------------- failures
def test_failed_job_raises_the_traceback_with_the_original_as_cause(gateway):
    jid = cloud.call(divide, 1, 0)
    with pytest.raises(cloud.JobFailed, match="ZeroDivisionError") as caught:
        cloud.result(jid)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.jid == jid
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert isinstance(cloud.result(jid, ignore_errors=True), cloud.JobFailed)


class Bomb:
    loaded = 0

    def __reduce__(self):
        return _explode, ()


def _explode():
    Bomb.loaded += 1
    raise RuntimeError("boom")


def test_nothing_is_unpickled_before_result(gateway):
    jid = cloud.call(Bomb)
    cloud.join(jid)
    assert jid.status() == "done"
    jid.info()
    jid._repr_html_()
    assert Bomb.loaded == 0
    with pytest.raises(cloud.CloudException, match="cannot be loaded here: RuntimeError: boom"):
        jid.result()
    assert Bomb.loaded == 1


def test_killed_and_stalled_jobs_raise_their_words(gateway):
    gateway.hold = True
    killed, stalled = cloud.call(divide, 1), cloud.call(divide, 1)
    killed.kill()
    gateway.end(stalled, "stalled", "dependency_failed", message="job 7 failed")
    with pytest.raises(cloud.JobKilled, match="you killed it") as caught:
        cloud.result(killed)
    assert caught.value.reason == "killed"
    with pytest.raises(cloud.JobStalled, match="job 7 failed"):
        cloud.join(stalled)


def test_first_failure_ends_a_join_while_others_run(gateway):
    gateway.hold = True
    jids = cloud.map(divide, [1, 2, 3])
    later(lambda: gateway.end(jids[1], "error", "oom", message="out of memory"))
    with pytest.raises(cloud.JobFailed, match="out of memory"):
        cloud.join(jids, timeout=20)


# ------------------------------------------------------------------------------- waiting
def test_result_waits_and_times_out(gateway):
    gateway.hold = True
    jids = cloud.map(divide, [4, 6])
    for wait in (cloud.join, cloud.result):
        with pytest.raises(cloud.CloudTimeoutError) as caught:
            wait(jids[0], timeout=0.05)
        assert caught.value.jid == jids[0]
        with pytest.raises(cloud.CloudTimeoutError) as caught:
            wait(jids, timeout=0.05)
        assert caught.value.jid == list(jids)
    later(lambda: [gateway.run(jid) for jid in jids])
    assert cloud.result(jids, timeout=20) == [4, 6]


def test_unfinished_single_job_is_asked_for_again_after_a_minute(gateway, monkeypatch):
    from picloud_jupyter.cloud import waiting

    monkeypatch.setattr(waiting.Deadline.slice_seconds, "__defaults__", (0.02,))
    gateway.hold = True
    jid = cloud.call(divide, 4)
    later(lambda: gateway.run(jid), 0.1)
    assert cloud.result(jid) == 4


@pytest.mark.parametrize("timeout", ["5", True, [1]])
def test_timeout_of_a_wrong_type_is_refused(gateway, timeout):
    with pytest.raises(TypeError, match="timeout"):
        cloud.result(1, timeout)


def test_wait_for_status_returns_or_says_never(gateway):
    gateway.hold = True
    jid = cloud.call(divide, 1)
    later(lambda: gateway.run(jid))
    assert cloud.wait_for.status(jid, "done", timeout=20) == "done"
    with pytest.raises(cloud.CloudException, match="never"):
        cloud.wait_for.status(jid, "processing")
    other = cloud.call(divide, 1)
    with pytest.raises(cloud.CloudTimeoutError):
        cloud.wait_for.status(other, "done", timeout=0.05)


# ------------------------------------------------------------------------------- maps
def test_map_of_several_parts_gives_every_result_in_order(gateway):
    jids = cloud.map(divide, range(2500))
    assert isinstance(jids, cloud.Jids)
    assert jids.result() == list(range(2500))
    assert gateway.count("PUT /v1/maps/1/parts/") == 3
    assert gateway.maps[1]["count"] == 2500
    assert jids[10:12].result() == [10, 11]
    assert cloud.result([jids[3], jids[1], jids[3]]) == [3, 1, 3]
    assert cloud.status(jids[:2]) == ["done", "done"]


def test_map_survives_lost_answers_without_doubled_jobs(gateway):
    gateway.faults += [
        ("drop_after", "/v1/maps/1/parts/0"),
        ("drop_after", "/v1/maps/1/parts/2"),
    ]
    assert cloud.map(divide, range(2500)).result() == list(range(2500))
    assert len(gateway.jobs) == 2500


def test_map_of_a_generator_is_sent_as_it_is_read(gateway, monkeypatch):
    monkeypatch.setattr(maps, "MAX_PART_COUNT", 10)
    seen = []

    def numbers():
        for i in range(25):
            seen.append(len(gateway.jobs))
            yield i

    assert cloud.map(divide, numbers()).result() == list(range(25))
    assert seen[-1] >= 10  # the first part was there long before the end
    assert gateway.maps[1]["count"] is None


def test_slow_generator_is_sent_after_a_second(gateway, monkeypatch):
    monkeypatch.setattr(maps, "PART_SECONDS", 0.0)
    assert cloud.map(divide, iter(range(3))).result() == [0, 1, 2]
    assert len(gateway.maps[1]["parts"]) == 3


def test_keyed_map_of_a_list_is_not_cut_by_the_clock(gateway, monkeypatch):
    monkeypatch.setattr(maps, "PART_SECONDS", 0.0)
    assert cloud.map(divide, [1, 2, 3], _key="k").result() == [1, 2, 3]
    assert len(gateway.maps[1]["parts"]) == 1  # as a repeat on a faster machine has it


def test_failing_generator_kills_what_was_sent(gateway, monkeypatch):
    monkeypatch.setattr(maps, "MAX_PART_COUNT", 10)
    gateway.hold = True

    def numbers():
        yield from range(25)
        raise OSError("no more data")

    with pytest.raises(OSError, match="no more data"):
        cloud.map(divide, numbers())
    assert {job["status"] for job in gateway.jobs.values()} == {"killed"}
    assert gateway.maps[1]["sealed"]


def test_interrupted_map_kills_the_part_under_way_too(gateway, monkeypatch):
    monkeypatch.setattr(maps, "MAX_PART_COUNT", 10)
    gateway.hold = True
    answer = Exchange.answer
    asked: list[Exchange] = []

    def interrupted(exchange):
        if exchange._name.endswith("/parts/2") and not asked:
            asked.append(exchange)
            exchange.abandon()
            raise KeyboardInterrupt
        return answer(exchange)

    monkeypatch.setattr(Exchange, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cloud.map(divide, range(45))
    assert len(gateway.jobs) == 30
    assert {job["status"] for job in gateway.jobs.values()} == {"killed"}
    assert gateway.maps[1]["sealed"]


def test_map_elements_above_the_inline_size_are_uploaded(gateway):
    values = [b"a" * 10, b"b" * 100_000, b"c" * 70_000, b"d"]
    assert cloud.map(lambda x: x[:1] * 2, values).result() == [b"aa", b"bb", b"cc", b"dd"]
    assert gateway.count("POST /v1/uploads/") == 2


def test_map_fills_missing_entries_and_checks_its_arguments(gateway):
    assert cloud.map(lambda a, b: (a, b), [1, 2], "x").result() == [(1, "x"), (2, None)]
    assert cloud.map(divide, []) == []
    assert gateway.count("POST /v1/maps$") == 1
    with pytest.raises(ValueError, match="iterable"):
        cloud.map(divide)
    with pytest.raises(TypeError, match="2"):
        cloud.map(divide, [1], 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="extra"):
        cloud.map(divide, [1], extra=3)
    with pytest.raises(ValueError, match="_callback"):
        cloud.map(divide, [1], _callback=print)
    with pytest.raises(ValueError, match="1,000,000"):
        cloud.map(divide, range(1_000_001))


# ------------------------------------------------------------------------------- iresult
def test_iresult_goes_on_after_errors_and_timeouts(gateway):
    gateway.hold = True
    jids = cloud.map(lambda x: 10 // x, [1, 0, 5, 2])
    iterator = cloud.iresult(jids, timeout=0.05, num_in_parallel=3)
    with pytest.raises(cloud.CloudTimeoutError):
        next(iterator)
    for jid in jids:
        gateway.run(jid)
    assert next(iterator) == 10
    with pytest.raises(cloud.JobFailed):
        next(iterator)
    assert iterator.next(timeout=5) == 2
    assert list(iterator) == [5]


def test_iresult_fetches_windows_ahead(gateway):
    jids = cloud.map(divide, range(100))
    del gateway.requests[:]
    assert list(cloud.iresult(jids, num_in_parallel=50)) == list(range(100))
    assert gateway.count("POST /v1/results") == 2
    assert list(cloud.iresult([jids[1], jids[0], jids[1]], num_in_parallel=0)) == [1, 0, 1]


# ------------------------------------------------------------------------------- handles
def test_handles_can_be_awaited_together(gateway):
    gateway.hold = True
    jids = [cloud.call(divide, n) for n in range(20)]
    both = cloud.map(divide, [5, 6])

    async def main():
        later(lambda: [gateway.run(jid) for jid in [*jids, *both]])
        return await asyncio.gather(*jids), await both

    found, mapped = asyncio.run(main())
    assert found == list(range(20))
    assert mapped == [5, 6]


def test_awaited_failure_raises_and_a_cancelled_wait_ends(gateway):
    failing = cloud.call(divide, 1, 0)
    gateway.hold = True
    endless = cloud.call(divide, 1)

    async def main():
        with pytest.raises(cloud.JobFailed):
            await failing
        async with asyncio.timeout(0.05):
            await endless

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_callbacks_run_here_by_outcome_and_by_signature(gateway):
    gateway.hold = True
    seen, all_seen = [], threading.Event()

    def note(*what):
        seen.append(what)
        if len(seen) == 3:
            all_seen.set()

    def broken():
        raise ValueError("a callback of the test fails")

    good = cloud.call(
        divide, 1, _callback=[broken, lambda jid: note("done", jid), lambda: note("plain")]
    )
    bad = cloud.call(
        divide,
        1,
        0,
        _callback=lambda: note("wrong"),
        _callback_on_error=lambda j: note("error", j),
    )
    gateway.run(good)
    gateway.run(bad)
    assert all_seen.wait(20)
    assert sorted(seen) == [("done", good), ("error", bad), ("plain",)]


def test_handles_are_shown_with_their_status(gateway):
    jid = cloud.call(divide, 1)
    assert "done" in jid._repr_html_()
    assert jid._repr_mimebundle_()["text/plain"] == str(int(jid))
    jids = cloud.map(divide, [1, 2])
    assert "2 done" in jids._repr_html_()
    assert "2-3" in repr(jids)


# ------------------------------------------------------------------------------- info, the rest
def test_info_is_keyed_by_jid_and_loads_only_what_is_asked(gateway):
    jid = cloud.call(divide, 6, b=2)
    assert cloud.info(jid) == {
        jid: {"stdout": "out\n", "stderr": "", "status": "done", "runtime": 0.5}
    }
    assert gateway.count("GET /v1/jobs/") == 0
    found = cloud.info(jid, "all")[jid]
    assert found["created"].year == 2001
    assert found["args"] == (6,)
    assert found["kwargs"] == {"b": 2}
    assert found["func_object"](6, b=2) == 3
    assert cloud.info(jid, ["args", "status"])[jid] == {
        "args": (6,),
        "kwargs": {"b": 2},
        "status": "done",
    }
    with pytest.raises(TypeError):
        cloud.info(jid, [5])


@pytest.mark.parametrize(
    "function", [cloud.status, cloud.join, cloud.result, cloud.info, cloud.kill, cloud.delete]
)
def test_wrong_jids_raise_before_anything_is_sent(gateway, function):
    for wrong in ("5", 1.5, [1, "2"], True):
        with pytest.raises(TypeError, match="job id"):
            function(wrong)
    with pytest.raises(ValueError, match="job id"):
        function(0)
    assert gateway.requests == []
    with pytest.raises(cloud.CloudException, match="999"):
        function(999)


def test_kill_and_delete_take_everything_or_nothing(gateway):
    gateway.hold = True
    jids = cloud.map(divide, [1, 2])
    cloud.kill([])
    assert jids.status() == ["queued", "queued"]
    with pytest.raises(cloud.CloudException, match="finish"):
        cloud.delete(jids)
    cloud.kill()
    assert jids.status() == ["killed", "killed"]
    cloud.delete(jids)
    assert not gateway.jobs


def test_connection_functions_tell_and_close(gateway):
    cloud.call(divide, 1)
    info = cloud.connection_info()
    assert info["opened"] is True
    assert info["connection_type"] == "UNIX"
    assert info["isolated"] is False
    assert cloud.close() is True
    assert cloud.close() is False
    assert cloud.connection_info()["opened"] is False
    assert cloud.running_on_cloud() is False


def test_setkey_without_an_address_warns_and_an_immutable_one_stays(gateway, monkeypatch):
    from picloud_jupyter.cloud import session

    monkeypatch.setattr(session, "_choice", session._Choice())
    with pytest.warns(UserWarning, match="PICLOUD_URL"):
        cloud.setkey(17)
    url = f"unix://{service_paths().api_socket}"
    cloud.setkey("one", "two", server_url=url, immutable=True)
    cloud.setkey("three", server_url=url)
    assert cloud.connection_info()["api_key"] == "one"
    assert cloud.result(cloud.call(divide, 2)) == 2


def test_names_of_picloud_that_are_not_there_yet_are_said_so(gateway):
    with pytest.raises(AttributeError, match=r"cloud\.queue of PiCloud"):
        cloud.queue  # noqa: B018
    with pytest.raises(AttributeError, match="nonsense"):
        cloud.nonsense  # noqa: B018


def test_inside_a_job_its_key_and_its_place_are_used(gateway):
    from picloud_jupyter.transport import inside

    parent = cloud.call(divide, 1)
    gateway.jobs[parent]["spec"]["folder"] = "/where/the/parent/is"
    gateway.jobs[parent]["spec"]["code_version"] = "c0de"
    job = inside.CurrentJob(
        int(parent), 1, "l" * 16, 0, "pcj_key", str(service_paths().api_socket)
    )
    inside.set_current_job(job)
    try:
        assert cloud.running_on_cloud() is True
        child = cloud.call(divide, 2)
        assert cloud.connection_info()["api_key"] == job.key
    finally:
        inside.set_current_job(None)
    spec = gateway.jobs[child]["spec"]
    assert (spec["folder"], spec["code_version"]) == ("/where/the/parent/is", "c0de")
    assert spec["host_python"] == gateway.jobs[parent]["spec"]["host_python"]
    assert cloud.running_on_cloud() is False


def test_progress_line_tells_of_a_long_wait(gateway, monkeypatch, capsys):
    from picloud_jupyter.cloud import progress

    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "UPDATE_SECONDS", 0.02)
    cloud.config.progress = "on"
    gateway.hold = True
    try:
        jids = cloud.map(divide, [1, 2, 3, 4])
        gateway.run(jids[0])
        later(lambda: [gateway.run(jid) for jid in jids[1:]], 0.1)
        started = time.monotonic()
        jids.join(timeout=20)
        assert time.monotonic() - started < 10
    finally:
        cloud.config.progress = "auto"
    shown = capsys.readouterr().err
    assert "1/4 done, 3 queued" in shown
    assert "4/4 done, in " in shown
