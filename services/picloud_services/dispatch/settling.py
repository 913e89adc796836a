"""Takes committed outcomes into the books: what ended, what is queued again, what runs now."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from picloud_jupyter.protocol.jobs import CORE_TYPES, JobSpec
from picloud_services.base.clock import Clock
from picloud_services.dispatch.assigning import Assigner
from picloud_services.dispatch.cluster import HeldLease
from picloud_services.dispatch.engine import Engine, EngineEvent
from picloud_services.dispatch.recorder import REFUSED, Recorded
from picloud_services.dispatch.telling import Telling
from picloud_services.dispatch.upkeep import Upkeep
from picloud_services.jobs.lifecycle import Terms
from picloud_services.jobs.live import LiveJobs, Ready, Running
from picloud_services.jobs.outcomes import Outcome, Rules
from picloud_services.jobs.reasons import Facts
from picloud_services.jobs.spans import UNFINISHED_CODES

WAY_SECONDS = 1.0  # of a report, at most, that nobody is charged for


@functools.lru_cache(maxsize=1024)
def _rules(spec: JobSpec, memory_bytes: int, node: str) -> Rules:
    core_type = CORE_TYPES[spec.core_type]
    return Rules(
        Terms(spec.restartable, spec.retries),
        cores=spec.cores * core_type.share,
        charge=core_type.price_per_core_hour / core_type.share / 3600,
        facts=Facts(
            memory_limit_bytes=memory_bytes,
            memory_peak_bytes=memory_bytes,
            max_runtime_seconds=spec.max_runtime_seconds,
            node=node,
        ),
    )


class Settling:
    """What follows the commits of the recorder."""

    def __init__(
        self,
        assigner: Assigner,
        engine: Engine,
        live: LiveJobs,
        upkeep: Upkeep,
        clock: Clock,
        *,
        add: Callable[[Sequence[Ready]], None],
    ) -> None:
        self._assigner = assigner
        self._cluster = assigner.cluster
        self._engine = engine
        self._live = live
        self._upkeep = upkeep
        self._clock = clock
        self._add = add
        self.telling = Telling()

    def rules_of(self, lease: str, batch: int) -> Rules:
        """Return what the spec of a batch says for its ends. Called on the writer's thread."""
        live = self._live.batches.get(batch)
        if live is None:
            return Rules(Terms())
        held = self._cluster.leases.get(lease)
        if held is None:
            return _rules(live.spec, 0, "")
        return _rules(live.spec, held.slot.wanted.memory_bytes, held.slot.node)

    def settle(self, recorded: Recorded) -> None:
        """Take note of committed events; the image has them already."""
        now, now_at = self._clock.steady_seconds(), self._clock.now_at()
        for event, outcome in recorded:
            held = self._cluster.leases.get(event.lease)
            self.telling.tell(event, outcome, held, now_at)
            if held is not None:
                self._settle_lease(held, event, outcome, now)
            if outcome.ready:
                for ready in outcome.ready:
                    self._live.stop(ready.first_jid)
                self._add(outcome.ready)
            self._upkeep.heard(event.lease, now)
        self._add(())

    def _settle_lease(
        self, held: HeldLease, event: EngineEvent, outcome: Outcome, now: float
    ) -> None:
        if event.name == "batch":
            self._learn(held, event.fields["items"], now)
        elif event.name == "exited" and held.running is not None:
            used = (now - held.progress_at) * held.slot.wanted.cores
            self._assigner.fair.charge(held.slot.user_id, used, now)
        elif event.name == "returned" and not outcome.lease_over:
            held.count = min(held.count, max(event.fields["first"], held.next_position))
            held.revoked = False
        elif event.name == REFUSED:  # whatever else it does cannot be told
            self._engine.kill(event.node, event.lease, None, "killed")
        if outcome.lease_over or outcome.late:
            self._stop_running(held)
            self._cluster.remove(held, now)
            if held.fresh:  # its container is gone with it
                self._release(held)
            return
        position = event.fields.get("running")
        if event.name == "batch" and position is not None:
            self.started(held, position, None)

    def _release(self, held: HeldLease) -> None:
        slot = held.slot
        if not slot.leases:
            self._cluster.slots.pop(slot.slot, None)
            self._engine.release(slot.node, slot.slot)

    def _learn(self, held: HeldLease, items: Sequence[Any], now: float) -> None:
        if not items:
            return
        seconds = sum([item[3] for item in items])
        # A runner that says less than was seen runs other than it says; a second is for the way here.
        seen = now - held.progress_at - WAY_SECONDS if held.running is not None else 0.0
        held.next_position = max(held.next_position, items[-1][0] + 1)
        held.progress_at = now
        grown = held.next_position
        mean = seconds / len(items)
        self._assigner.estimates.learn(held.key, grown, mean * grown)
        slot = held.slot
        used = max(seconds, seen) * slot.wanted.cores
        self._assigner.fair.charge(slot.user_id, used, now)

    # ------------------------------------------------------------------------------- what runs
    def started(self, held: HeldLease, position: int, at: float | None) -> None:
        """An element was seen running."""
        if not held.next_position <= position < held.count:
            return
        jid = held.first_jid + position
        slot = held.slot
        if held.running != position:
            held.running = position
            held.progress_at = self._clock.steady_seconds()
        span = self._live.find(jid)
        if span is None or span.code(jid) not in UNFINISHED_CODES:  # ended while it waited
            self._engine.kill(slot.node, held.lease, position, "killed")
            return
        now_at = self._clock.now_at() if at is None else at
        self._live.start(jid, Running(held.lease, slot.node, position, now_at, held.container))

    def _stop_running(self, held: HeldLease) -> None:
        """Nothing of a lease that is over runs."""
        if held.running is not None:
            jid = held.first_jid + held.running
            running = self._live.running.get(jid)
            if running is not None and running.lease == held.lease:
                self._live.stop(jid)
