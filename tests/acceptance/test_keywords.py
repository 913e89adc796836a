"""Sheet 1.3 and 1.4: every reserved keyword and the core types."""

import os
import time

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]


def info(jid, field):
    return cloud.info(jid, [field])[jid][field]


def test_label_is_kept_and_must_be_text():
    jid = cloud.call(lambda: 1, _label="my label")
    assert info(jid, "label") == "my label"
    with pytest.raises(TypeError):
        cloud.call(lambda: 1, _label=5)
    with pytest.raises(TypeError):
        cloud.call(lambda: 1, _label="grüße")


def test_lower_priority_numbers_run_first():
    blockers = cloud.map(time.sleep, [60] * (os.cpu_count() or 1))
    eventually(lambda: set(cloud.status(blockers)) == {"processing"})
    late = cloud.map(time.sleep, [0.3] * 2 * len(blockers), _priority=9)
    early = cloud.call(time.time, _priority=1)
    cloud.kill(blockers)
    cloud.join([*late, early])
    assert info(early, "started") < max(info(jid, "started") for jid in late)
    with pytest.raises(TypeError):
        cloud.call(lambda: 1, _priority="high")


@pytest.mark.parametrize(
    "keyword",
    [
        {"_restartable": 1},
        {"_fast_serialization": True},
        {"_cores": 1.5},
        {"_cores": True},
        {"_os_env_vars": 5},
        {"_max_runtime": "5"},
        {"_retries": "many"},
    ],
)
def test_wrong_types_raise_type_error(keyword):
    with pytest.raises(TypeError):
        cloud.call(lambda: 1, **keyword)


@pytest.mark.parametrize(
    "keyword",
    [
        {"_depends_on_errors": "maybe"},
        {"_type": "c9"},
        {"_cores": 0},
        {"_max_runtime": 0},
        {"_cores": 3, "_type": "c1"},
    ],
)
def test_wrong_values_raise_value_error(keyword):
    with pytest.raises((ValueError, TypeError)):
        cloud.call(lambda: 1, **keyword)


def test_unknown_underscore_keyword_is_refused_with_near_matches():
    with pytest.raises((TypeError, ValueError), match="_label"):
        cloud.call(lambda: 1, _lable="x")


def test_unknown_underscore_keyword_goes_to_a_function_that_takes_it():
    assert cloud.result(cloud.call(lambda _mine: _mine, _mine=4)) == 4


def test_dependencies_are_waited_for():
    first = cloud.call(time.sleep, 0.5)
    second = cloud.call(lambda: 2, _depends_on=first)
    assert cloud.status(second) in ("waiting", "queued", "processing")
    assert cloud.result(second) == 2
    assert info(second, "started") >= info(first, "finished")


def test_failed_dependency_stalls_or_is_ignored():
    bad = cloud.call(lambda: 1 / 0)
    stalled = cloud.call(lambda: 2, _depends_on=[bad])
    going = cloud.call(lambda: 3, _depends_on=[bad], _depends_on_errors="ignore")
    assert cloud.result(going) == 3
    eventually(lambda: cloud.status(stalled) == "stalled")
    with pytest.raises(cloud.CloudException, match=str(int(bad))):
        cloud.result(stalled)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_fast_serialization_gives_the_same_result(level):
    assert cloud.result(
        cloud.call(lambda x: [x], {"a": (1, 2)}, _fast_serialization=level)
    ) == [{"a": (1, 2)}]


@pytest.mark.parametrize("core_type", ["c1", "c2", "f2", "m1", "s1"])
def test_every_core_type_runs(core_type):
    jid = cloud.call(lambda: 1, _type=core_type)
    assert cloud.result(jid) == 1


def test_high_cpu_is_the_old_name_of_c2():
    jid = cloud.call(lambda: 1, _high_cpu=True)
    assert cloud.result(jid) == 1
    assert info(jid, "attributes")["core_type"] == "c2"


def test_constants_name_the_core_types():
    assert (cloud.c1, cloud.c2, cloud.m1) == ("c1", "c2", "m1")


def test_threads_of_numeric_libraries_follow_the_cores():
    def threads():
        return os.environ["OMP_NUM_THREADS"], os.environ["PYTHON_CPU_COUNT"]

    assert cloud.result(cloud.call(threads)) == ("1", "1")
    if (os.cpu_count() or 1) >= 2:
        assert cloud.result(cloud.call(threads, _type="c2", _cores=2)) == ("2", "2")


