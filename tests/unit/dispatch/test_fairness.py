"""Whose turn it is, and who makes room for whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.jobs import GIB, HostPython, JobSpec, Resources, Status
from picloud_jupyter.protocol.users import Quota
from picloud_services.accounts import quotas
from picloud_services.accounts.quotas import NO_LIMITS, Standing
from picloud_services.dispatch.assigning import Assigner
from picloud_services.dispatch.cluster import Cluster, HeldLease, Slot
from picloud_services.dispatch.estimate import Estimates
from picloud_services.dispatch.fairness import HALF_LIFE_SECONDS, FairShare, decay
from picloud_services.dispatch.work_queue import Work, WorkQueue
from picloud_services.dispatch.yielding import chunks_to_cut
from picloud_services.jobs.spans import CODE_OF, LiveBatch, Span
from tests.tools.fake_engine import report

RICH, POOR, THIRD = 1, 2, 3
SPEC = JobSpec("f", HostPython("/usr/bin/python3", "/usr", "/usr", "3.11.2"))


class Limits:
    """Quotas by user, without a store."""

    def __init__(self) -> None:
        self.quotas: dict[int, Quota] = {}
        self.standings: dict[int, Standing] = {}

    def why_not_now(self, user_id: int, held: Resources, wanted: Resources | None) -> str:
        quota = self.quotas.get(user_id, NO_LIMITS)
        paused = quotas.why_paused(quota, self.standings.get(user_id, Standing()))
        return paused or (quotas.why_not_now(quota, held, wanted) if wanted else "")


class World:
    """A node of two cores, and what users have queued and running there."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.cluster.node_up(report())
        self.queue = WorkQueue()
        self.limits = Limits()
        self.fair = FairShare()
        self.assigner = Assigner(self.cluster, self.queue, Estimates(), self.fair, self.limits)
        self._batches = 0

    def push(
        self, user: int, count: int = 1, spec: JobSpec = SPEC, priority: int = 5
    ) -> LiveBatch:
        self._batches += 1
        batch = LiveBatch(
            batch=self._batches,
            user_id=user,
            spec=spec,
            function_digest=f"f{user}",
            priority=priority,
            label=None,
            state="sealed",
            size=count,
            created_at=0.0,
            depends_on=(),
            is_map=count > 1,
        )
        first = self._batches * 1000
        batch.spans.append(Span(first, bytearray((CODE_OF[Status.QUEUED],)) * count, batch, 0))
        self.queue.push(Work(priority, batch.batch, first, count, batch))
        return batch

    def run(
        self, user: int, count: int, *, seconds: float = 0.001, sent: bool = True
    ) -> HeldLease:
        """Let a chunk of a user's elements run on a core."""
        wanted = Resources(1.0, GIB)
        slot = self.cluster.new_slot("n1", f"sandbox{user}", wanted, user)
        self.cluster.hold(slot)
        key = (f"f{user}", "c1")
        self.assigner.estimates.learn(key, count, seconds * count)
        lease = HeldLease(
            f"l{slot.slot}", slot, 1, count, attempt=1, fresh=False, key=key, sent=sent
        )
        self.cluster.enter(lease)
        return lease

    def starve(self) -> None:
        while (found := self.assigner.next(0.0)) is not None:
            raise AssertionError(f"there was room for {found}")


# ------------------------------------------------------------------------------------- fairness
def test_use_halves_in_ten_minutes():
    fair = FairShare()
    fair.charge(RICH, 100.0, now=0.0)
    assert fair.used(RICH, HALF_LIFE_SECONDS) == pytest.approx(50.0)
    fair.charge(RICH, 10.0, now=HALF_LIFE_SECONDS)
    assert fair.used(RICH, 2 * HALF_LIFE_SECONDS) == pytest.approx(30.0)


def test_what_runs_counts_before_it_is_charged():
    fair = FairShare()
    fair.charge(RICH, 5.0, now=0.0)
    assert fair.order({RICH: 0.0, POOR: 60.0}, now=0.0) == [RICH, POOR]


def test_use_is_kept_over_a_restart():
    before, after = FairShare(), FairShare()
    before.charge(RICH, 100.0, now=50.0)
    changed = before.take_changed(50.0)
    assert changed == {RICH: 100.0}
    assert before.take_changed(60.0) == {}
    after.restore({user: (used, 600.0) for user, used in changed.items()}, now=7.0)
    assert after.used(RICH, 7.0) == pytest.approx(50.0)


@given(
    used=st.dictionaries(st.integers(1, 6), st.floats(0, 1e6), min_size=2),
    age=st.floats(0, 1e5),
)
def test_time_changes_nobodys_turn(used, age):
    fair = FairShare()
    for user, seconds in used.items():
        fair.charge(user, seconds, now=0.0)
    running = dict.fromkeys(used, 0.0)
    first = fair.order(running, now=0.0)
    levels = [decay(used[user], age) for user in first]
    assert levels == sorted(levels)


