"""What is promised across crashes of our own processes, each on a service of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.transport.paths import service_paths
from picloud_services.agent.processes import find_process
from tests.tools.service_under_test import eventually

pytestmark = pytest.mark.isolation


@pytest.fixture
def journal(tmp_path):
    folder = tmp_path / "journal"
    folder.mkdir()
    for parent in (folder, tmp_path):
        parent.chmod(0o777)
    return folder


@pytest.fixture
def running(own_service, journal):
    """A service with one job that has surely started; (service, jid, starts())."""
    own_service.start()

    def job(folder, seconds):
        import time

        print("started", flush=True)
        time.sleep(seconds)
        return "went on"

    jid = cloud.call(job, str(journal), 4, _restartable=False)
    eventually(lambda: cloud.info(jid, "stdout")[jid]["stdout"] == "started\n")
    return own_service, jid


def test_running_job_goes_on_when_the_control_plane_is_killed(running):
    service, jid = running
    os.kill(service.status()["pid"], signal.SIGKILL)
    assert cloud.result(jid, timeout=40) == "went on"
    assert cloud.info(jid, ["attempt"])[jid]["attempt"] == 1


def test_running_job_goes_on_when_the_agent_is_killed(running):
    service, jid = running
    os.kill(service.status()["agent_pid"], signal.SIGKILL)
    assert cloud.result(jid, timeout=40) == "went on"
    assert cloud.info(jid, ["attempt"])[jid]["attempt"] == 1


def test_running_job_goes_on_when_both_are_killed(running):
    service, jid = running
    status = service.status()
    os.kill(status["agent_pid"], signal.SIGKILL)
    os.kill(status["pid"], signal.SIGKILL)
    assert cloud.result(jid, timeout=40) == "went on"


@pytest.mark.parametrize("victim", ["pid", "agent_pid"])
def test_killed_process_is_back_within_five_seconds(running, victim):
    service, jid = running
    before = service.status()[victim]
    os.kill(before, signal.SIGKILL)
    started = time.monotonic()
    eventually(lambda: service.status().get(victim) not in (before, None), seconds=6)
    assert time.monotonic() - started < 6
    cloud.kill(jid)


def test_killed_container_of_a_restartable_job_is_run_again(own_service):
    own_service.start()

    def find_pid():
        import time

        print("up", flush=True)
        time.sleep(3)
        return "second time"

    jid = cloud.call(find_pid)
    eventually(lambda: cloud.info(jid, "stdout")[jid]["stdout"] == "up\n")
    kill_runners_of(own_service)
    assert cloud.result(jid, timeout=40) == "second time"
    assert cloud.info(jid, ["attempt"])[jid]["attempt"] == 2


def test_killed_container_of_a_job_that_may_not_restart_ends_with_a_reason(own_service):
    own_service.start()

    def wait():
        import time

        print("up", flush=True)
        time.sleep(30)

    jid = cloud.call(wait, _restartable=False)
    eventually(lambda: cloud.info(jid, "stdout")[jid]["stdout"] == "up\n")
    kill_runners_of(own_service)
    with pytest.raises(cloud.CloudException) as caught:
        cloud.result(jid, timeout=40)
    assert caught.value.reason == "lost_worker"


def kill_runners_of(service):
    """kill -9 each container's first process of this service, as an unlucky machine would."""
    run = service_paths(service.home).run

    def first_processes():
        said = [json.loads(path.read_text()) for path in run.glob("c/*/status.json")]
        return all(s.get("init_pid") for s in said) and [s["init_pid"] for s in said]

    for pid in eventually(first_processes, what="every container says its first process"):
        os.kill(pid, signal.SIGKILL)


def test_queued_jobs_survive_a_stop_and_a_start(own_service):
    own_service.start()
    jids = cloud.map(lambda x: time.sleep(0.3) or x, range(12))
    cloud.close()
    own_service.cli("down")
    assert cloud.result(jids, timeout=40) == list(range(12))


def test_results_are_there_after_a_restart(own_service):
    own_service.start()
    jid = cloud.call(lambda: b"kept" * 100_000)
    cloud.join(jid)
    own_service.cli("down")
    cloud.close()
    assert cloud.result(jid) == b"kept" * 100_000


def test_replace_keeps_running_jobs(running):
    service, jid = running
    before = service.status()["pid"]
    service.cli("up", "--replace")
    assert service.status()["pid"] != before
    assert cloud.result(jid, timeout=40) == "went on"


def test_second_service_on_the_same_home_is_refused(own_service):
    own_service.start()
    pid = own_service.status()["pid"]
    second = subprocess.run(
        [
            sys.executable,
            *("-m", "picloud_services", "control"),
            *("--home", str(own_service.home)),
            *("--run", str(service_paths(own_service.home).run)),
        ],
        env={**os.environ, **own_service.environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode != 0
    assert str(pid) in second.stderr
    assert own_service.status()["pid"] == pid


def test_killed_idle_control_plane_is_back_at_the_next_call(own_service):
    own_service.start()
    assert cloud.result(cloud.call(lambda: 1)) == 1
    os.kill(own_service.status()["pid"], signal.SIGKILL)
    assert cloud.result(cloud.call(lambda: 2), timeout=30) == 2


def test_down_ends_all_jobs_when_the_agent_is_killed_over_it(running):
    service, _ = running
    run = service_paths(service.home).run
    (status,) = run.glob("c/*/status.json")
    runner = json.loads(status.read_text())["init_pid"]
    agent = service.status()["agent_pid"]
    os.kill(agent, signal.SIGSTOP)  # it is asked to end all, and does not come to it
    down = subprocess.Popen(
        [sys.executable, "-m", "picloud_jupyter.cli", "down"],
        env={**os.environ, **service.environment},
    )
    try:
        eventually(
            service_paths(service.home).intent.exists,
            what="the service knows that it is to go down",
        )
        with pytest.raises(subprocess.TimeoutExpired):
            down.wait(0.5)
        os.kill(agent, signal.SIGKILL)
        assert down.wait(30) == 0
    finally:
        down.kill()
    assert find_process(runner) is None
    assert not list(run.glob("c/*"))


def test_nothing_is_left_after_down(own_service):
    own_service.start()
    cloud.result(cloud.map(lambda x: x, range(10)))
    jids = [cloud.call(time.sleep, 100) for _ in range(6)]  # some run, some are queued
    eventually(lambda: "processing" in cloud.status(jids))
    status = own_service.status()
    own_service.cli("down", "--purge")
    for pid in (status["pid"], status["agent_pid"]):
        eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), seconds=5)
    with open("/proc/self/mountinfo") as f:
        assert str(own_service.home) not in f.read()
    assert not own_service.home.exists() or not any(own_service.home.iterdir())
    left = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as f:
                if str(own_service.home).encode() in f.read() and int(name) != os.getpid():
                    left.append(name)
    assert not left


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_small_home_starts_and_fails_well_when_full(own_service, tmp_path):
    own_service.home.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(own_service.home)], check=True
    )
    try:
        own_service.start()
        jid = cloud.call(lambda: "fits")
        assert cloud.result(jid) == "fits"
        filler = own_service.home / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as f:
            while True:
                f.write(b"x" * 1_000_000)
        with pytest.raises(cloud.CloudException, match="disk|space"):
            cloud.result(cloud.call(lambda: bytes(50_000_000)), timeout=30)
        assert cloud.result(jid) == "fits"
        filler.unlink()
        assert eventually(lambda: cloud.result(cloud.call(lambda: 5), timeout=20)) == 5
    finally:
        own_service.end()
        subprocess.run(["umount", "-l", str(own_service.home)], check=True)
