"""Sheet 1.1 and 1.2: jids and the functions, each against the real service."""

import asyncio
import time

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]


def finish(jid):
    cloud.join(jid)
    return jid


# ------------------------------------------------------------------------------------- 1.1 jids
def test_call_returns_an_increasing_int():
    first, second = cloud.call(lambda: 1), cloud.call(lambda: 2)
    assert isinstance(first, int)
    assert second > first


def test_map_returns_a_contiguous_block():
    jids = cloud.map(lambda x: x, range(5))
    assert list(jids) == list(range(jids[0], jids[0] + 5))
    assert len(jids) == 5
    assert jids[1:3].result() == [1, 2]
    assert jids[-1].result() == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda j: j,
        list,
        tuple,
        lambda j: range(j[0], j[-1] + 1),
        lambda j: [j[0], range(j[1], j[-1] + 1)],
    ],
)
def test_every_form_of_jids_is_accepted(make):
    jids = cloud.map(lambda x: x * 2, range(3))
    assert cloud.result(make(jids)) == [0, 2, 4]
    assert cloud.status(make(jids)) == ["done"] * 3


@pytest.mark.parametrize(
    "function", [cloud.status, cloud.join, cloud.result, cloud.info, cloud.kill, cloud.delete]
)
@pytest.mark.parametrize("jids", ["5", 1.5, [1, "2"], None])
def test_jids_of_a_wrong_type_raise_type_error(function, jids):
    if function is cloud.kill and jids is None:
        return  # None means everything there
    with pytest.raises(TypeError, match="job id"):
        function(jids)


@pytest.mark.parametrize(
    "function", [cloud.status, cloud.join, cloud.result, cloud.info, cloud.kill, cloud.delete]
)
def test_unknown_jid_raises_cloud_exception(function):
    with pytest.raises(cloud.CloudException, match="2000000000"):
        function(2_000_000_000)


def test_function_name_says_module_and_line():
    jid = finish(cloud.call(len, "abc"))
    assert "builtins.len" in cloud.info(jid, "function")[jid]["function"]


# -------------------------------------------------------------------------------- 1.2 functions
def test_call_passes_arguments():
    def f(a, b=2, *rest, c, **more):
        return a, b, rest, c, more

    assert cloud.result(cloud.call(f, 1, 2, 3, c=4, d=5)) == (1, 2, (3,), 4, {"d": 5})


def test_call_checks_the_function_and_its_signature_before_sending():
    with pytest.raises(TypeError, match="callable"):
        cloud.call(5)
    with pytest.raises(TypeError):
        cloud.call(lambda a: a)
    with pytest.raises(TypeError):
        cloud.call(lambda a: a, 1, 2)


def test_call_does_not_block():
    started = time.monotonic()
    jid = cloud.call(time.sleep, 30)
    assert time.monotonic() - started < 10
    cloud.kill(jid)


def test_map_fills_missing_entries_with_none():
    assert cloud.result(cloud.map(lambda a, b: (a, b), [1, 2, 3], "x")) == [
        (1, "x"),
        (2, None),
        (3, None),
    ]


def test_map_with_bad_arguments_raises():
    with pytest.raises(ValueError, match="iterable"):
        cloud.map(lambda: 1)
    with pytest.raises(TypeError, match="2"):
        cloud.map(lambda a, b: 1, [1], 5)
    with pytest.raises(ValueError, match="extra"):
        cloud.map(lambda a: a, [1], extra=3)
    with pytest.raises(ValueError, match="_callback"):
        cloud.map(lambda a: a, [1], _callback=print)


def test_some_jobs_of_a_map_that_runs_are_waited_for():
    def slowly(x):
        time.sleep(1.0 if x in (2, 4) else 0.1)
        return x

    jids = cloud.map(slowly, range(5))
    cloud.join([jids[0], jids[2]])
    assert cloud.status([jids[0], jids[2]]) == ["done", "done"]
    assert cloud.result(jids[::2]) == [0, 2, 4]


def test_map_of_nothing_is_an_empty_list():
    assert list(cloud.map(lambda a: a, [])) == []


def test_map_takes_a_generator():
    jids = cloud.map(lambda x: x + 1, (i for i in range(2500)))
    assert cloud.result(jids) == list(range(1, 2501))


def test_status_keeps_the_order():
    good, bad = cloud.call(lambda: 1), cloud.call(lambda: 1 / 0)
    cloud.join([good, bad], ignore_errors=True)
    assert cloud.status([bad, good]) == ["error", "done"]
    assert cloud.status(good) == "done"


def test_join_raises_on_an_error_unless_told_to_ignore_it():
    bad = cloud.call(lambda: 1 / 0)
    with pytest.raises(cloud.CloudException, match="ZeroDivisionError"):
        cloud.join(bad)
    assert cloud.join(bad, ignore_errors=True) is None


