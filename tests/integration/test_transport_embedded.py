"""Finding and starting the embedded control plane, with a small program in its place."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import CloudException, DiskFull, Unreachable
from picloud_jupyter.transport import embedded
from picloud_jupyter.transport.embedded import (
    embedded_client,
    ensure_running,
    listens,
    stop,
)
from picloud_jupyter.transport.paths import service_paths
from tests.tools.deep_folders import make_deep

SERVICE = """
    import json, os, pathlib, sys, threading, time
    words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    home, run = pathlib.Path(words["--home"]), pathlib.Path(words["--run"])
    with open(home / "starts", "a") as f:
        f.write(f"{os.getpid()}\\n")
    mode = (home / "mode").read_text() if (home / "mode").exists() else ""
    if mode == "refuse":
        error = {"code": "disk_full", "message": "the disk of the home is full"}
        (run / "startup-error.json").write_text(json.dumps({"error": error}))
        sys.exit(3)
    if mode == "conflict":
        (home / "mode").unlink()
        error = {"code": "conflict", "message": "process 1 serves this home already"}
        (run / "startup-error.json").write_text(json.dumps({"error": error}))
        sys.exit(1)
    if mode == "other starts":  # and this one is silent: the other is recorded, and is well
        (home / "mode").write_text("slow")
        import subprocess
        subprocess.Popen([sys.executable, *sys.orig_argv[1:]])
        while not (run / "record.json").exists():
            time.sleep(0.01)
        sys.exit(1)
    if mode == "crash":
        raise RuntimeError("something broke in the service")
    from tests.tools.play_gateway import PlayedGateway
    from tests.tools import play_gateway
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    record = {"pid": os.getpid(), "process_start_ticks": ticks}
    (run / "record.json").write_text(json.dumps(record))
    def stop(self, body, query):
        (home / "stop").write_bytes(body)
        threading.Timer(0.02, lambda: ((run / "api.sock").unlink(), os._exit(0))).start()
        return {}
    play_gateway._Handler.stop = stop
    play_gateway._ROUTES += (("POST /v1/stop", "stop"),)
    if mode == "slow":
        time.sleep(1)
    gateway = PlayedGateway(run / "api.sock", home)
    time.sleep(60)
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "lib" / "picloud_services"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(textwrap.dedent(SERVICE))
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "lib"), root]))
    found = service_paths(tmp_path / "home")
    found.home.mkdir()
    yield found
    for pid in starts(found):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    shutil.rmtree(found.run, ignore_errors=True)


def starts(paths):
    try:
        return [int(line) for line in (paths.home / "starts").read_text().split()]
    except FileNotFoundError:
        return []


def test_first_request_starts_the_service_and_later_ones_find_it(paths):
    client = embedded_client(paths, start=True)
    assert client.get("/v1/service")["pid"] == 4711
    client.close()
    assert ensure_running(paths) is False
    assert len(starts(paths)) == 1
    process = embedded.control_process(paths)
    assert process is not None
    assert process.pid == starts(paths)[0]


def test_a_service_that_another_just_started_is_used(paths):
    (paths.home / "mode").write_text("other starts")
    ensure_running(paths)
    assert listens(paths)


def test_service_is_no_part_of_our_session(paths):
    ensure_running(paths)
    assert os.getsid(starts(paths)[0]) == starts(paths)[0]


def test_clients_that_come_at_once_start_one_service(paths):
    started, failures = [], []

    def begin():
        try:
            started.append(ensure_running(paths))
        except CloudException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert started.count(True) == 1
    assert len(starts(paths)) == 1


def test_processes_that_come_at_once_start_one_service(paths):
    program = "from picloud_jupyter.transport import embedded; import sys; from picloud_jupyter.transport.paths import service_paths; embedded.ensure_running(service_paths(sys.argv[1]))"
    path = os.pathsep.join([os.environ["PYTHONPATH"], *(p for p in sys.path if p)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(paths.home)],
            env={**os.environ, "PYTHONPATH": path},
        )
        for _ in range(3)
    ]
    assert [process.wait(30) for process in processes] == [0, 0, 0]
    assert len(starts(paths)) == 1


def test_killed_service_is_started_again_by_the_next_request(paths):
    client = embedded_client(paths, start=True)
    client.get("/v1/service")
    os.kill(starts(paths)[0], signal.SIGKILL)
    assert client.get("/v1/service")["pid"] == 4711
    assert len(starts(paths)) == 2
    client.close()


def test_start_removes_an_earlier_intent(paths):
    paths.run.mkdir(mode=0o700, exist_ok=True)
    paths.intent.write_text("down\n")
    ensure_running(paths)
    assert not paths.intent.exists()


def test_refused_start_raises_the_words_of_the_service(paths):
    (paths.home / "mode").write_text("refuse")
    with pytest.raises(DiskFull, match="the disk of the home is full"):
        ensure_running(paths)


def test_start_is_repeated_while_the_one_before_leaves(paths):
    (paths.home / "mode").write_text("conflict")
    assert ensure_running(paths) is True
    assert len(starts(paths)) == 2


def test_start_that_stays_in_conflict_raises_its_words(paths, monkeypatch):
    monkeypatch.setattr(embedded, "START_SECONDS", 0.0)
    (paths.home / "mode").write_text("conflict")
    with pytest.raises(CloudException, match=r"process 1 serves|did not listen"):
        ensure_running(paths)


