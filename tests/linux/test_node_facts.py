"""What is remembered of the trial of container kinds."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.agent import network, node_facts, trial
from picloud_services.config import Settings

pytestmark = pytest.mark.root


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    return Settings(ServicePaths(tmp_path / "home", tmp_path / "run"))


@contextlib.contextmanager
def overlay_at(home):
    """Mount a file system at ``home`` that cannot hold a layer: an overlay, as in many containers."""
    place = home.parent
    for name in ("lower", "upper", "work", home.name):
        (place / name).mkdir()
    options = ",".join(f"{name}dir={place}/{name}" for name in ("lower", "upper", "work"))
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(home)]
    subprocess.run(mount, check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", str(home)], check=True, timeout=10)


async def kept_trials(settings, change):
    """Find the facts once, change what was kept of the trials, and return what the next start sees."""
    await node_facts.find_facts(settings)
    path = settings.run.parent / "picloud-0" / "trials.json"
    kept = json.loads(path.read_bytes())
    kept["trials"] = [to_wire(change(t)) for t in trial.try_kinds()]
    path.write_text(json.dumps(kept))
    facts = await node_facts.find_facts(settings)
    return {t.kind: t for t in facts.report.trials}


async def test_facts_when_an_isolating_kind_works_then_it_is_not_tried_again(settings):
    seen = await kept_trials(settings, lambda t: dataclasses.replace(t, why="as it was kept"))
    assert seen[ContainerKind.ROOT].why == "as it was kept"


async def test_facts_when_the_disk_of_the_home_cannot_hold_a_layer_then_no_kind_that_needs_one(
    settings, tmp_path, monkeypatch
):
    """Another service of the same user may have its home on another disk."""
    monkeypatch.delenv("PICLOUD_CONTAINER_KIND", raising=False)  # of a service under test
    assert (await node_facts.find_facts(settings)).report.container_kind is ContainerKind.ROOT
    home = tmp_path / "other"
    with overlay_at(home):
        other = Settings(ServicePaths(home, tmp_path / "run"))
        report = (await node_facts.find_facts(other)).report
    (root,) = (t for t in report.trials if t.kind is ContainerKind.ROOT)
    assert not root.works
    assert "local disk" in root.mend


async def test_facts_when_nothing_isolated_then_the_kinds_are_tried_again(settings):
    def refused(t):
        works = t.kind is ContainerKind.PLAIN
        return dataclasses.replace(t, works=works, why="" if works else "it was refused once")

    seen = await kept_trials(settings, refused)
    assert seen[ContainerKind.ROOT].works


async def test_facts_when_the_program_that_was_chosen_is_gone_then_another_is_found(
    settings, tmp_path, monkeypatch
):
    """Somebody removes bwrap, or installs another one, and the machine is not booted for that."""
    (tmp_path / "bin").mkdir()
    copy = tmp_path / "bin" / "bwrap"
    shutil.copy(trial.find_programs()[0], copy)
    monkeypatch.setenv("PATH", f"{copy.parent}:{os.environ['PATH']}")
    assert (await node_facts.find_facts(settings)).program == str(copy)
    copy.unlink()
    facts = await node_facts.find_facts(settings)
    assert facts.report.container_kind is ContainerKind.ROOT
    assert os.path.exists(facts.program)


async def test_facts_when_pasta_is_installed_later_then_it_is_used(settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(network, "find_pasta", lambda: None)
        report = (await node_facts.find_facts(settings)).report
        assert report.network == "proxy"
        assert "apt install passt" in report.network_note
    assert (await node_facts.find_facts(settings)).report.network == "pasta"


def test_doctor_when_the_service_cannot_start_then_kinds_are_tried_on_its_own_disk(tmp_path):
    home = tmp_path / "home"
    with overlay_at(home):
        (home / "blobs").mkdir()  # somebody's: the service does not start among it
        done = subprocess.run(
            [sys.executable, "-m", "picloud_jupyter.cli", "-o", "json", "doctor"],
            env={**os.environ, "PICLOUD_HOME": str(home), "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    said = json.loads(done.stdout)
    assert "which no service made" in said["error"]
    (root,) = (t for t in said["trials"] if t["kind"] == "root")
    assert not root["works"]
    assert "local disk" in root["mend"]
