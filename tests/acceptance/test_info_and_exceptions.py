"""Sheet 1.5, 1.6 and 1.7: transitions, exceptions and every info field."""

import datetime
import os
import pickle
import sys
import time

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]


def test_default_fields():
    jid = cloud.call(print, "hello")
    cloud.join(jid)
    found = cloud.info(jid)
    assert set(found) == {jid}
    assert set(found[jid]) == {"stdout", "stderr", "status", "runtime"}
    assert found[jid]["stdout"] == "hello\n"


def test_all_fields_are_there():
    def f(a, b=2):
        print("out")
        print("err", file=sys.stderr)
        return a

    jid = cloud.call(f, 1, b=3, _label="l")
    cloud.join(jid)
    found = cloud.info(jid, "all")[jid]
    assert found["status"] == "done"
    assert (found["stdout"], found["stderr"]) == ("out\n", "err\n")
    assert found["exception"] is None
    assert found["runtime"] >= 0
    assert isinstance(found["created"], datetime.datetime)
    assert found["finished"] >= found["created"]
    assert found["label"] == "l"
    assert "f at" in found["function"]
    assert found["func_object"](1) == 1
    assert found["args"] == (1,)
    assert found["kwargs"] == {"b": 3}
    assert found["cputime.user"] >= 0
    assert found["cputime.system"] >= 0
    assert found["memory.max_usage"] > 0
    assert found["cost"] >= 0
    for name in (
        "attributes",
        "profile",
        "code_version",
        "env",
        "vol",
        "logging",
        "pilog",
        "ports",
        "disk.usage",
    ):
        assert name in found, name


def test_groups_come_as_dotted_keys_and_wrong_fields_raise():
    jid = cloud.call(lambda: 1)
    cloud.join(jid)
    assert "memory.max_usage" in cloud.info(jid, ["memory"])[jid]
    assert list(cloud.info(jid, "memory.max_usage")[jid]) == ["memory.max_usage"]
    with pytest.raises(TypeError):
        cloud.info(jid, [5])
    with pytest.raises((ValueError, cloud.CloudException), match="runtime"):
        cloud.info(jid, "runtimes")


def test_output_is_live_while_the_job_runs():
    def talk():
        print("first", flush=True)
        time.sleep(30)

    jid = cloud.call(talk)
    eventually(lambda: cloud.info(jid, "stdout")[jid]["stdout"] == "first\n")
    assert cloud.status(jid) == "processing"
    assert cloud.info(jid, "runtime")[jid]["runtime"] > 0
    cloud.kill(jid)


def test_usage_is_measured():
    def work():
        began = time.process_time()
        block = bytearray(150_000_000)
        end = time.process_time() + 0.6
        while time.process_time() < end:
            pass
        return len(block), time.process_time() - began

    jid = cloud.call(work, _kill_process=True)
    _, used = cloud.result(jid)
    found = cloud.info(jid, ["memory", "cputime", "runtime"])[jid]
    assert found["cputime.user"] + found["cputime.system"] == pytest.approx(used, abs=0.25)
    assert found["memory.max_usage"] > 150_000_000
    assert found["runtime"] > 0.5


def test_error_keeps_the_remote_traceback_and_the_original():
    def inner(x):
        raise KeyError(f"no {x}")

    def outer():
        return inner("luck")

    jid = cloud.call(outer)
    with pytest.raises(cloud.CloudException) as caught:
        cloud.result(jid)
    error = caught.value
    assert error.jid == jid
    assert "inner" in str(error)
    assert "outer" in str(error)
    assert 'raise KeyError(f"no {x}")' in str(error)
    assert str(error).startswith(f"Job {jid}:")
    assert isinstance(error.__cause__, KeyError)
    assert "no luck" in cloud.info(jid, "exception")[jid]["exception"]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_exception_class_only_known_remotely_still_has_its_text():
    def fail():
        import types

        module = types.ModuleType("only_there")
        sys.modules["only_there"] = module
        exec("class Odd(Exception): pass", module.__dict__)
        raise module.Odd("strange")

    with pytest.raises(cloud.CloudException, match="strange") as caught:
        cloud.result(cloud.call(fail))
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, Exception)


def test_unpicklable_exception_keeps_its_text():
    def fail():
        import threading

        error = ValueError("has a lock")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(cloud.CloudException, match="has a lock"):
        cloud.result(cloud.call(fail))


def test_waiting_job_says_why():
    blockers = cloud.map(time.sleep, [30] * (os.cpu_count() or 1))
    eventually(lambda: set(cloud.status(blockers)) == {"processing"})
    queued = cloud.call(lambda: 1)
    waiting = cloud.call(lambda: 1, _depends_on=queued)
    try:
        assert "core" in cloud.info(queued, "pilog")[queued]["pilog"]
        assert str(int(queued)) in cloud.info(waiting, "pilog")[waiting]["pilog"]
        assert cloud.status([queued, waiting]) == ["queued", "waiting"]
    finally:
        cloud.kill([*blockers, queued, waiting])


def test_finished_statuses():
    assert sorted(cloud.finished_statuses) == ["done", "error", "killed", "stalled"]
