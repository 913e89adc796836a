"""Which queued jobs run next, and where. Pure: everything it knows is given in."""

import functools
from dataclasses import dataclass
from typing import Protocol

from picloud_jupyter.protocol.jobs import (
    CORE_TYPES,
    DEFAULT_PRIORITY,
    JobSpec,
    Resources,
    SandboxSpec,
)
from picloud_services.accounts.quotas import NOTHING
from picloud_services.dispatch import chunking
from picloud_services.dispatch.cluster import Cluster, Held, HeldLease, Slot
from picloud_services.dispatch.estimate import Estimate, Estimates
from picloud_services.dispatch.fairness import FairShare
from picloud_services.dispatch.placement import never_fits
from picloud_services.dispatch.sandbox import build_sandbox, single_use
from picloud_services.dispatch.work_queue import Work, WorkQueue, queued_run
from picloud_services.jobs.cache import environment_of

PATIENCE_SECONDS = 10.0  # a large job waits this long while smaller ones of others pass it
EXPRESS_SECONDS = 0.02  # a call this short runs beside a chunk of elements this short


@dataclass(frozen=True, slots=True)
class Assignment:
    """The first ``count`` jobs of ``work``, a user's head, go to ``slot``."""

    work: Work
    slot: Slot
    count: int


@functools.lru_cache(maxsize=1024)
def _sandbox(spec: JobSpec, user_id: int, wanted: Resources) -> tuple[SandboxSpec, str]:
    return build_sandbox(spec, user_id, wanted, environment_of(spec.host_python))


class Limits(Protocol):
    """The quotas of users: `picloud_services.accounts`."""

    def why_not_now(self, user_id: int, held: Resources, wanted: Resources | None) -> str:
        """Return why no job that needs ``wanted`` may start beside what the user holds; "" if one may."""


