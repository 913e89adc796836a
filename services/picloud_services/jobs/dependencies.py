"""Lets waiting jobs go, or stalls them, when what they depend on is finished."""

import asyncio
import logging
from functools import partial

from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import EndReason, Status
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.sql import Statement, Transaction
from picloud_services.jobs.ending import Move, move, slices
from picloud_services.jobs.gates import Gate
from picloud_services.jobs.live import Change, LiveJobs
from picloud_services.jobs.ports import Dispatch
from picloud_services.jobs.publishing import Publisher, ready_from
from picloud_services.jobs.spans import LiveBatch
from picloud_services.jobs.store import DEPENDENCIES_OF, check_dependencies

RETRY_SECONDS = 1.0
_SET = Statement("UPDATE batches SET dependencies = :dependencies WHERE batch = :batch")
_log = logging.getLogger(__name__)


class Dependencies:
    """Watches what waiting batches wait for. At most one task per batch that is let go."""

    def __init__(
        self,
        database: Database,
        live: LiveJobs,
        dispatch: Dispatch,
        publisher: Publisher,
        clock: Clock,
    ) -> None:
        self._database = database
        self._live = live
        self._dispatch = dispatch
        self._publisher = publisher
        self._clock = clock
        self._gates: dict[int, Gate] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, batch: LiveBatch) -> None:
        """Let ``batch`` go when its dependencies are finished; at once if they are."""
        ignore_errors = batch.spec.depends_on_errors == "ignore"

        def enough(gate: Gate) -> bool:
            return gate.unfinished == 0 or (gate.failed > 0 and not ignore_errors)

        gate = Gate(
            self._live,
            list(batch.depends_on),
            enough=enough,
            opened=partial(self._opened, batch),
        )
        self._gates[batch.batch] = gate
        gate.check()

    def waits_for(self, batch: LiveBatch) -> list[JidRange]:
        """Return up to ten ranges of unfinished jobs that ``batch`` waits for."""
        gate = self._gates.get(batch.batch)
        found: list[JidRange] = []
        for span, start, stop in gate.pieces if gate else ():
            for first, last, status in self._live.runs(span, start, stop):
                if status in (Status.WAITING, Status.QUEUED, Status.PROCESSING):
                    found.append((first, last))
                if len(found) >= 10:
                    return found
        return found

    def _opened(self, batch: LiveBatch) -> None:
        task = asyncio.get_running_loop().create_task(self._let_go(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_go(self, batch: LiveBatch) -> None:
        gate = self._gates.pop(batch.batch, None)
        if gate is not None:
            gate.close()
        while True:
            try:
                await self._release(batch)
            except CloudException as exc:  # a full disk or a lost database: the jobs wait on
                _log.warning("batch %d cannot be let go yet: %s", batch.batch, exc)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _release(self, batch: LiveBatch) -> None:
        status, text = await self._database.write(partial(_resolve, batch))
        if status is Status.WAITING:
            self.watch(batch)
            return
        reason = EndReason.DEPENDENCY_FAILED if status is Status.STALLED else None
        for span in tuple(batch.spans):
            for first, last in slices([(span.first_jid, span.last_jid)]):
                wanted = Move(
                    batch.batch,
                    batch.user_id,
                    first,
                    last,
                    status,
                    reason,
                    text,
                    olds=(Status.WAITING,),
                )
                await self._database.write(
                    partial(move, wanted=wanted, at=self._clock.now_at()),
                    self._moved,
                    essential=True,
                )

    def _moved(self, changes: list[Change]) -> None:
        self._publisher.apply(changes)
        self._dispatch.add(ready_from(changes))

    async def close(self) -> None:
        """Stop; what waits is found again at the next start."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _resolve(batch: LiveBatch, tx: Transaction) -> tuple[Status, str]:
    """Decide by the store, and note it so that parts still to come begin accordingly."""
    status, text = check_dependencies(
        tx,
        batch.user_id,
        batch.depends_on,
        ignore_errors=batch.spec.depends_on_errors == "ignore",
        deleted_ok=True,
    )
    tx.run(_SET, batch=batch.batch, dependencies=DEPENDENCIES_OF[status])
    return status, text
