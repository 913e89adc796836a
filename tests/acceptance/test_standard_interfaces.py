"""pool_interface, `cloud.mp`, the simulator, `cloud.jobs` and progress bars."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]
pool = cloud.pool_interface


# --------------------------------------------------------------------------- pool_interface
def test_apply_and_map():
    assert pool.apply(pow, (2, 5)) == 32
    assert pool.apply(int, ("11",), {"base": 2}) == 3
    assert pool.map(abs, [-3, 4], chunksize=2) == [3, 4]
    assert pool.map(abs, []) == []
    assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert list(pool.imap(abs, range(-3, 0), chunksize=2)) == [3, 2, 1]


def test_unordered_results_are_those_of_all_elements():
    assert sorted(pool.imap_unordered(abs, range(-9, 0))) == list(range(1, 10))


def test_results_to_come():
    values: list[object] = []
    errors: list[object] = []
    found = pool.apply_async(pow, (2, 4), callback=values.append)
    assert found.get(timeout=30) == 16
    assert found.ready()
    assert found.successful()
    failed = pool.map_async(
        lambda k: 1 // k, [1, 0], callback=values.append, error_callback=errors.append
    )
    failed.wait(30)
    assert not failed.successful()
    with pytest.raises(ZeroDivisionError):
        failed.get()
    eventually(lambda: errors)
    assert values == [16]
    assert type(errors[0]) is ZeroDivisionError
    both = pool.starmap_async(pow, [(2, 2), (2, 3)], callback=values.append)
    assert both.get(30) == [4, 8]
    eventually(lambda: values == [16, [4, 8]])


def test_timeouts_count_and_are_of_both_kinds():
    slow = pool.apply_async(time.sleep, (60,))
    for kind in (cloud.CloudTimeoutError, multiprocessing.TimeoutError):
        with pytest.raises(kind):
            slow.get(timeout=0.05)
    slow.wait(0.05)
    assert not slow.ready()
    with pytest.raises(ValueError, match="not ready"):
        slow.successful()
    cloud.kill(cloud.jobs(1)[0]["jid"])


def test_wrong_chunksize_is_refused():
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(abs, [1], chunksize=0)


# ----------------------------------------------------------------------------- mp, simulator
def test_mp_beside_cloud():
    ours, theirs = cloud.call(os.getpid), cloud.mp.call(os.getpid)
    assert theirs.result() != ours.result()
    assert theirs.status() == "done"
    assert cloud.mp.status(theirs) == "done"
    assert cloud.mp.is_simulated()
    assert not cloud.is_simulated()
    assert cloud.mp.connection_info()["isolated"] is False
    assert cloud.mp.connection_info()["server_url"] != cloud.connection_info()["server_url"]
    jids = cloud.mp.map(lambda x: x + 1, range(5), _label="of-mp")
    assert (
        jids.result()
        == cloud.mp.result(jids)
        == list(cloud.mp.iresult(jids))
        == [1, 2, 3, 4, 5]
    )
    assert jids[2].result() == 3
    assert jids[1:3].status() == ["done", "done"]
    cloud.mp.join(jids)
    assert jids[0].info("label")["label"] == "of-mp"
    assert cloud.mp.jobs(1)[0]["label"] == "of-mp"
    assert cloud.jobs(1)[0]["label"] != "of-mp"
    cloud.mp.delete(jids)
    bad = cloud.mp.call(lambda: 1 / 0)
    with pytest.raises(cloud.JobFailed) as caught:
        bad.result()
    assert type(caught.value.__cause__) is ZeroDivisionError
    slow = cloud.mp.call(time.sleep, 60)
    cloud.mp.kill(slow)
    assert cloud.mp.status(slow) == "killed"
    with cloud.mp.Executor() as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    assert cloud.mp.close()


async def test_mp_is_awaited():
    assert await cloud.mp.call(abs, -3) == 3
    assert await cloud.mp.map(abs, [-3]) == [3]
    assert await cloud.mp.aresult(cloud.mp.call(abs, -4)) == 4


def test_callbacks_and_generators_of_mp_see_the_usual_cloud():
    found = []
    cloud.mp.call(abs, -1, _callback=lambda jid: found.append((jid, cloud.is_simulated())))
    eventually(lambda: found)
    assert found[0][1] is False

    def elements():
        for k in range(3):
            yield cloud.call(abs, -k).result(), cloud.is_simulated()

    assert cloud.mp.map(lambda pair: pair, elements()).result() == [
        (0, False),
        (1, False),
        (2, False),
    ]


def test_jobs_of_mp_submit_to_their_own_service():
    def parent():
        from picloud_jupyter import cloud

        return cloud.call(abs, -5).result() + cloud.mp.call(abs, -2).result()

    assert cloud.mp.call(parent).result(timeout=50) == 7


SIMULATED = """
import os, sys
from picloud_jupyter import cloud
before = cloud.is_simulated()
cloud.start_simulator()
cloud.start_simulator()
jid = cloud.call(lambda: os.environ["HOME"])
print(before, cloud.is_simulated(), cloud.result(jid).startswith("/"), cloud.connection_info()["isolated"])
print(os.path.dirname(os.path.dirname(cloud.result(cloud.call(lambda: os.environ["PICLOUD_RUN_DIR"])))))
from picloud_jupyter.cloud.private_service import _paths
print(_paths.home, _paths.run, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_the_simulator_leaves_nothing_behind(how):
    done = subprocess.run(
        [sys.executable, "-c", SIMULATED, how],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode == 0) is (how == "ended"), done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "False True True False"
    for folder in lines[-1].split():
        eventually(lambda folder=folder: not Path(folder).exists(), what=f"{folder} is removed")


# ------------------------------------------------------------------------------- cloud.jobs
def test_jobs_are_a_table():
    jids = [cloud.call(abs, -k, _label="in-table") for k in range(3)]
    bad = cloud.call(lambda: 1 / 0, _label="in-table")
    cloud.join([*jids, bad], ignore_errors=True)
    found = cloud.jobs(10, label="in-table")
    assert [job["jid"] for job in found] == [bad, *reversed(jids)]
    assert found[0]["status"] == "error"
    assert [job["jid"] for job in cloud.jobs(10, label="in-table", status="error")] == [bad]
    assert [job["jid"] for job in cloud.jobs(1, label="in-table", before=bad)] == [jids[2]]
    assert found[0]["created"] <= found[0]["finished"]
    assert len(found[1:3]) == 2
    assert "in-table" in repr(found)
    assert "<table>" in found._repr_html_()
    assert repr(cloud.jobs(5, label="there-is-none")) == "no jobs"
    assert cloud.jobs(0) == cloud.jobs(0)[:0] or len(cloud.jobs(0)) == 0


def test_jobs_of_a_map_and_more_than_one_page():
    jids = cloud.map(abs, range(1, 1203))
    cloud.join(jids)
    number = cloud.info(jids[0], "map")[jids[0]]["map"]
    found = cloud.jobs(5000, map=number)
    assert [job["jid"] for job in found] == list(reversed(list(jids)))


def test_jobs_as_a_frame_of_pandas():
    pandas = pytest.importorskip("pandas")
    jid = cloud.call(abs, -1, _label="in-frame")
    cloud.join(jid)
    frame = cloud.jobs(5, label="in-frame").to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc[jid, "status"] == "done"
    assert len(cloud.jobs(5, label="there-is-none").to_pandas()) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limit": "5"}, TypeError),
        ({"limit": -1}, ValueError),
        ({"status": "dnoe"}, ValueError),
    ],
)
def test_wrong_filters_are_refused(arguments, error):
    with pytest.raises(error):
        cloud.jobs(**arguments)


# ------------------------------------------------------------------------------------- tqdm
def test_progress_bars_know_the_total(capsys):
    tqdm = pytest.importorskip("tqdm").tqdm
    jids = cloud.map(abs, tqdm(range(-4, 0)))
    results = cloud.iresult(jids)
    assert len(results) == 4
    assert list(tqdm(results)) == [4, 3, 2, 1]
    assert len(results) == 0
    assert "4/4" in capsys.readouterr().err


def test_a_bar_with_a_wrong_total_loses_no_element():
    tqdm = pytest.importorskip("tqdm").tqdm
    assert cloud.map(abs, tqdm((k for k in range(5)), total=3)).result() == [0, 1, 2, 3, 4]
    assert cloud.map(abs, tqdm(k for k in range(2))).result() == [0, 1]