class Assigner:
    """Decides. Taking work from the queue and entering leases is the caller's."""

    def __init__(
        self,
        cluster: Cluster,
        queue: WorkQueue,
        estimates: Estimates,
        fair: FairShare,
        limits: Limits,
    ) -> None:
        self.cluster = cluster
        self.queue = queue
        self.estimates = estimates
        self.fair = fair
        self.limits = limits
        self.starving: set[int] = set()  # users for whose head there was no room

    def estimate(self, spec: JobSpec, function_digest: str) -> Estimate | None:
        """Return how long an element takes."""
        return self.estimates.get((function_digest, spec.core_type))

    def waiting_cores(self) -> float:
        """Return how many cores the queued jobs could use, by the largest of each user's that is next."""
        return sum(map(self.wanted_cores, self.queue.users()))

    def wanted_cores(self, user_id: int) -> float:
        """Return how many cores a user's queued jobs could use; 0 where the quota lets none start."""
        work = self.queue.head(user_id)
        if work is None or self.limits.why_not_now(user_id, NOTHING, self._need(work)):
            return 0.0
        return self.queue.count_of(user_id) * _cores(work.batch.spec)

    def least_cores(self, capacity: float) -> float:
        """Return how many cores it takes to begin one of the jobs that are next on a node of ``capacity``."""
        users = [user for user in self.queue.users() if self.wanted_cores(user)]
        heads = [work for user in users if (work := self.queue.head(user)) is not None]
        needs = [_cores(work.batch.spec) for work in heads]
        return min((cores for cores in needs if cores <= capacity), default=1.0)

    def why_limited(self, user_id: int, spec: JobSpec, now: float) -> str:
        """Return why the user's quota lets no job of ``spec`` start now; "" if it does."""
        held = self.cluster.holding(now).get(user_id)
        wanted = self.cluster.least_need(spec)
        return self.limits.why_not_now(user_id, held.resources if held else NOTHING, wanted)

    def _need(self, work: Work) -> Resources | None:
        return self.cluster.least_need(work.batch.spec)

    def sandbox(self, spec: JobSpec, user_id: int, node: str) -> tuple[SandboxSpec, str]:
        """Return the sandbox of a user's jobs of ``spec`` on ``node``, and its digest."""
        wanted = self.cluster.need_on(node, spec.core_type, spec.cores, spec.gpus)
        return _sandbox(spec, user_id, wanted)

    # ------------------------------------------------------------------------------- from the queue
    def next(self, now: float) -> Assignment | None:
        """Return what to start next; None if nothing fits."""
        self.starving.clear()
        holding = self.cluster.holding(now)
        nothing = Held(NOTHING, 0.0)
        running = {user: holding.get(user, nothing).core_seconds for user in self.queue.users()}
        for user in self.fair.order(running, now):
            work = self.queue.head(user)
            if work is None:
                continue
            held = holding.get(user, nothing).resources
            limited = bool(self.limits.why_not_now(user, held, self._need(work)))
            slot = self._slot_for(work, limited=limited)
            if slot is not None:
                return Assignment(work, slot, self._count(work, slot))
            if limited:  # nobody else need make room
                continue
            self.starving.add(user)
            if now - work.since > PATIENCE_SECONDS and not self._never(work):
                return None
        return None

    def _never(self, work: Work) -> bool:
        spec = work.batch.spec
        capacities = [node.capacity for node in self.cluster.nodes.values()]
        return bool(never_fits(spec.core_type, spec.cores, capacities, spec.gpus))

    def _slot_for(self, work: Work, *, limited: bool) -> Slot | None:
        """Return a slot for a user's head; ``limited`` by the quota: none that takes more than now."""
        spec, user_id = work.batch.spec, work.batch.user_id
        alone = work.fresh or single_use(spec)
        if limited:
            node = None
            if self.limits.why_not_now(user_id, NOTHING, None):
                return None
        else:
            node = self.cluster.place(spec.core_type, spec.cores, spec.gpus)
        if node is not None:
            return self._open_slot(spec, user_id, node, alone=alone)
        if self.starving or alone or self.estimate(spec, work.batch.function_digest) is None:
            return None
        return self._busy_slot(work)

    def _open_slot(self, spec: JobSpec, user_id: int, node: str, *, alone: bool) -> Slot:
        wanted = self.cluster.need_on(node, spec.core_type, spec.cores, spec.gpus)
        digest = self.sandbox(spec, user_id, node)[1]
        slot = None if alone else self.cluster.idle_slot(node, digest)
        if slot is None:
            slot = self.cluster.new_slot(node, digest, wanted, user_id)
        self.cluster.hold(slot)
        return slot

    def _busy_slot(self, work: Work) -> Slot | None:
        """Return the slot with the least work left behind which a chunk may be queued."""
        best: tuple[float, Slot] | None = None
        for slot in self.cluster.slots.values():
            if len(slot.leases) != 1 or slot.blocked or slot.express:
                continue
            lease = slot.leases[0]
            if slot.node not in self.cluster.nodes or slot.user_id != work.batch.user_id:
                continue
            if lease.fresh or lease.revoked:
                continue
            if self.sandbox(work.batch.spec, slot.user_id, slot.node)[1] != slot.sandbox:
                continue
            estimate = self.estimates.get(lease.key)
            if estimate is None or not chunking.worth_queueing(estimate, lease.left):
                continue
            left = estimate.seconds * lease.left
            if best is None or left < best[0]:
                best = left, slot
        return best[1] if best else None

    def _count(self, work: Work, slot: Slot) -> int:
        if work.alone or single_use(work.batch.spec):
            return 1
        estimate = self.estimate(work.batch.spec, work.batch.function_digest)
        remaining = self.queue.remaining(work.batch_number)
        size = chunking.chunk_size(estimate, remaining, self.cluster.parallel(slot.wanted))
        return min(size, queued_run(work))

    # --------------------------------------------------------------------------------- at submit
    def reserve(
        self, user_id: int, spec: JobSpec, priority: int, function_digest: str, now: float
    ) -> Slot | None:
        """Return a slot for a call that may start at once; None if it must queue."""
        alone = single_use(spec)
        if self.why_limited(user_id, spec, now):
            return None
        if not len(self.queue):
            node = self.cluster.place(spec.core_type, spec.cores, spec.gpus)
            if node is not None:
                return self._open_slot(spec, user_id, node, alone=alone)
        estimate = self.estimate(spec, function_digest)
        if alone or spec.gpus or priority > DEFAULT_PRIORITY or not _is_short(estimate):
            return None
        return self._express_slot(spec, user_id)

    def _express_slot(self, spec: JobSpec, user_id: int) -> Slot | None:
        """Return a slot beside full cores, for a moment: one a node, only where chunks of short elements run.

        Waiting for the end of such a chunk would cost the call many times its own length, and the
        chunk loses no more than that length.
        """
        for node in self.cluster.nodes:
            slots = [slot for slot in self.cluster.slots.values() if slot.node == node]
            if any(slot.express for slot in slots):
                continue
            if any(self._runs_short_chunk(lease) for slot in slots for lease in slot.leases):
                wanted = self.cluster.need_on(node, spec.core_type, spec.cores, spec.gpus)
                digest = self.sandbox(spec, user_id, node)[1]
                slot = self.cluster.idle_slot(node, digest) or self.cluster.new_slot(
                    node, digest, wanted, user_id
                )
                slot.express = True
                return slot
        return None

    def _runs_short_chunk(self, lease: HeldLease) -> bool:
        return lease.count > 1 and _is_short(self.estimates.get(lease.key))


def _cores(spec: JobSpec) -> float:
    return CORE_TYPES[spec.core_type].share * spec.cores


def _is_short(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.seconds <= EXPRESS_SECONDS
