"""`cloud.Executor` against the contract of concurrent.futures, as CPython's own tests have it."""

import asyncio
import os
import pickle
import threading
import time
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    as_completed,
    wait,
)

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]


@pytest.fixture
def executor():
    """Its jobs share a core: sleeping ones do not keep the others from running."""
    with cloud.Executor(_type="s1") as made:
        yield made


def raise_named(name):
    raise {"key": KeyError, "exit": SystemExit}[name](name)


# ------------------------------------------------------------------------------------ submit
def test_submit_returns_a_future_with_its_job(executor):
    future = executor.submit(pow, 2, 8)
    assert future.result() == 256
    assert future.done()
    assert not future.running()
    assert not future.cancel()
    assert cloud.status(future.jid) == "done"


def test_all_keywords_go_to_the_function(executor):
    def capture(*args, **kwargs):
        return args, kwargs

    future = executor.submit(capture, 1, self=2, fn=3, _label="mine")
    assert future.result() == ((1,), {"self": 2, "fn": 3, "_label": "mine"})


def test_what_cannot_be_sent_is_refused_at_submit(executor):
    with pytest.raises(pickle.PicklingError, match="lock"):
        executor.submit(len, threading.Lock())
    with pytest.raises(TypeError, match="callable"):
        executor.submit(3)
    assert executor.submit(len, "ab").result() == 2


def test_exceptions_are_of_their_own_type_with_the_remote_traceback(executor):
    error = executor.submit(raise_named, "key").exception()
    assert type(error) is KeyError
    assert error.args == ("key",)
    assert isinstance(error.__cause__, cloud.JobFailed)
    assert "raise_named" in str(error.__cause__)
    with pytest.raises(KeyError):
        executor.submit(raise_named, "key").result()


def test_a_chain_of_exceptions_stays(executor):
    def chained():
        try:
            dict[str, int]()["x"]
        except KeyError as exc:
            raise ValueError("outer") from exc

    error = executor.submit(chained).exception()
    assert type(error) is ValueError
    assert type(error.__cause__) is KeyError
    assert isinstance(error.__cause__.__cause__, cloud.JobFailed)


def test_a_killed_job_is_a_job_error(executor):
    future = executor.submit(time.sleep, 60)
    eventually(future.running)
    cloud.kill(future.jid)
    assert isinstance(future.exception(timeout=20), cloud.JobKilled)


def test_timeout_of_a_result(executor):
    future = executor.submit(time.sleep, 60)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.05)
    cloud.kill(future.jid)


def test_done_callbacks_run_here(executor):
    found = []
    future = executor.submit(pow, 2, 2)
    future.add_done_callback(lambda ended: found.append((ended.result(), os.getpid())))
    eventually(lambda: found)
    future.add_done_callback(found.append)
    assert found == [(4, os.getpid()), future]


# ------------------------------------------------------------------------- wait, as_completed
def test_wait_and_as_completed(executor):
    slow, quick = executor.submit(time.sleep, 30), executor.submit(pow, 2, 3)
    done, left = wait([slow, quick], return_when=FIRST_COMPLETED, timeout=30)
    assert (done, left) == ({quick}, {slow})
    bad = executor.submit(raise_named, "key")
    done, _ = wait([slow, bad], return_when=FIRST_EXCEPTION, timeout=30)
    assert bad in done
    cloud.kill(slow.jid)
    assert wait([slow, quick, bad], return_when=ALL_COMPLETED, timeout=30).not_done == set()
    futures = [executor.submit(pow, 2, k) for k in range(5)]
    assert sorted(f.result() for f in as_completed(futures, timeout=30)) == [1, 2, 4, 8, 16]


def test_one_thread_serves_all_futures(executor):
    futures = [executor.submit(time.sleep, 0.1) for _ in range(20)]
    names = [t.name for t in threading.enumerate() if t.name.startswith("picloud")]
    assert len(names) <= 2
    wait(futures)


