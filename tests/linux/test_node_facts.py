"""What is remembered of the trial of container kinds."""

import dataclasses
import json
import subprocess

import pytest

from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.agent import node_facts, trial
from picloud_services.config import Settings

pytestmark = pytest.mark.root


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    return Settings(ServicePaths(tmp_path / "home", tmp_path / "run"))


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
    for name in ("lower", "upper", "work", "other"):
        (tmp_path / name).mkdir()
    options = ",".join(f"{name}dir={tmp_path}/{name}" for name in ("lower", "upper", "work"))
    home = tmp_path / "other"  # an overlay, which cannot be a layer of another one
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(home)]
    subprocess.run(mount, check=True, timeout=10)
    try:
        other = Settings(ServicePaths(home, tmp_path / "run"))
        report = (await node_facts.find_facts(other)).report
    finally:
        subprocess.run(["umount", str(home)], check=True, timeout=10)
    (root,) = (t for t in report.trials if t.kind is ContainerKind.ROOT)
    assert not root.works
    assert "local disk" in root.mend


async def test_facts_when_nothing_isolated_then_the_kinds_are_tried_again(settings):
    def refused(t):
        works = t.kind is ContainerKind.PLAIN
        return dataclasses.replace(t, works=works, why="" if works else "it was refused once")

    seen = await kept_trials(settings, refused)
    assert seen[ContainerKind.ROOT].works
