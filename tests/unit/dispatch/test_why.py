"""Why a job does not run yet, where cores are what it lacks."""

from dataclasses import replace

import pytest

from picloud_services.dispatch.why import why_queued
from tests.unit.dispatch.test_fairness import POOR, RICH, SPEC, World

WIDE = replace(SPEC, core_type="c2", cores=2)


@pytest.fixture
def world() -> World:
    return World()


def why(world: World, batch) -> str:
    return why_queued(batch.spans[0].first_jid, batch, world.assigner, None, 0.0)


def test_why_when_other_services_hold_what_a_wide_job_needs_then_they_are_named(world):
    batch = world.push(POOR, spec=WIDE)
    world.cluster.nodes["n1"].granted_cores = 1
    assert why(world, batch) == (
        "queued because other services of this machine use cores: it needs 2, "
        "1 of 2 are granted to this one, 0 of them busy; 0 of your jobs are ahead of it"
    )


def test_why_when_a_wide_job_waits_for_one_of_ours_then_both_numbers_are_named(world):
    world.run(RICH, 1)
    assert why(world, world.push(POOR, spec=WIDE)).startswith(
        "queued because it needs 2 cores at once, 1 of 2 are busy"
    )


def test_why_when_our_own_jobs_use_all_then_it_says_so(world):
    for _ in range(2):
        world.run(RICH, 1)
    assert why(world, world.push(POOR)).startswith("queued because 2 of 2 cores are busy")


def test_least_cores_when_jobs_of_several_sizes_are_next_then_the_smallest(world):
    assert world.assigner.least_cores(2) == 1
    world.push(RICH, spec=WIDE)
    assert world.assigner.least_cores(2) == 2
    assert world.assigner.least_cores(1) == 1, "what never fits needs nothing"
    world.push(POOR)
    assert world.assigner.least_cores(2) == 1
