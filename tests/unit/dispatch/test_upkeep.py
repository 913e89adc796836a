"""When cores are asked for anew: other services of the machine may need some."""

from typing import Any

import pytest

from picloud_services.dispatch.assigning import Assigner
from picloud_services.dispatch.cluster import Cluster
from picloud_services.dispatch.estimate import Estimates
from picloud_services.dispatch.fairness import FairShare
from picloud_services.dispatch.upkeep import Upkeep
from picloud_services.dispatch.work_queue import WorkQueue
from tests.tools.fake_engine import FakeEngine, report


class Shared(FakeEngine):
    """An engine whose machine grants what is left."""

    left = 2.0
    claims: list[float]
    least: float

    def claim_cores(self, node: str, wanted: float, least: float = 1.0) -> float:
        self.claims.append(wanted)
        self.least = least
        return min(wanted, self.left)


@pytest.fixture
def engine() -> Shared:
    made = Shared(report("n1", cores=2))
    made.claims = []
    return made


def upkeep_of(engine: Shared) -> Upkeep:
    nobody: Any = None
    cluster = Cluster()
    cluster.node_up(engine.nodes()[0])
    assigner = Assigner(cluster, WorkQueue(), Estimates(), FairShare(), nobody)
    return Upkeep(assigner, engine, lambda _lease, _node: None)


def granted(upkeep: Upkeep) -> float:
    return upkeep._cluster.nodes["n1"].granted_cores


def test_claim_when_all_was_granted_then_asked_again_each_second_and_it_may_shrink(engine):
    upkeep = upkeep_of(engine)
    for now in (0.0, 0.25, 0.9):
        upkeep.claim(now, more_cores=2)
    assert engine.claims == [2]
    engine.left = 1.0
    upkeep.claim(1.0, more_cores=2)
    assert granted(upkeep) == 1


def test_claim_when_nothing_is_wanted_then_given_back_once(engine):
    upkeep = upkeep_of(engine)
    upkeep.claim(0.0, more_cores=2)
    for now in (1.0, 5.0, 9.0):
        upkeep.claim(now)
    assert engine.claims == [2, 0]


def test_claim_when_the_agent_comes_back_then_the_grant_is_asked_for_at_once(engine):
    engine.left = 1.0
    upkeep = upkeep_of(engine)
    upkeep.claim(0.0, more_cores=2)
    upkeep._cluster.node_up(engine.nodes()[0])
    upkeep.connected("n1")
    upkeep.claim(0.1, more_cores=2)
    assert granted(upkeep) == 1
