"""`picloud host-setup` on the files of an invented machine."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter.cli import host_setup
from picloud_jupyter.cli.host_plan import PROFILE_FILE, Step
from picloud_jupyter.cli.run import run
from picloud_jupyter.protocol.errors import PlatformError


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine like Ubuntu 24.04, that restricts user namespaces."""
    settings = tmp_path / "proc/sys"
    for name, value in (
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("user/max_user_namespaces", "31000"),
    ):
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / name).write_text(f"{value}\n")
    return tmp_path


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "env/bwrap"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def setup(machine: Path, *words: str) -> dict[str, Any]:
    """Run the command and return what it says as JSON."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = run(["-o", "json", "host-setup", "--root", str(machine), *words])
    assert code == 0, said.getvalue()
    found: dict[str, Any] = json.loads(said.getvalue())
    return found


@pytest.mark.root
def test_setup_twice_and_back(machine, program):
    planned = setup(machine, "--dry-run", "--program", program)
    assert [step["path"] for step in planned["steps"]] == [f"/{PROFILE_FILE}"]
    assert not (machine / PROFILE_FILE).exists()
    setup(machine, "--program", program)
    profile = machine / PROFILE_FILE
    assert f'"{program}" flags=(unconfined)' in profile.read_text()
    assert profile.stat().st_mode & 0o777 == 0o644
    again = setup(machine, "--program", program)
    assert again["steps"] == []
    assert any("is in place" in note for note in again["notes"])
    setup(machine, "--remove")
    assert not profile.exists()
    assert setup(machine, "--remove")["notes"] == ["nothing of host-setup is here"]


@pytest.mark.root
def test_setup_when_another_profile_is_attached_then_it_stays_the_only_one(machine, program):
    other = machine / "etc/apparmor.d/bwrap-userns-restrict"
    other.parent.mkdir(parents=True)
    other.write_text(
        f"abi <abi/4.0>,\nprofile bwrap {program} flags=(attach_disconnected) {{\n}}\n"
    )
    setup(machine, "--program", program)
    written = machine / PROFILE_FILE
    assert not written.exists() or program not in written.read_text()


def test_setup_when_the_program_is_none_then_refused_in_words(machine, capsys):
    assert run(["host-setup", "--root", str(machine), "--program", "/no/bwrap"]) == 3
    assert "/no/bwrap: there is no such program" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_setup_when_not_root_then_refused_and_dry_run_goes(machine, program, capsys):
    assert run(["host-setup", "--root", str(machine), "--program", program]) == 3
    assert "sudo picloud host-setup" in capsys.readouterr().err
    assert setup(machine, "--dry-run", "--program", program)["steps"]


@pytest.mark.parametrize(
    ("command", "words"), [(("false",), "it ended with 1"), (("/no/such",), "No such file")]
)
def test_command_when_it_fails_then_in_words(command, words):
    with pytest.raises(PlatformError, match=words):
        host_setup.run_command(command)


def test_step_when_its_last_command_fails_then_it_is_not_taken_for_done(tmp_path, monkeypatch):
    def fail(_command: tuple[str, ...]) -> None:
        raise PlatformError("no")

    monkeypatch.setattr(host_setup, "run_command", fail)
    step = Step(str(tmp_path / "file").lstrip("/"), "content", "for a test", after=("x",))
    with pytest.raises(PlatformError):
        host_setup.carry_out(step, Path("/"))
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [("exec sleep 60", "timed out"), (None, "No such file")],
    ids=["silent", "absent"],
)
def test_delegation_when_systemctl_does_not_answer_then_words_and_no_traceback(
    tmp_path, monkeypatch, program, words
):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if program else str(tmp_path))
    if program:
        (tmp_path / "systemctl").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "systemctl").chmod(0o755)
    with pytest.raises(PlatformError, match=words) as raised:
        host_setup.delegated_controllers(0.2)
    assert "nothing was changed" in str(raised.value)


def test_delegation_when_systemctl_answers_then_its_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho cpu memory pids\n")
    (tmp_path / "systemctl").chmod(0o755)
    assert host_setup.delegated_controllers(10) == {"cpu", "memory", "pids"}
