"""The control plane as a process: how it starts, how it refuses, how it ends."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter.protocol.errors import CloudException, Conflict, error_from_wire
from picloud_jupyter.transport.embedded import ensure_running
from picloud_jupyter.transport.paths import ServicePaths, service_paths
from picloud_services.base.single_instance import (
    ServiceRecord,
    boot_id,
    host_id,
    process_start_ticks,
)
from tests.tools.gateway_harness import call_frame

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "services")]


@dataclass
class Place:
    """Folders of one service under test."""

    home: Path
    run: Path
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def command(self, *options: str) -> list[str]:
        return [
            *(sys.executable, "-P", "-m", "picloud_services", "control"),
            *("--home", str(self.home), "--run", str(self.run), *options),
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}

    def try_start(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        """Start and return as soon as the API answers."""
        self.home.mkdir(exist_ok=True)
        with (self.home / "service.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(*options), env=self.environment, stdout=log, stderr=log
            )
        self.started.append(process)
        deadline = time.monotonic() + 30
        while not self.listens():
            assert process.poll() is None, (self.home / "service.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    def listens(self) -> bool:
        try:
            self.ask("GET", "/v1/nodes")
        except OSError:
            return False
        return True

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(str(self.run / "api.sock"))
            head = (
                f"{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}"
            )
            peer.sendall(head.encode() + b"\r\n\r\n" + body)
            answer = b"".join(iter(lambda: peer.recv(65536), b""))
        first, _, rest = answer.partition(b"\r\n")
        return int(first.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])

    def node_is_up(self) -> bool:
        return bool(self.ask("GET", "/v1/nodes")[1]["nodes"])

    def end(self) -> None:
        """End whatever still runs here."""
        if self.listens():
            eventually(self.node_is_up)
            self.ask("POST", "/v1/stop", b'{"kill_jobs":true}')
        for process in self.started:
            if process.poll() is None:
                process.wait(20)
        self.end_agent()
        eventually(lambda: not self.agent_runs())

    def end_agent(self) -> None:
        """An agent that nobody needs leaves by itself, but only after a minute; one may just begin."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and (
                    f"agent\0--home\0{self.home}\0".encode() in (entry / "cmdline").read_bytes()
                ):
                    os.kill(int(entry.name), signal.SIGTERM)

    def agent_runs(self) -> bool:
        try:
            pid = json.loads((self.run / "agent.json").read_bytes())["pid"]
            return b"\nState:\tZ" not in Path(f"/proc/{pid}/status").read_bytes()
        except (OSError, ValueError):
            return False

    @property
    def startup_error(self) -> CloudException:
        return error_from_wire(json.loads((self.run / "startup-error.json").read_bytes()))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    used = Place(tmp_path / "home", tmp_path / "run")
    yield used
    used.end()


