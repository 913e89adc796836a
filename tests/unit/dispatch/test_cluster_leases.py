"""Slots with a chunk that runs and one that waits: whose time counts, who holds cores."""

from picloud_services.dispatch.cluster import Cluster, HeldLease, Slot
from picloud_services.dispatch.placement import need
from tests.tools.fake_engine import report


def cluster_with(count: int) -> tuple[Cluster, Slot, list[HeldLease]]:
    """Return books with one slot and ``count`` leases in it, the first begun at 0."""
    cluster = Cluster()
    cluster.node_up(report("n1", cores=2))
    slot = cluster.new_slot("n1", "digest", need("c1", 1, report().capacity), 1000)
    cluster.hold(slot)
    leases = [
        HeldLease(f"l{n}", slot, 10 * n + 1, 10, 1, fresh=False, key=("f", "c1"))
        for n in range(count)
    ]
    for lease in leases:
        cluster.enter(lease)
    return cluster, slot, leases


def free_cores(cluster: Cluster) -> float:
    return cluster.nodes["n1"].free.cores


def test_remove_when_it_waited_then_what_runs_has_run_as_long_as_before():
    cluster, slot, (first, second) = cluster_with(2)
    cluster.remove(second, 50.0)
    assert slot.leases == [first]
    assert first.progress_at == 0.0
    assert slot.core_seconds(60.0) == 60.0


def test_remove_when_it_ran_then_the_next_begins_now():
    cluster, _slot, (first, second) = cluster_with(2)
    cluster.remove(first, 50.0)
    assert second.progress_at == 50.0


def test_remove_when_it_ended_while_blocked_then_the_next_holds_the_cores():
    cluster, slot, (first, _second) = cluster_with(2)
    cluster.block(slot)
    assert free_cores(cluster) == 2
    cluster.remove(first, 1.0)
    assert (slot.blocked, slot.holding, free_cores(cluster)) == (0, True, 1)
    assert cluster.nodes["n1"].blocked == 0


def test_remove_when_what_waited_behind_a_blocked_one_goes_then_it_stays_blocked():
    cluster, slot, (_first, second) = cluster_with(2)
    cluster.block(slot)
    cluster.remove(second, 1.0)
    assert (slot.blocked, slot.holding, free_cores(cluster)) == (1, False, 2)
    cluster.unblock(slot)
    assert (slot.blocked, slot.holding, free_cores(cluster)) == (0, True, 1)