def test_crashed_start_raises_the_end_of_its_log(paths):
    (paths.home / "mode").write_text("crash")
    with pytest.raises(Unreachable, match="something broke in the service") as caught:
        ensure_running(paths)
    assert "picloud doctor" in str(caught.value)


def test_a_home_that_cannot_be_written_is_named_at_once(paths, monkeypatch):
    (paths.home / "file").touch()
    monkeypatch.setenv("PICLOUD_HOME", str(paths.home / "file" / "home"))
    client = embedded_client(service_paths(), start=True)
    started_at = time.monotonic()
    with pytest.raises(Unreachable, match="file/home, cannot be used: Not a directory") as info:
        client.get("/v1/service")
    assert time.monotonic() - started_at < 5  # it is tried once
    assert "PICLOUD_HOME" in str(info.value)


def test_stop_writes_the_intent_and_waits_for_the_end(paths):
    ensure_running(paths)
    pid = starts(paths)[0]
    assert stop(paths, kill_jobs=True) is True
    assert json.loads((paths.home / "stop").read_text()) == {"kill_jobs": True, "purge": False}
    assert paths.intent.exists()
    assert not listens(paths)
    assert not embedded._start_ticks(pid)
    assert stop(paths, kill_jobs=True) is False


def test_replacing_leaves_no_intent(paths):
    ensure_running(paths)
    assert stop(paths, kill_jobs=False) is True
    assert not paths.intent.exists()
    assert ensure_running(paths) is True


@pytest.mark.parametrize(
    "damaged", [b"", b"\0" * 30, b"[]", b'{"pid": "x"}', b'{"pid": 1}', b"3"]
)
def test_stop_when_its_record_is_damaged_then_nothing_is_waited_for(paths, damaged):
    paths.run.mkdir(mode=0o700)
    paths.record.write_bytes(damaged)
    paths.agent_record.write_bytes(damaged)
    assert stop(paths, kill_jobs=True) is False


def test_stop_when_somebody_else_has_the_pid_by_now_then_it_is_not_waited_for(paths):
    paths.run.mkdir(mode=0o700)
    ours = embedded._start_ticks(os.getpid())
    paths.record.write_text(json.dumps({"pid": os.getpid(), "process_start_ticks": ours - 1}))
    paths.agent_record.write_text(json.dumps({"pid": os.getpid(), "start_time": ours - 1}))
    assert stop(paths, kill_jobs=True) is False


@pytest.fixture
def agent(paths):
    """A process in place of the agent: it leaves when the control plane was told to stop."""
    code = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    paths.run.mkdir(mode=0o700)
    with subprocess.Popen([sys.executable, "-c", code, str(paths.home / "stop")]) as process:
        words = {"pid": process.pid, "start_time": embedded._start_ticks(process.pid)}
        paths.agent_record.write_text(json.dumps(words))
        yield process
        process.kill()


def test_stop_when_the_control_plane_was_killed_then_the_agent_leaves_too(paths, agent):
    assert stop(paths, kill_jobs=True) is True
    assert agent.wait(10) == 0
    assert len(starts(paths)) == 1  # it was brought back to be told
    assert not listens(paths)


def test_stop_when_the_control_plane_does_not_listen_yet_then_told_as_soon_as_it_does(
    paths, agent
):
    (paths.home / "mode").write_text("slow")
    process = embedded._start(paths, {})
    deadline_at = time.monotonic() + 20
    while embedded.control_process(paths) is None:
        assert time.monotonic() < deadline_at
        time.sleep(0.005)
    assert not listens(paths)
    assert stop(paths, kill_jobs=True) is True
    assert (process.wait(10), agent.wait(10)) == (0, 0)
    assert len(starts(paths)) == 1


def test_purge_removes_what_is_ours_and_nothing_else(paths):
    ensure_running(paths)
    for name in ("lock", "store.db", "store.db-wal", "service.log.1", "mine.txt"):
        (paths.home / name).write_text("x")
    (paths.home / "blobs" / "ab").mkdir(parents=True)
    (paths.home / "bundle" / "digest").mkdir(parents=True)
    (paths.home / "bundle" / "digest" / "runner.py").write_text("")
    (paths.home / "bundle" / "digest").chmod(0o500)  # as an agent leaves it
    (paths.home / "layers").mkdir()
    make_deep(paths.home / "layers", 3_000)
    (paths.home / "layers" / "link").symlink_to(paths.home.parent / "lib")
    stop(paths, kill_jobs=True, purge=True)
    left = {path.name for path in paths.home.iterdir()}
    assert "mine.txt" in left
    assert not left & {"store.db", "store.db-wal", "service.log", "service.log.1", "blobs"}
    assert not left & {"bundle", "layers", "lock"}
    assert not paths.run.exists()
    assert (paths.home.parent / "lib" / "picloud_services").exists()


def test_purge_when_no_service_ever_held_the_home_then_nothing_of_it_goes(paths):
    (paths.home / "code").mkdir()
    (paths.home / "code" / "thesis.py").write_text("x")
    (paths.home / "secret").write_text("mine")
    stop(paths, kill_jobs=True, purge=True)
    assert sorted(path.name for path in paths.home.iterdir()) == ["code", "secret"]
    assert (paths.home / "code" / "thesis.py").exists()


def test_foreign_run_folder_is_refused(paths):
    paths.run.mkdir()
    paths.run.chmod(0o777)
    with pytest.raises(Unreachable, match="private"):
        ensure_running(paths)
    paths.run.chmod(0o700)
