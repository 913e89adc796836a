"""Gives queued jobs to runners, and takes back what became of them.

All state here is a cache of the store: after a restart it is built again from queued jobs, known
leases and what nodes say that they still hold.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from picloud_jupyter.protocol.errors import InvalidRequest, QuotaExceeded
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import CORE_TYPES, EndReason, JobSpec, Resources
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_services.accounts import quotas
from picloud_services.accounts.service import Accounts
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.events import Events
from picloud_services.base.ticker import Ticker
from picloud_services.dispatch.assigning import Assigner
from picloud_services.dispatch.cluster import Cluster, HeldLease, Slot
from picloud_services.dispatch.delayed import Delayed
from picloud_services.dispatch.engine import Engine, EngineEvent
from picloud_services.dispatch.estimate import Estimates
from picloud_services.dispatch.fairness import FairShare
from picloud_services.dispatch.giving import Giving
from picloud_services.dispatch.load import Load, load_of
from picloud_services.dispatch.payloads import ChunkBuilder, ChunkSources
from picloud_services.dispatch.placement import need, never_fits
from picloud_services.dispatch.recorder import RECORDED, Recorded, Recorder
from picloud_services.dispatch.sandbox import check_spec, single_use
from picloud_services.dispatch.settling import Settling
from picloud_services.dispatch.upkeep import AWAY_SECONDS, DOUBT_SECONDS, Upkeep
from picloud_services.dispatch.why import why_queued
from picloud_services.dispatch.work_queue import WorkQueue, work_from
from picloud_services.jobs.leasing import Arguments
from picloud_services.jobs.live import LiveJobs, Ready
from picloud_services.jobs.outcomes import Outcome
from picloud_services.jobs.recovery import KnownLease
from picloud_services.jobs.store import NewLease
from picloud_services.jobs.words import Function

KEPT_SPECS = 1_000
TICK_SECONDS = 0.25
OUTPUT_TOPIC, SAMPLES_TOPIC, NODES_TOPIC = "jobs.output", "samples", "nodes"
_log = logging.getLogger(__name__)


class Dispatcher:
    """The `jobs.ports.Dispatch` of the service. On the event loop alone."""

    def __init__(
        self,
        database: Database,
        sources: ChunkSources,
        engine: Engine,
        live: LiveJobs,
        events: Events,
        accounts: Accounts,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._live = live
        self._events = events
        self._clock = clock
        self._cluster = Cluster()
        self._queue = WorkQueue()
        self._accounts = accounts
        self._fair = FairShare()
        self._assigner = Assigner(self._cluster, self._queue, Estimates(), self._fair, accounts)
        self._upkeep = Upkeep(self._assigner, engine, self._lose)
        self._settling = Settling(
            self._assigner, engine, live, self._upkeep, clock, add=self.add
        )
        self.telling = self._settling.telling
        self._recorder = Recorder(
            database,
            sources.blobs,
            live,
            clock,
            self._settling.rules_of,
            self._committed,
            engine.acknowledge,
        )
        self._giving = Giving(
            database,
            engine,
            self._assigner,
            ChunkBuilder(sources),
            clock,
            upkeep=self._upkeep,
            requeue=lambda ready: self.add([ready]),
            report=self._recorder.take,
        )
        self._on_committed: Callable[[Sequence[Outcome]], None] = lambda _outcomes: None
        self._fitting: set[JobSpec] = set()  # what some known node can hold
        self._delayed = Delayed()
        self._known: dict[str, KnownLease] = {}  # of before the start, until their node is here
        self._ticker = Ticker(
            "dispatcher", TICK_SECONDS, self._tick, jitter=0, idle=self._is_idle
        )

    # ----------------------------------------------------------------------------------- process
    async def start(
        self,
        on_committed: Callable[[Sequence[Outcome]], None],
        leases: Sequence[KnownLease],
        recent: Mapping[int, tuple[float, float]] | None = None,
    ) -> None:
        """Begin; ``leases`` were live before, and are lost unless their node still holds them.

        ``recent`` is what users had used lately: (core-seconds, seconds ago).
        ``on_committed`` gets every committed outcome, in commit order (`JobService.committed`).
        """
        self._on_committed = on_committed
        now = self._clock.steady_seconds()
        self._fair.restore(recent or {}, now)
        for known in leases:
            self._known[known.lease] = known
            self._upkeep.doubt(known.lease, known.node, AWAY_SECONDS, now)
        await self._engine.start(self._on_event)
        self._ticker.start()

    def pause(self) -> None:
        """Start nothing more; what runs, and what comes back, is recorded until `stop`."""
        self._giving.pause()

    async def stop(self) -> None:
        """Disconnect; what runs goes on and is taken up again by the next start."""
        await self._ticker.stop()
        self._giving.stop()
        await self._engine.stop()
        self._recorder.stop()

    async def _tick(self) -> None:
        self._upkeep.tick(self._clock.steady_seconds())
        self._push_delayed()
        self._giving.pump()

    def _is_idle(self) -> bool:
        return self._upkeep.is_idle and not self._delayed and not self._queue

    def nodes(self) -> list[NodeReport]:
        """Return the nodes that are connected."""
        return self._engine.nodes()

    def load(self) -> Load:
        """Return how busy it is."""
        return load_of(self._assigner, self._clock.steady_seconds())

    def held(self) -> dict[int, Resources]:
        """Return what the jobs of each user hold now."""
        holding = self._cluster.holding(self._clock.steady_seconds())
        return {user_id: held.resources for user_id, held in holding.items()}

    def changed_shares(self) -> dict[int, float]:
        """Return what users have used lately who used something since this was asked: core-seconds."""
        return self._fair.take_changed(self._clock.steady_seconds())

    # -------------------------------------------------------------------------------- submitting
    def check(self, user_id: int, spec: JobSpec) -> None:
        """Return if jobs of ``spec`` can be held; see `jobs.ports.Dispatch`."""
        self._check_fits(spec)
        wanted = self._cluster.least_need(spec)
        if wanted is not None and (words := self._accounts.why_never(user_id, wanted)):
            raise QuotaExceeded(
                f"{words[0].upper()}{words[1:]}.",
                reason=EndReason.NEVER_SCHEDULED,
                hint=f"ask for fewer _cores or another _type; {quotas.RAISE}",
            )

    def _check_fits(self, spec: JobSpec) -> None:
        if spec in self._fitting:
            return
        check_spec(spec, self._cluster.kinds())
        capacities = [report.capacity for report in self._cluster.known.values()]
        if words := never_fits(spec.core_type, spec.cores, capacities, spec.gpus):
            raise InvalidRequest(
                words,
                reason=EndReason.NEVER_SCHEDULED,
                hint="ask for less: _cores, _gpu, another _type",
            )
        if len(self._fitting) >= KEPT_SPECS:
            self._fitting.clear()
        self._fitting.add(spec)

    def reserve(
        self, user_id: int, spec: JobSpec, priority: int, function_digest: str
    ) -> NewLease | None:
        """Return a lease for a call that may start at once; see `jobs.ports.Dispatch`."""
        cores = CORE_TYPES[spec.core_type].share * spec.cores
        self._ticker.resume()
        now = self._clock.steady_seconds()
        self._upkeep.claim(now, more_cores=cores)
        slot = self._assigner.reserve(user_id, spec, priority, function_digest, now)
        if slot is None:
            return None
        key = (function_digest, spec.core_type)
        lease, _ = self._giving.new_lease(slot, key, fresh=single_use(spec))
        return lease

    def cancel(self, lease: NewLease) -> None:
        """Give back a reserved lease; what was sent already is taken back."""
        held = self._cluster.leases.get(lease.lease)
        if held is not None:
            if held.sent:
                self._engine.revoke(held.slot.node, held.lease)
            self._cluster.remove(held, self._clock.steady_seconds())
            self._giving.wake()

    def launch(
        self, lease: NewLease, spec: JobSpec, arguments: Arguments, function: Function
    ) -> None:
        """Start the job of a reserved lease that is committed, or restartable and about to be."""
        held = self._cluster.leases[lease.lease]
        if held.count:
            return  # it was launched before its commit
        held.first_jid, held.count = arguments.first_jid, arguments.count
        self._giving.send(held, spec, arguments, function)

    def add(
        self,
        ready: Sequence[Ready],
        arguments: Arguments | None = None,
        function: Function | None = None,
    ) -> None:
        """Queue jobs that may run, and look for what can be given out."""
        self._ticker.resume()
        now = self._clock.steady_seconds()
        for item in ready:
            batch = self._live.batches.get(item.batch)
            if batch is None:
                continue
            if item.delay_seconds:
                self._delayed.add(item, now)
            else:
                self._queue.push(work_from(item, batch, now, arguments, function))
        self._giving.wake()

    def _push_delayed(self) -> None:
        now = self._clock.steady_seconds()
        for ready in self._delayed.take(now, self._live.batches):
            self._queue.push(work_from(ready, self._live.batches[ready.batch], now))

    # ------------------------------------------------------------------------------------ ending
    def killed(self, jids: Sequence[JidRange]) -> None:
        """Take note of jobs that were ended by request: those given out must not start."""
        for first, last in jids:
            for held in self._cluster.leases_within(first, last):
                held.unwanted = True
                if held.sent:
                    self._engine.revoke(held.slot.node, held.lease)
                    if (
                        held.running is not None
                        and first <= held.first_jid + held.running <= last
                    ):
                        self._settling.started(held, held.running, None)
        self._giving.wake()

    def kill_running(self, jids: Sequence[int]) -> None:
        """End elements that run now."""
        for jid in jids:
            running = self._live.running.get(jid)
            if running is not None:
                self._engine.kill(running.node, running.lease, running.position, "killed")

    # ------------------------------------------------------------------------------------ asking
    def why(self, jid: int) -> str:
        """Return why a queued job does not run yet."""
        span = self._live.find(jid)
        if span is None:
            return ""
        now = self._clock.steady_seconds()
        delay_seconds = self._delayed.seconds_left(jid, now)
        return why_queued(jid, span.batch, self._assigner, delay_seconds, now)

    def lease_of(self, jid: int) -> NewLease | None:
        """Return the lease that a job is out under."""
        held = self._cluster.lease_with(jid)
        if held is None:
            return None
        slot = held.slot
        return NewLease(held.lease, slot.node, slot.slot, held.fresh, held.attempt)

    @contextlib.contextmanager
    def blocked(self, jid: int) -> Iterator[None]:
        """While inside: the job waits for other jobs, and does not hold its cores."""
        held = self._cluster.lease_with(jid)
        if held is None:
            yield
            return
        slot = held.slot
        self._cluster.block(slot)
        for waiting in tuple(slot.leases):
            self._upkeep.take_back(waiting)
        self._giving.wake()
        try:
            yield
        finally:
            if held.lease in self._cluster.leases:  # else the slot is another job's
                self._cluster.unblock(slot)

    # ------------------------------------------------------------------------- events of the engine
    def _on_event(self, event: EngineEvent) -> None:
        if event.name in RECORDED:
            self._recorder.take(event)
        elif event.name == "started":
            held = self._cluster.leases.get(event.lease)
            if held is not None:
                held.container = event.fields.get("container", "")
                self._settling.started(held, event.fields["position"], event.fields.get("at"))
        elif event.name == "output":
            self._events.publish(OUTPUT_TOPIC, event)
        elif event.name == "samples":
            self._events.publish(SAMPLES_TOPIC, event.fields["items"])
        elif event.name == "node_up":
            self._node_up(event)
        elif event.name == "node_down":
            self._node_down(event)

    def _committed(self, recorded: Recorded) -> None:
        self._on_committed([outcome for _, outcome in recorded])
        self._settling.settle(recorded)

    def _node_up(self, event: EngineEvent) -> None:
        self._ticker.resume()
        now = self._clock.steady_seconds()
        node, listed = event.node, event.fields["leases"]
        self._cluster.node_up(event.fields["report"])
        self._upkeep.connected(node)
        self._fitting.clear()
        for lease, slot in dict(listed).items():
            self._upkeep.trust(lease)
            if lease in self._cluster.leases:
                continue
            known = self._known.pop(lease, None)
            if known is not None:
                self._take_up(known, slot)
            else:  # it was lost meanwhile: its jobs run elsewhere, or have ended
                self._engine.kill(node, lease, None, "killed")
        for held in tuple(self._cluster.leases.values()):
            if held.slot.node == node and held.sent and held.lease not in listed:
                self._upkeep.doubt(held.lease, node, DOUBT_SECONDS, now)
        for known in self._known.values():
            if known.node == node:
                self._upkeep.doubt(known.lease, node, DOUBT_SECONDS, now)
        self._events.publish(NODES_TOPIC, event)
        self._giving.wake()

    def _node_down(self, event: EngineEvent) -> None:
        self._ticker.resume()
        now = self._clock.steady_seconds()
        self._cluster.node_down(event.node)
        for held in self._cluster.leases.values():
            if held.slot.node == event.node and held.sent:
                self._upkeep.doubt(held.lease, event.node, AWAY_SECONDS, now)
        self._events.publish(NODES_TOPIC, event)

    def _take_up(self, known: KnownLease, slot_name: str) -> None:
        """Enter a lease of before the start that its node still holds."""
        batch = self._live.batches.get(known.batch)
        if batch is None:
            self._engine.kill(known.node, known.lease, None, "killed")
            return
        spec = batch.spec
        slot = self._cluster.slots.get(slot_name)
        if slot is None:
            capacity = self._cluster.nodes[known.node].capacity
            wanted = need(spec.core_type, spec.cores, capacity, spec.gpus)
            sandbox = self._assigner.sandbox(spec, known.user_id, known.node)[1]
            slot = Slot(slot_name, known.node, sandbox, wanted, known.user_id)
            self._cluster.slots[slot_name] = slot
        self._cluster.hold(slot)
        held = HeldLease(
            known.lease,
            slot,
            known.first_jid,
            known.count,
            attempt=known.attempt,
            fresh=known.fresh,
            key=(batch.function_digest, spec.core_type),
            next_position=known.next_position,
            sent=True,
            progress_at=self._clock.steady_seconds(),
        )
        self._cluster.enter(held)
        if (
            held is slot.leases[0]
        ):  # which element runs is said by the next report; this is the first
            self._settling.started(held, held.next_position, None)
        for jid in self._live.killing.intersection(known.jids()):  # the service went down first
            self._engine.kill(known.node, known.lease, jid - known.first_jid, "killed")

    def _lose(self, lease: str, node: str) -> None:
        """Nobody holds ``lease`` any more: its jobs are queued again, or end."""
        self._known.pop(lease, None)
        _log.warning("lease %s on node %s is lost", lease, node, extra={"lease": lease})
        self._recorder.take(EngineEvent(node, "lease_lost", 0, lease))
