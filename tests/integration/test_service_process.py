"""The control plane as a process: how it starts, how it refuses, how it ends."""

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import CloudException, error_from_wire
from picloud_services.base.single_instance import (
    ServiceRecord,
    boot_id,
    host_id,
    process_start_ticks,
)

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "services")]


@dataclass
class Place:
    """Folders of one service under test."""

    home: Path
    run: Path

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

    @property
    def startup_error(self) -> CloudException:
        return error_from_wire(json.loads((self.run / "startup-error.json").read_bytes()))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "home", tmp_path / "run")


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