def test_join_and_result_time_out():
    jid = cloud.call(time.sleep, 30)
    for wait in (cloud.join, cloud.result):
        with pytest.raises(cloud.CloudTimeoutError) as caught:
            wait(jid, timeout=0.2)
        assert caught.value.jid in (jid, [jid])
    cloud.kill(jid)


def test_result_gives_exceptions_in_their_slots_when_errors_are_ignored():
    def f(x):
        return 10 // x

    values = cloud.result(cloud.map(f, [1, 0, 5]), ignore_errors=True)
    assert values[0] == 10
    assert values[2] == 2
    assert isinstance(values[1], cloud.CloudException)


def test_iresult_goes_on_after_an_error():
    iterator = cloud.iresult(cloud.map(lambda x: 10 // x, [1, 0, 5]))
    assert next(iterator) == 10
    with pytest.raises(cloud.CloudException):
        next(iterator)
    assert next(iterator) == 2
    with pytest.raises(StopIteration):
        next(iterator)


def test_iresult_yields_exceptions_and_times_out():
    values = list(cloud.iresult(cloud.map(lambda x: 10 // x, [0, 5]), ignore_errors=True))
    assert isinstance(values[0], cloud.CloudException)
    assert values[1] == 2
    jid = cloud.call(time.sleep, 30)
    with pytest.raises(cloud.CloudTimeoutError):
        next(cloud.iresult([jid], timeout=0.2))
    cloud.kill(jid)


def test_iresult_accepts_any_read_ahead():
    jids = cloud.map(lambda x: x, range(30))
    assert list(cloud.iresult(jids, num_in_parallel=3)) == list(range(30))
    assert list(cloud.iresult(jids, num_in_parallel=0)) == list(range(30))


def test_kill_ends_a_running_job_within_a_second():
    jid = cloud.call(time.sleep, 60)
    eventually(lambda: cloud.status(jid) == "processing")
    started = time.monotonic()
    assert cloud.kill(jid) is None
    eventually(lambda: cloud.status(jid) == "killed", seconds=5)
    assert time.monotonic() - started < 2.5
    with pytest.raises(cloud.CloudException, match="[Kk]illed"):
        cloud.result(jid)


def test_kill_of_an_empty_list_kills_nothing():
    jid = cloud.call(lambda: 7)
    cloud.kill([])
    assert cloud.result(jid) == 7


def test_kill_without_jids_kills_everything():
    jids = cloud.map(time.sleep, [60] * 6)
    cloud.kill()
    eventually(lambda: set(cloud.status(jids)) == {"killed"}, seconds=8)


def test_delete_removes_a_finished_job():
    jid = finish(cloud.call(lambda: 5))
    cloud.delete(jid)
    with pytest.raises(cloud.CloudException):
        cloud.result(jid)


def test_delete_refuses_a_running_job():
    jid = cloud.call(time.sleep, 30)
    with pytest.raises(cloud.CloudException, match="finish"):
        cloud.delete(jid)
    cloud.kill(jid)


def test_handle_does_what_the_functions_do():
    jid = cloud.call(lambda: "x")
    assert jid.result() == "x"
    assert jid.status() == "done"
    assert "runtime" in jid.info()
    assert "done" in jid._repr_html_()


def test_handle_can_be_awaited():
    async def main():
        jid = cloud.call(lambda: 3)
        jids = cloud.map(lambda x: x, [1, 2])
        return await jid, await jids

    assert asyncio.run(main()) == (3, [1, 2])


def test_results_may_be_fetched_twice():
    jid = cloud.call(lambda: [1])
    assert cloud.result(jid) == cloud.result(jid) == [1]


def test_map_of_ten_thousand_gives_every_result():
    assert cloud.result(cloud.map(lambda x: x * x, range(10_000))) == [
        x * x for x in range(10_000)
    ]


def test_wait_for_status():
    jid = cloud.call(lambda: 1)
    assert cloud.wait_for.status(jid, "done", timeout=20) == "done"
    with pytest.raises(cloud.CloudException, match="never"):
        cloud.wait_for.status(jid, "processing", timeout=20)
    slow = cloud.call(time.sleep, 60)
    with pytest.raises(cloud.CloudTimeoutError):
        cloud.wait_for.status(slow, "done", timeout=0.3)
    cloud.kill(slow)


# -------------------------------------------------------------------------------- 0.2 connecting
def test_connection_functions(service):
    info = cloud.connection_info()
    assert info["opened"] is True
    assert cloud.running_on_cloud() is False
    assert cloud.is_simulated() is False
    assert cloud.result(cloud.call(cloud.running_on_cloud)) is True
    assert cloud.close() is True
    assert cloud.close() is False
    assert cloud.result(cloud.call(lambda: 1)) == 1
    assert str(service.home) in cloud.getconfigpath()