def eventually(check: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{check} is not so within {seconds} s"
        time.sleep(0.02)


def run_words(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "picloud_services", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    "words", [(), ("both",), ("control",), ("control", "--home", "here", "--run", "/tmp/x")]
)
def test_command_when_wrong_then_code_2_and_its_form(words):
    done = run_words(*words)
    assert done.returncode == 2
    assert "usage: python -m picloud_services" in done.stderr


def test_command_when_help_is_asked_then_every_setting():
    done = run_words("--help")
    assert done.returncode == 0
    assert "--retention-days=30.0" in done.stdout


@pytest.mark.parametrize("option", ["--nonsense=1", "--cores=some"])
def test_start_when_a_setting_is_wrong_then_words_for_the_client(place, option):
    done = place.try_start(option)
    assert done.returncode == 1
    assert place.startup_error.code == "invalid_request"
    assert option.partition("=")[0] in place.startup_error.parameter
    assert "did not start" in done.stderr


def test_start_when_the_home_cannot_be_made_then_words_name_it(place):
    place.home.write_text("a file")
    assert place.try_start().returncode == 1
    assert place.startup_error.code == "platform_error"
    assert str(place.home) in place.startup_error.parameter


def test_start_when_run_is_open_to_others_then_refused(place):
    place.run.mkdir()
    place.run.chmod(0o755)
    assert place.try_start().returncode == 1
    assert "not a private folder" in place.startup_error.parameter


def test_run_when_it_is_removed_then_both_processes_listen_there_anew(place):
    place.start()
    eventually(place.node_is_up)
    before = place.ask("GET", "/v1/service")[1]
    shutil.rmtree(place.run)
    eventually(lambda: place.listens() and (place.run / "agent.sock").exists(), 10)
    after = place.ask("GET", "/v1/service")[1]
    assert (after["pid"], after["agent_pid"]) == (before["pid"], before["agent_pid"])
    assert json.loads((place.run / "record.json").read_bytes())["pid"] == before["pid"]
    assert place.agent_runs()


def test_run_when_it_cannot_be_made_again_then_an_idle_service_leaves(place):
    place.run = place.run.parent / "gone" / "run"
    process = place.start()
    eventually(place.node_is_up)
    agent = place.ask("GET", "/v1/service")[1]["agent_pid"]
    shutil.rmtree(place.run.parent)
    place.run.parent.write_text("")  # as root could make it again
    assert process.wait(15) == 0
    eventually(lambda: not Path(f"/proc/{agent}").exists(), 15)
    next_one = Place(place.home, place.home.parent / "other")
    try:
        next_one.start()
        eventually(next_one.node_is_up)
    finally:
        next_one.end()


def test_run_when_another_environment_computes_another_then_it_finds_the_service(
    place, monkeypatch
):
    place.start()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place.home.parent))
    assert service_paths(place.home).run == place.run
    mine = ServicePaths(place.home, place.home.parent / "mine")
    began = time.monotonic()
    with pytest.raises(Conflict):
        ensure_running(mine)  # by a client that knew no better
    assert time.monotonic() - began < 10