# ---------------------------------------------------------------------------------------- map
def test_map_keeps_order_and_ends_with_the_shortest(executor):
    assert list(executor.map(pow, range(5), range(9))) == [1, 1, 4, 27, 256]
    assert list(executor.map(pow, [], [])) == []
    assert list(executor.map(pow, (k for k in range(4)), [2] * 9)) == [0, 1, 4, 9]


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_with_chunks(executor, chunksize):
    before = cloud.jobs(1)
    found = list(executor.map(abs, range(-7, 0), chunksize=chunksize))
    assert found == [7, 6, 5, 4, 3, 2, 1]
    first = before[0]["jid"] if before else 0
    assert cloud.jobs(1)[0]["jid"] - first == -(-7 // chunksize)


def test_map_raises_at_the_element_and_timeouts(executor):
    found = executor.map(divmod, [5, 5, 5], [2, 0, 1])
    assert next(found) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        next(found)
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(abs, [1], chunksize=0)
    slow = executor.map(time.sleep, [0, 30], timeout=10)
    assert next(slow) is None
    late = executor.map(time.sleep, [30, 30], timeout=0.3)
    with pytest.raises(TimeoutError):
        list(late)
    slow.close()
    cloud.kill([job["jid"] for job in cloud.jobs(8, status="processing")])


# ------------------------------------------------------------------------------------- cancel
def test_cancel_of_what_has_not_begun():
    with cloud.Executor(_depends_on=(gate := cloud.call(time.sleep, 60))) as executor:
        future = executor.submit(pow, 2, 2)
        seen: list[object] = []
        future.add_done_callback(seen.append)
        assert future.cancel()
        assert future.cancel()
        assert future.cancelled()
        assert seen == [future]
        assert cloud.status(future.jid) == "killed"
        with pytest.raises(CancelledError):
            future.result()
        assert wait([future], timeout=5).not_done == set()
        cloud.kill(gate)


def test_a_running_call_is_not_cancelled(executor):
    future = executor.submit(time.sleep, 60)
    eventually(future.running)
    assert not future.cancel()
    assert cloud.status(future.jid) == "processing"
    cloud.kill(future.jid)


def test_what_max_workers_holds_back_is_cancelled_here():
    with cloud.Executor(max_workers=1) as executor:
        first, second, third = (executor.submit(time.sleep, 0.5) for _ in range(3))
        assert [f.jid is None for f in (first, second, third)] == [False, True, True]
        assert second.cancel()
        assert third.result() is None
        assert [f.jid is None for f in (first, second, third)] == [False, True, False]


def test_max_workers_limits_what_exists_at_once():
    with cloud.Executor(max_workers=2) as executor:
        futures = [executor.submit(time.sleep, 0.1) for _ in range(6)]
        most = 0
        while not all(f.done() for f in futures):
            most = max(most, sum(f.jid is not None and not f.done() for f in futures))
            time.sleep(0.01)
        assert most <= 2


# ----------------------------------------------------------------------------------- shutdown
def test_shutdown_waits_and_refuses():
    executor = cloud.Executor()
    future = executor.submit(time.sleep, 0.3)
    executor.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(pow, 2, 2)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(abs, [1])
    executor.shutdown()


def test_shutdown_without_waiting_leaves_the_jobs():
    executor = cloud.Executor()
    future = executor.submit(time.sleep, 0.5)
    executor.shutdown(wait=False)
    assert not future.done()
    assert future.result(timeout=30) is None


def test_shutdown_cancels_what_has_not_begun():
    gate = cloud.call(time.sleep, 60)
    executor = cloud.Executor(_depends_on=gate)
    futures = [executor.submit(pow, 2, k) for k in range(3)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    cloud.kill(gate)
    held = cloud.Executor(max_workers=1)
    running, *others = [held.submit(time.sleep, 0.3) for _ in range(3)]
    held.shutdown(cancel_futures=True)
    assert [f.cancelled() for f in others] == [True, True]
    assert running.done()


# -------------------------------------------------------------------------- keywords, pickling
def test_reserved_keywords_say_how_jobs_run():
    with cloud.Executor(_label="of-executor", _kill_process=True) as executor:
        future = executor.submit(os.getpid)
        assert future.result()
        assert (jid := future.jid) is not None
        assert cloud.info(jid, "label")[jid]["label"] == "of-executor"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_workers": 0}, ValueError, "at least 1"),
        ({"max_workers": "2"}, TypeError, "max_workers"),
        ({"_key": "k"}, ValueError, "one job of all"),
        ({"_callback": print}, ValueError, "add_done_callback"),
        ({"_labbel": "x"}, TypeError, "_label"),
        ({"threads": 2}, TypeError, "threads"),
        ({"_cores": 7}, ValueError, "_cores"),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_made(arguments, error, words):
    with pytest.raises(error, match=words):
        cloud.Executor(**arguments)


def test_a_pickled_executor_is_refused_with_words(executor):
    with pytest.raises(TypeError, match="make another one in the job"):
        pickle.dumps(executor)
    with pytest.raises(pickle.PicklingError, match="make another one in the job"):
        executor.submit(lambda: executor)


def test_an_executor_within_a_job(executor):
    def parent():
        from picloud_jupyter import cloud

        with cloud.Executor() as inner:
            return list(inner.map(abs, [-1, -2]))

    assert executor.submit(parent).result(timeout=50) == [1, 2]


# ------------------------------------------------------------------------------------ asyncio
async def test_futures_are_awaited_by_asyncio(executor):
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(executor, pow, 2, 5) == 32
    assert await asyncio.wrap_future(executor.submit(pow, 2, 6)) == 64
    with pytest.raises(KeyError):
        await asyncio.wrap_future(executor.submit(raise_named, "key"))


async def test_aresult_lets_the_loop_go_on():
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticker = asyncio.create_task(tick())
    jid = cloud.call(lambda: time.sleep(0.5) or "slept")
    assert await cloud.aresult(jid) == "slept"
    assert await cloud.aresult(cloud.map(abs, [-1, -2])) == [1, 2]
    assert await cloud.aresult([]) == []
    assert ticks > 10
    ticker.cancel()


async def test_aresult_errors_timeouts_and_cancelled_waits():
    bad = cloud.call(raise_named, "key")
    with pytest.raises(cloud.JobFailed):
        await cloud.aresult(bad)
    found = await cloud.aresult([bad], ignore_errors=True)
    assert isinstance(found[0], cloud.JobFailed)
    with pytest.raises(TypeError, match="job id"):
        cloud.aresult("x")
    slow = cloud.map(time.sleep, [60, 60])
    with pytest.raises(cloud.CloudTimeoutError):
        await cloud.aresult(slow, timeout=0.2)
    with pytest.raises(cloud.CloudTimeoutError):
        await cloud.aresult(slow[0], timeout=0.2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(cloud.aresult(slow), 0.2)
    gone = lambda: all(t.name != "picloud-await" for t in threading.enumerate())  # noqa: E731
    eventually(gone, what="the waiting threads have ended")
    cloud.kill(slow)