def test_more_than_the_machine_has_is_refused_by_name():
    with pytest.raises(cloud.CloudException, match="cores"):
        cloud.call(lambda: 1, _type="f2", _cores=16)


def test_max_runtime_kills_in_minutes():
    jid = cloud.call(time.sleep, 60, _max_runtime=0.02)
    with pytest.raises(cloud.CloudException, match="max_runtime|longer"):
        cloud.result(jid, timeout=20)
    assert cloud.status(jid) == "killed"


def test_environment_variables_by_name_and_by_value(monkeypatch):
    monkeypatch.setenv("MY_SETTING", "here")

    def read():
        return os.environ.get("MY_SETTING"), os.environ.get("OTHER")

    assert cloud.result(cloud.call(read)) == (None, None)
    assert cloud.result(cloud.call(read, _os_env_vars=["MY_SETTING", "NOT_SET"])) == (
        "here",
        None,
    )
    assert cloud.result(cloud.call(read, _os_env_vars={"MY_SETTING": "a", "OTHER": "b"})) == (
        "a",
        "b",
    )


def test_profile_is_kept():
    def work():
        return sum(i for i in range(1000))

    jid = cloud.call(work, _profile=True)
    cloud.join(jid)
    assert "work" in info(jid, "profile")


def test_kill_process_gives_a_fresh_interpreter_each_time():
    def mark():
        import builtins

        seen = getattr(builtins, "_mark", False)
        builtins._mark = True
        return seen

    assert cloud.result([cloud.call(mark, _kill_process=True) for _ in range(3)]) == [False] * 3


def test_volume_of_the_host_is_mounted(service, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "x.txt").write_text("hello")
    (folder / "x.txt").chmod(0o644)

    def submit():
        return cloud.call(lambda: open("/data/x.txt").read(), _vol=f"{folder}:/data")

    if service.kind == "plain":
        with pytest.raises(cloud.CloudException, match="volume"):
            submit()
    else:
        assert cloud.result(submit()) == "hello"


def test_environments_and_named_volumes_are_refused_in_words():
    with pytest.raises((ValueError, cloud.CloudException), match="environment"):
        cloud.call(lambda: 1, _env="precise")
    with pytest.raises((ValueError, cloud.CloudException), match="volume"):
        cloud.call(lambda: 1, _vol="datasets")


def test_callbacks_run_here():
    seen = []
    good = cloud.call(
        lambda: 1,
        _callback=[lambda jid: seen.append(("done", jid)), lambda: seen.append("plain")],
    )
    bad = cloud.call(
        lambda: 1 / 0,
        _callback=lambda j: seen.append("wrong"),
        _callback_on_error=lambda jid: seen.append(("error", jid)),
    )
    eventually(lambda: len(seen) == 3)
    assert ("done", good) in seen
    assert "plain" in seen
    assert ("error", bad) in seen


def test_retries_run_again_by_reason(tmp_path):
    jid = cloud.call(lambda: 1 / 0, _retries=2)
    cloud.join(jid, ignore_errors=True)
    assert info(jid, "attempt") == 3
    assert cloud.status(jid) == "error"


def test_same_key_never_makes_a_second_job():
    first = cloud.call(lambda: 1, _key="order-17")
    second = cloud.call(lambda: 1, _key="order-17")
    assert first == second


def test_cache_gives_the_kept_result():
    def slow(x):
        import uuid

        return x, uuid.uuid4().hex

    first = cloud.result(cloud.call(slow, 5, _cache=True))
    again = cloud.call(slow, 5, _cache=True)
    assert cloud.result(again) == first
    assert cloud.result(cloud.call(slow, 6, _cache=True)) != first
    assert info(again, "cached_from") is not None


def test_network_none_reaches_nothing(service):
    def connect():
        import socket

        socket.create_connection(("192.0.2.1", 80), timeout=2)

    if service.kind == "plain":
        with pytest.raises(cloud.CloudException, match="network"):
            cloud.call(connect, _network="none")
        return
    with pytest.raises(cloud.CloudException, match="[Uu]nreachable|OSError"):
        cloud.result(cloud.call(connect, _network="none"))