def test_start_when_another_home_user_holds_the_lock_then_refused_naming_it(place):
    place.home.mkdir()
    place.run.mkdir(mode=0o700)
    with (place.home / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert place.try_start().returncode == 1
        assert place.startup_error.code == "conflict"
        (place.run / "startup-error.json").unlink()
        ours = os.getpid()
        record = ServiceRecord(
            host_id(), boot_id(), ours, process_start_ticks(ours), "1.0", 1, 0.0
        )
        record.write(place.run / "record.json")
        done = place.try_start()
        assert done.returncode == 1
        assert f"process {ours}" in done.stderr
        # The service of this very folder is well: its clients get no bad news.
        assert not (place.run / "startup-error.json").exists()


@pytest.mark.root
def test_start_when_the_disk_is_full_then_disk_full_in_words(place):
    place.home.mkdir()
    size = ["-o", "size=8m"]
    subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", str(place.home)], check=True)
    try:
        assert place.try_start().returncode == 1
        assert place.startup_error.code == "disk_full"
        assert "PICLOUD_HOME" in (place.startup_error.hint or "")
    finally:
        subprocess.run(["umount", str(place.home)], check=True)


def test_start_when_well_then_it_describes_itself_and_its_agent(place):
    process = place.start()
    eventually(place.node_is_up)
    status, facts = place.ask("GET", "/v1/service")
    assert status == 200
    assert facts["pid"] == process.pid
    assert facts["agent_pid"] not in (0, process.pid)
    assert facts["home"] == str(place.home)
    assert facts["container_kind"] in ("root", "rootless", "plain")
    assert {trial["kind"] for trial in facts["trials"]} == {"root", "rootless", "plain"}
    assert facts["uploads_local"] is True
    assert facts["core_types"]["c1"]["cores"] == [1]
    record = json.loads((place.run / "record.json").read_bytes())
    assert (record["pid"], record["agent_pid"]) == (process.pid, facts["agent_pid"])
    assert (place.home / "secret").stat().st_mode & 0o077 == 0


def test_stop_when_asked_with_jobs_then_both_processes_leave_and_nothing_restarts_them(place):
    process = place.start()
    eventually(place.node_is_up)
    assert place.ask("POST", "/v1/stop", b'{"kill_jobs":true}') == (200, {})
    assert process.wait(20) == 0
    eventually(lambda: not place.agent_runs())
    assert not (place.run / "api.sock").exists()
    assert not (place.run / "jobs.sock").exists()
    assert not (place.run / "record.json").exists()
    assert (place.run / "intent").exists()
    (place.run / "intent").unlink()


def test_terminate_when_sent_then_a_clean_end_and_the_agent_stays(place):
    process = place.start()
    eventually(place.node_is_up)
    process.terminate()
    assert process.wait(20) == 0
    assert not (place.run / "record.json").exists()
    assert place.agent_runs()
    again = place.start()  # takes the same agent over
    eventually(place.node_is_up)
    assert place.ask("GET", "/v1/service")[1]["pid"] == again.pid


def test_kill_when_the_agent_dies_then_another_one_serves_within_five_seconds(place):
    place.start()
    eventually(place.node_is_up)
    first = place.ask("GET", "/v1/service")[1]["agent_pid"]
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    eventually(lambda: place.ask("GET", "/v1/service")[1]["agent_pid"] not in (0, first))
    eventually(place.node_is_up)
    assert time.monotonic() - began < 5


def test_kill_when_the_control_plane_dies_then_its_socket_is_taken_over(place):
    process = place.start()
    eventually(place.node_is_up)
    process.kill()
    process.wait(20)
    assert (place.run / "api.sock").exists()
    place.start()
    assert place.listens()


def test_start_when_one_runs_already_then_it_is_not_disturbed(place):
    process = place.start()
    done = place.try_start()
    assert done.returncode == 1
    assert f"process {process.pid}" in done.stderr
    assert place.listens()
    assert not (place.run / "startup-error.json").exists()


def test_start_when_the_store_is_no_database_then_corrupt_in_words(place):
    place.home.mkdir()
    (place.home / "store.db").write_bytes(b"nonsense" * 1000)
    assert place.try_start().returncode == 1
    assert place.startup_error.code == "corrupt"
    assert str(place.home / "store.db") in place.startup_error.parameter


def test_start_when_the_store_is_of_a_newer_version_then_incompatible_in_words(place):
    process = place.start()
    process.terminate()
    process.wait(20)
    store = sqlite3.connect(place.home / "store.db")
    with store:
        store.execute("INSERT INTO schema_versions VALUES (999, 'later', 0)")
    store.close()
    assert place.try_start().returncode == 1
    assert place.startup_error.code == "incompatible"


@pytest.mark.root
def test_home_of_256_mb_when_it_fills_then_submits_are_refused_and_taken_again_when_freed(
    place,
):
    place.home.mkdir()
    size = ["-o", "size=256m"]
    subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", str(place.home)], check=True)
    try:
        place.start()
        eventually(place.node_is_up)
        free = place.ask("GET", "/v1/service")[1]["disk"]["free_bytes"]
        filler = place.home / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 4 * 2**20)
        eventually(lambda: is_below_floor(place))
        status, answer = submit(place)
        assert (status, answer["error"]["code"]) == (507, "disk_full")
        assert place.ask("GET", "/v1/service")[0] == 200
        filler.unlink()
        eventually(lambda: submit(place)[0] == 200)
    finally:
        place.end()
        subprocess.run(["umount", "-l", str(place.home)], check=True)


def is_below_floor(place: Place) -> bool:
    disk = place.ask("GET", "/v1/service")[1]["disk"]
    return bool(disk["free_bytes"] < disk["floor_bytes"])


def submit(place: Place) -> tuple[int, Any]:
    key = os.urandom(16).hex()
    return place.ask("POST", "/v1/calls", call_frame(b"f", b"a", key=key))
