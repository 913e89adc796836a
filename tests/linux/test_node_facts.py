"""What is remembered of the trial of container kinds."""

import dataclasses
import json

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


async def test_facts_when_nothing_isolated_then_the_kinds_are_tried_again(settings):
    def refused(t):
        works = t.kind is ContainerKind.PLAIN
        return dataclasses.replace(t, works=works, why="" if works else "it was refused once")

    seen = await kept_trials(settings, refused)
    assert seen[ContainerKind.ROOT].works
