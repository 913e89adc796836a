"""GPUs in the books of nodes: a container keeps its devices while its job waits for others."""

import dataclasses

import pytest

from picloud_jupyter.protocol.jobs import GIB, ContainerKind, LimitsGrade, Resources
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_services.dispatch.cluster import Cluster, HeldLease

CAPACITY = Resources(4, 16 * GIB, gpus=2)
REPORT = NodeReport("n", "b", 1, CAPACITY, ContainerKind.ROOT, LimitsGrade.CGROUP)


@pytest.fixture
def cluster():
    made = Cluster()
    made.node_up(REPORT)
    return made


def make_slot(cluster, gpus):
    slot = cluster.new_slot("n", "digest", Resources(1, GIB, gpus), 1000)
    cluster.hold(slot)
    cluster.enter(HeldLease("l", slot, 1, 1, attempt=1, fresh=False, key=("f", "c1")))
    return slot


def test_block_then_cores_are_free_and_gpus_are_not(cluster):
    slot = make_slot(cluster, 1)
    cluster.block(slot)
    assert cluster.nodes["n"].free == dataclasses.replace(CAPACITY, gpus=1)
    cluster.unblock(slot)
    assert cluster.nodes["n"].free == Resources(3, 15 * GIB, 1)
    cluster.remove(slot.leases[0], 0.0)
    assert cluster.nodes["n"].free == CAPACITY


def test_remove_when_it_ended_while_it_waited_then_all_is_free(cluster):
    slot = make_slot(cluster, 2)
    cluster.block(slot)
    cluster.remove(slot.leases[0], 0.0)
    assert cluster.nodes["n"].free == CAPACITY
    cluster.let_go(slot)
    assert cluster.nodes["n"].free == CAPACITY


def test_node_up_when_a_slot_is_blocked_then_its_gpus_are_taken(cluster):
    slot = make_slot(cluster, 1)
    cluster.block(slot)
    cluster.node_down("n")
    cluster.node_up(REPORT)
    assert cluster.nodes["n"].free == dataclasses.replace(CAPACITY, gpus=1)
    assert cluster.place("c1", 1, 2) is None
    assert cluster.place("c1", 1, 1) == "n"


def test_parallel_then_gpus_limit_it(cluster):
    assert cluster.parallel(Resources(1, GIB)) == 4
    assert cluster.parallel(Resources(1, GIB, 1)) == 2
