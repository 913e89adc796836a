"""What `picloud host-setup` does on which machine, and what the systemd unit says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from picloud_jupyter.cli import system_service
from picloud_jupyter.cli.host_plan import (
    DELEGATION_FILE,
    PROFILE_FILE,
    SYSCTL_FILE,
    HostState,
    make_plan,
    make_removal,
)
from picloud_jupyter.transport.paths import ServicePaths, system_paths

BWRAP = "/usr/bin/bwrap"
UBUNTU = HostState(restricted=True, programs=(BWRAP, "/opt/env/bwrap"), delegated=frozenset())


def done(state: HostState) -> HostState:
    """Return ``state`` after its plan was carried out."""
    import dataclasses

    written = dict(state.written)
    written |= {step.path: step.content or "" for step in make_plan(state).steps}
    return dataclasses.replace(state, written=tuple(written.items()))


def test_plan_when_all_is_well_then_nothing_and_said_so():
    plan = make_plan(HostState(user_namespaces=100, cloning=1))
    assert plan.steps == ()
    assert len(plan.notes) == 3


def test_plan_on_ubuntu_then_a_profile_for_each_program_and_delegation():
    profile, delegation = make_plan(UBUNTU).steps
    assert profile.path == PROFILE_FILE
    assert profile.after == ("apparmor_parser", "-r", f"/{PROFILE_FILE}")
    content = profile.content or ""
    assert content.count("userns,") == 2
    assert f'profile picloud-bwrap "{BWRAP}" flags=(unconfined) {{' in content
    assert 'profile picloud-bwrap1 "/opt/env/bwrap"' in content
    assert delegation.path == DELEGATION_FILE
    assert "Delegate=cpu memory pids io" in (delegation.content or "")
    assert "cpu, memory, pids" in delegation.why


@pytest.mark.parametrize(
    "state",
    [
        UBUNTU,
        HostState(user_namespaces=0, cloning=0),
        HostState(delegated=frozenset({"pids", "memory"})),
    ],
)
def test_plan_when_done_then_nothing_is_left_and_removal_takes_back_the_same(state):
    after = done(state)
    assert make_plan(state).steps
    assert make_plan(after).steps == ()
    removed = make_removal(after)
    assert {step.path for step in removed.steps} == {s.path for s in make_plan(state).steps}
    assert all(step.content is None and step.why for step in removed.steps)


def test_plan_when_the_kernel_forbids_namespaces_then_both_settings():
    (step,) = make_plan(HostState(user_namespaces=0, cloning=0)).steps
    assert step.path == SYSCTL_FILE
    assert "user.max_user_namespaces = 15000\nkernel.unprivileged_userns_clone = 1" in (
        step.content or ""
    )


def test_plan_when_another_profile_speaks_for_the_program_then_it_is_left_alone():
    plan = make_plan(HostState(restricted=True, programs=(BWRAP,), profiled=(BWRAP,)))
    assert plan.steps == ()
    assert any("another AppArmor profile" in note for note in plan.notes)


def test_plan_when_there_is_no_program_then_the_line_that_brings_one():
    plan = make_plan(HostState(restricted=True))
    assert plan.steps == ()
    assert any("apt install bubblewrap" in note for note in plan.notes)


def test_removal_when_nothing_is_there_then_said_so():
    assert make_removal(HostState()).notes == ("nothing of host-setup is here",)


# ------------------------------------------------------------------------------------------ unit
def test_unit_then_systemd_finds_no_fault(tmp_path):
    text = system_service.unit_text(system_paths())
    for line in ("KillMode=process", "OOMPolicy=continue", "Delegate=yes", "UMask=0077"):
        assert line in text.splitlines()
    assert f'ExecStart="{sys.executable}" "-P" "-m" "picloud_services" "control"' in text
    assert '"--public" "/run/picloud"' in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    unit = tmp_path / "picloud.service"
    unit.write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "picloud.service" not in checked.stderr, checked.stderr


def test_unit_when_paths_hold_signs_of_systemd_then_they_are_words_still():
    paths = ServicePaths(Path('/a b/50%"$x'), Path("/r/private"), Path("/r"))
    text = system_service.unit_text(paths)
    assert '"--home" "/a b/50%%\\"$$x"' in text


def test_systemd_looks_after_the_usual_folders_only(monkeypatch, tmp_path):
    monkeypatch.setattr(system_service, "_BOOTED", tmp_path)
    assert system_service.uses_systemd(system_paths())
    monkeypatch.setenv("PICLOUD_SYSTEM_HOME", "/elsewhere")
    assert not system_service.uses_systemd(system_paths())
