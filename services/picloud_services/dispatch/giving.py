"""Gives queued jobs out: picks, commits the lease, and only then sends the chunk."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from picloud_jupyter.protocol.errors import CloudException, NotFound
from picloud_jupyter.protocol.jobs import EndReason, JobSpec
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.dispatch.assigning import Assigner, Assignment
from picloud_services.dispatch.cluster import HeldLease, Slot
from picloud_services.dispatch.engine import Engine, EngineEvent, FilePayload
from picloud_services.dispatch.payloads import ChunkBuilder
from picloud_services.dispatch.sandbox import single_use
from picloud_services.dispatch.upkeep import Upkeep
from picloud_services.dispatch.work_queue import Work
from picloud_services.jobs.lease_rows import LeaseRow, take_lease
from picloud_services.jobs.leasing import Arguments, Leased, LeaseRequest, lease_jobs
from picloud_services.jobs.live import Ready
from picloud_services.jobs.store import NewLease
from picloud_services.jobs.words import Function

RETRY_SECONDS = 1.0
QUICK_COUNT = 16  # jobs leased on the loop's own time
_log = logging.getLogger(__name__)


class Giving:
    """The shell around `Assigner`.

    ``requeue`` takes back what could not be leased, ``report`` what could not be sent.
    """

    def __init__(
        self,
        database: Database,
        engine: Engine,
        assigner: Assigner,
        builder: ChunkBuilder,
        clock: Clock,
        *,
        upkeep: Upkeep,
        requeue: Callable[[Ready], None],
        report: Callable[[EngineEvent], None],
    ) -> None:
        self._database = database
        self._engine = engine
        self._assigner = assigner
        self._cluster = assigner.cluster
        self._queue = assigner.queue
        self._builder = builder
        self._clock = clock
        self._upkeep = upkeep
        self._requeue = requeue
        self._report = report
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = False
        self._stopped = False
        self._last_lease = 0

    def pause(self) -> None:
        """Give out nothing more; what is leased just now goes back."""
        self._stopped = True

    def stop(self) -> None:
        """Give out nothing more, at once."""
        self._stopped = True
        for task in tuple(self._tasks):
            task.cancel()

    def wake(self) -> None:
        """Look soon for what can be given out."""
        if not self._woken and not self._stopped:
            self._woken = True
            asyncio.get_running_loop().call_soon(self.pump)

    def pump(self) -> None:
        """Give out all that fits now."""
        self._woken = False
        if self._stopped or not self._queue:
            return
        now = self._clock.steady_seconds()
        self._upkeep.claim(now)
        while (found := self._assigner.next(now)) is not None:
            self._assign(found, now)
        self._upkeep.give_way(now)

    # --------------------------------------------------------------------------------- the lease
    def new_lease(
        self, slot: Slot, key: tuple[str, str], *, fresh: bool, attempt: int = 1
    ) -> tuple[NewLease, HeldLease]:
        """Return a fresh lease for ``slot`` and its entry in the books; its jobs are filled in later."""
        self._last_lease = max(self._last_lease + 1, time.time_ns())
        lease = NewLease(f"{self._last_lease:016x}", slot.node, slot.slot, fresh, attempt)
        held = HeldLease(
            lease.lease,
            slot,
            first_jid=0,
            count=0,
            attempt=attempt,
            fresh=fresh,
            key=key,
            progress_at=self._clock.steady_seconds(),
        )
        self._cluster.enter(held)
        return lease, held

    def _assign(self, found: Assignment, now: float) -> None:
        work = found.work
        batch = work.batch
        taken = self._queue.take(work, found.count)
        lease, held = self.new_lease(
            found.slot,
            (batch.function_digest, batch.spec.core_type),
            fresh=taken.fresh or single_use(batch.spec),
            attempt=taken.attempt,
        )
        held.first_jid, held.count, held.progress_at = taken.first_jid, taken.count, now
        wanted = LeaseRequest(
            lease,
            batch.batch,
            batch.user_id,
            taken.first_jid,
            taken.count,
            batch.function_digest,
            self._clock.now_at(),
            taken.arguments.cut(taken.first_jid, taken.count) if taken.arguments else None,
            taken.function or self._builder.function(batch.function_digest),
        )
        future = self._database.write(
            partial(lease_jobs, wanted=wanted),
            partial(self._leased, held, taken),
            quick=taken.count <= QUICK_COUNT,
        )
        future.add_done_callback(partial(self._written, held, taken))

    def _leased(self, held: HeldLease, taken: Work, leased: Leased | None) -> None:
        if leased is None:  # some were killed meanwhile: the others go back
            self._cluster.remove(held, self._clock.steady_seconds())
            self._queue.push(taken)
            self.wake()
            return
        count = leased.arguments.count
        if count < taken.count:  # it ended with its part
            held.count = count
            taken.first_jid += count
            taken.count -= count
            self._queue.push(taken)
            self.wake()
        elif leased.part is not None:
            self._queue.give_arguments(held.slot.user_id, leased.part)
        if leased.damage:
            self._not_started(held, leased.damage)
        else:
            self.send(held, taken.batch.spec, leased.arguments, leased.function)

    def _not_started(self, held: HeldLease, why: str) -> None:
        fields = {"reason": str(EndReason.START_FAILED), "message": why}
        self._report(EngineEvent(held.slot.node, "start_failed", 0, held.lease, fields))

    def _written(
        self, held: HeldLease, taken: Work, future: "asyncio.Future[Leased | None]"
    ) -> None:
        error = None if future.cancelled() else future.exception()
        if error is None:
            return
        _log.error("a lease could not be written: %s", error)
        self._cluster.remove(held, self._clock.steady_seconds())
        self._unwrite(held.lease, taken)

    def _unwrite(self, lease: str, taken: Work) -> None:
        """Queue ``taken`` again once its lease is surely not in the store: some answers get lost."""
        future = self._database.write(partial(take_lease, lease=lease), essential=True)
        future.add_done_callback(partial(self._unwritten, lease, taken))

    def _unwritten(
        self, lease: str, taken: Work, future: "asyncio.Future[LeaseRow | None]"
    ) -> None:
        if self._stopped or future.cancelled():
            return
        if future.exception() is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(RETRY_SECONDS, self._unwrite, lease, taken)
            return
        self._requeue(
            Ready(
                taken.batch_number,
                taken.first_jid,
                taken.count,
                attempt=taken.attempt,
                fresh=taken.fresh,
                alone=taken.alone,
                delay_seconds=RETRY_SECONDS,
            )
        )

    # --------------------------------------------------------------------------------- the chunk
    def send(
        self, held: HeldLease, spec: JobSpec, arguments: Arguments, function: Function
    ) -> None:
        """Send what a committed lease runs."""
        if isinstance(function.payload, bytes):
            self._builder.keep(function)
        if self._builder.at_once(held.slot.user_id, spec, arguments, function):
            self._submit(held, spec, arguments, function)
            return
        task = asyncio.get_running_loop().create_task(
            self._find_and_submit(held, spec, arguments, function)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find_and_submit(
        self, held: HeldLease, spec: JobSpec, arguments: Arguments, function: Function
    ) -> None:
        try:
            files = await self._builder.find(held.slot.user_id, spec, arguments, function)
        except (CloudException, OSError) as exc:
            self._not_started(held, str(exc))
            return
        if held.lease not in self._cluster.leases:  # it was not committed after all
            return
        self._submit(held, spec, arguments, function, files)

    def _submit(
        self,
        held: HeldLease,
        spec: JobSpec,
        arguments: Arguments,
        function: Function,
        files: tuple[FilePayload, ...] = (),
    ) -> None:
        slot = held.slot
        away = slot.node not in self._cluster.nodes  # its link broke while this was committed
        stuck = (
            slot.blocked and held is not slot.leases[0]
        )  # or the job before it began to wait
        if away or stuck or self._stopped:
            fields = {"first": 0, "count": held.count, "over": True}
            self._report(EngineEvent(slot.node, "returned", 0, held.lease, fields))
            return
        estimate = self._assigner.estimates.get(held.key)
        try:
            chunk = self._builder.build(
                held,
                spec,
                self._assigner.sandbox(spec, slot.user_id, slot.node),
                arguments,
                function,
                files,
                estimate.seconds if estimate else 0.0,
            )
        except NotFound as exc:
            words = {"reason": str(EndReason.SECRET_MISSING), "message": exc.parameter}
            self._report(EngineEvent(slot.node, "start_failed", 0, held.lease, words))
            return
        held.sent = True
        held.progress_at = self._clock.steady_seconds()
        self._engine.submit(slot.node, chunk)
        if held.unwanted:
            self._engine.revoke(slot.node, held.lease)