def test_long_running_element_counts_as_it_goes():
    world = World()
    world.run(RICH, 1)
    assert world.cluster.holding(0.0)[RICH].core_seconds == 0.25
    assert world.cluster.holding(3600.0)[RICH].core_seconds == 3600.0


# ------------------------------------------------------------------------------- making room
def full(world: World) -> list[HeldLease]:
    leases = [world.run(RICH, 250), world.run(RICH, 250)]
    world.fair.charge(RICH, 100.0, now=0.0)
    return leases


def test_chunks_of_who_used_much_more_are_cut_at_once():
    world = World()
    leases = full(world)
    world.push(POOR, 10)
    world.starve()
    assert chunks_to_cut(world.assigner, 0.0) == leases


def test_only_as_much_is_cut_as_is_wanted():
    world = World()
    full(world)
    world.push(POOR)
    world.starve()
    (cut,) = chunks_to_cut(world.assigner, 0.0)
    cut.revoked = True
    assert chunks_to_cut(world.assigner, 0.0) == []  # it gives way already


def test_chunk_with_the_shortest_elements_is_cut_first():
    world = World()
    world.run(RICH, 2, seconds=0.1)
    short = world.run(THIRD, 250, seconds=0.001)
    for user in (RICH, THIRD):
        world.fair.charge(user, 100.0, now=0.0)
    world.push(POOR)
    world.starve()
    assert chunks_to_cut(world.assigner, 0.0) == [short]


def test_users_of_about_the_same_use_take_turns_at_the_ends_of_chunks():
    world = World()
    leases = [world.run(RICH, 250), world.run(RICH, 250)]
    world.fair.charge(RICH, 100.0, now=0.0)
    world.fair.charge(POOR, 99.8, now=0.0)
    world.push(POOR, 10)
    world.starve()
    assert chunks_to_cut(world.assigner, 0.0) == []
    world.fair.charge(RICH, 10.0, now=0.0)
    assert chunks_to_cut(world.assigner, 0.0) == leases


def test_user_at_the_quota_makes_nobody_give_way():
    world = World()
    full(world)
    world.limits.quotas[POOR] = Quota(cost=1.0)
    world.limits.standings[POOR] = Standing(cost=1.0)
    world.push(POOR, 10)
    world.starve()
    assert world.assigner.starving == set()
    assert world.assigner.waiting_cores() == 0
    assert chunks_to_cut(world.assigner, 0.0) == []


# ------------------------------------------------------------------------------------ quotas
def test_user_at_the_quota_of_cores_leaves_the_other_core_to_others():
    world = World()
    world.limits.quotas[POOR] = Quota(cores=1)
    world.run(POOR, 1)
    world.push(POOR, 10)
    assert world.assigner.next(0.0) is None
    assert "your jobs hold 1 core, and your quota is 1 core" in world.assigner.why_limited(
        POOR, SPEC, 0.0
    )
    world.push(RICH, 10)
    found = world.assigner.next(0.0)
    assert found is not None
    assert found.slot.user_id == RICH


def test_head_over_the_quota_stops_no_other_user_however_long_it_waits():
    world = World()
    world.limits.quotas[POOR] = Quota(memory_bytes=1)
    world.push(POOR)
    world.push(RICH)
    world.fair.charge(RICH, 100.0, now=0.0)
    found = world.assigner.next(1000.0)
    assert found is not None
    assert found.slot.user_id == RICH


def test_priority_counts_within_a_user_only():
    world = World()
    world.push(RICH, priority=0)
    world.fair.charge(RICH, 1.0, now=0.0)
    low, high = world.push(POOR, priority=9), world.push(POOR, priority=8)
    found = world.assigner.next(0.0)
    assert found is not None
    assert found.work.batch is high
    world.queue.take(found.work, 1)
    head = world.queue.head(POOR)
    assert head is not None
    assert head.batch is low


def test_call_of_a_user_at_the_quota_is_queued():
    world = World()
    world.limits.quotas[POOR] = Quota(cores=1)
    assert isinstance(world.assigner.reserve(POOR, SPEC, 5, "f", 0.0), Slot)
    assert world.assigner.reserve(POOR, SPEC, 5, "f", 0.0) is None
    assert isinstance(world.assigner.reserve(RICH, SPEC, 5, "f", 0.0), Slot)


@given(st.lists(st.tuples(st.sampled_from([RICH, POOR]), st.integers(1, 5)), max_size=12))
def test_queue_counts_what_it_holds(pushed):
    world = World()
    for user, count in pushed:
        world.push(user, count)
    taken = 0
    while (user := next(iter(world.queue.users()), None)) is not None:
        assert len(world.queue) == sum(n for _, n in pushed) - taken
        assert len(world.queue) == sum(map(world.queue.count_of, (RICH, POOR)))
        work = world.queue.head(user)
        assert work is not None
        world.queue.take(work, 1)
        taken += 1
    assert len(world.queue) == 0
