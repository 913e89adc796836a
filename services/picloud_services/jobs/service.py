"""The API of jobs: one method per request of docs/internals.md 8.

Every method acts for ``user_id`` (the peer uid); what is not that user's raises `NotFound`, as if
it did not exist. All may raise `DiskFull`, `Corrupt` and `Unavailable` of the store. Async; nothing
here blocks the loop.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from picloud_jupyter.protocol.errors import InvalidRequest, NotAllowed
from picloud_jupyter.protocol.frames import Pack
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, JobSpec
from picloud_services.accounts.service import Accounts
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.events import Events
from picloud_services.base.sql import Statement, Transaction
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs import queries
from picloud_services.jobs.counting import finished_counts
from picloud_services.jobs.dependencies import Dependencies
from picloud_services.jobs.info import Information
from picloud_services.jobs.killing import Killing
from picloud_services.jobs.leasing import Arguments, read_part
from picloud_services.jobs.links import SpecBook, read_function
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.maps import Maps
from picloud_services.jobs.outcomes import Outcome
from picloud_services.jobs.ports import Dispatch, OutputReader
from picloud_services.jobs.publishing import Publisher
from picloud_services.jobs.queries import unknown
from picloud_services.jobs.reasoning import Whys
from picloud_services.jobs.recovery import KnownLease, load, restore
from picloud_services.jobs.removal import Removal
from picloud_services.jobs.results import Results
from picloud_services.jobs.spans import SEALED
from picloud_services.jobs.submit import Calls, Desk
from picloud_services.jobs.waiting import Waiting
from picloud_services.jobs.words import (
    CallReceipt,
    Function,
    JobLine,
    MapReceipt,
    OutputPlace,
    PartReceipt,
    Payload,
    Ranges,
    ResultItem,
    ResultsAnswer,
    WaitAnswer,
)

_FUNCTION_OF = Statement(
    """SELECT b.function_digest FROM jobs j JOIN batches b ON b.batch = j.batch
    WHERE j.jid = :jid AND j.user_id = :user_id"""
)
_OWNED = Statement("SELECT 1 FROM jobs WHERE jid = :jid AND user_id = :user_id")


class JobService:
    """Submits, watches, ends and removes jobs. Made by `picloud_services.app`; `start` it once."""

    def __init__(
        self,
        database: Database,
        live: LiveJobs,
        dispatch: Dispatch,
        outputs: OutputReader,
        events: Events,
        accounts: Accounts,
        clock: Clock,
    ) -> None:
        self._database = database
        self._live = live
        self._dispatch = dispatch
        self._accounts = accounts
        self._clock = clock
        self._book = SpecBook()
        self._publisher = Publisher(live, events)
        self._dependencies = Dependencies(database, live, dispatch, self._publisher, clock)
        desk = Desk(database, live, dispatch, self._dependencies, self._book, clock, accounts)
        self.whys = whys = Whys(live, self._dependencies, dispatch)
        self._calls = Calls(desk)
        self._maps = Maps(desk, self._publisher)
        self._waiting = Waiting(database, live, whys)
        self._results = Results(database, self._waiting)
        self._killing = Killing(database, live, dispatch, self._publisher, self._waiting, clock)
        self._removal = Removal(database, live, self._waiting, outputs, accounts, events, clock)
        self._information = Information(
            database, live, self._book, dispatch, self._waiting, whys, outputs, clock
        )

    # ----------------------------------------------------------------------------------- process
    async def start(self) -> list[KnownLease]:
        """Take up what is unfinished; return the leases for the dispatcher to match with nodes."""
        loaded = await self._database.read(
            lambda tx: load(tx, self._book, self._clock.now_at())
        )
        ready = restore(loaded, self._live, self._book)
        for found in loaded.batches:
            if found.batch.state != SEALED:
                self._maps.reopened(found.batch)
            if found.waits:
                self._dependencies.watch(found.batch)
        await self._killing.replay({jid for lease in loaded.leases for jid in lease.jids()})
        self._dispatch.add(ready)
        return loaded.leases

    async def stop(self) -> None:
        """Stop what runs on its own; call it before the database is closed."""
        await self._dependencies.close()

    def committed(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of what the dispatcher has committed, on the loop, in commit order."""
        for outcome in outcomes:
            self._results.keep(outcome)
            self._accounts.stand(outcome.user_id, outcome.standing)
            self._publisher.apply(outcome.changes)

    async def abandon_silent_maps(self, silent_seconds: float) -> int:
        """Give up maps whose client went silent before their end: a step for a ticker."""
        return await self._maps.abandon_silent(silent_seconds)

    async def flush_read(self) -> None:
        """Note which results were fetched: a step for a ticker."""
        await self._results.flush_read()

    # ------------------------------------------------------------------------------- submitting
    async def submit_call(
        self, user_id: int, spec: JobSpec, key: str, function: Function, arguments: Payload
    ) -> CallReceipt:
        """Return the receipt of a job that is committed.

        Raises:
            InvalidRequest: a value is out of range, or nothing here can ever hold it
                (``reason`` never_scheduled).
            NotFound: a dependency or the code version is unknown.
            QuotaExceeded: what the user's jobs may cost or occupy is reached, or is less than this
                one needs.
        """
        return await self._calls.submit(user_id, spec, key, function, arguments)

    async def create_map(
        self, user_id: int, spec: JobSpec, key: str, count: int | None, function: Function
    ) -> MapReceipt:
        """Return a new map without jobs, or the one made with ``key`` before. Raises as above."""
        return await self._maps.create(user_id, spec, key, count, function)

    async def put_part(
        self,
        user_id: int,
        map_id: int,
        part: int,
        first_index: int,
        count: int,
        arguments: bytes,
        files: Sequence[tuple[int, BlobRef]] = (),
    ) -> PartReceipt:
        """Return where the jobs of ``part`` are, committed; repeating a part gives the same answer.

        ``arguments`` is a pack of ``count`` records, empty for those in ``files`` (index in part).

        Raises:
            InvalidRequest: the pack does not fit; more than 1,000; outside the map.
            Conflict: the map is sealed or given up, or the part was sent with another content.
            QuotaExceeded: it is more than the user's quota of the disk. The map stays open: the part
                may be sent again once there is room, or the map be sealed short of it.
        """
        pack = Arguments(0, count, arguments, tuple(files))
        return await self._maps.put_part(user_id, map_id, part, first_index, pack)

    async def seal_map(
        self, user_id: int, map_id: int, count: int, parts: int, *, short: bool = False
    ) -> list[JidRange]:
        """Return the jids of the map, in order of its indices; repeatable.

        ``short``: no more comes, though it was made for more than ``count`` elements.

        Raises:
            Conflict: parts are missing, or the counts differ; the message says which.
        """
        return await self._maps.seal(user_id, map_id, count, parts, short=short)

    # ---------------------------------------------------------------------------------- reading
    async def counts(self, user_id: int) -> dict[str, int]:
        """Return how many jobs of the user are in each status."""
        counts = await self._database.read(lambda tx: finished_counts(tx, user_id))
        counts += self._live.unfinished(user_id)
        return {str(status): count for status, count in counts.items()}

    async def list_jobs(
        self,
        user_id: int,
        *,
        limit: int = 50,
        before: int | None = None,
        label: str | None = None,
        status: str | None = None,
        map_id: int | None = None,
    ) -> list[JobLine]:
        """Return at most ``limit`` (up to 1,000) jobs below jid ``before``, newest first."""
        return await self._information.list_jobs(user_id, limit, before, label, status, map_id)

    async def statuses(self, user_id: int, jids: Ranges) -> list[tuple[int, int, str]]:
        """Return runs (first jid, last jid, status) that cover ``jids``. NotFound for others."""
        elsewhere = self._waiting.split(user_id, jids)
        unfinished = [self._live_runs(first, last) for first, last in jids]
        stored: list[tuple[int, int, str]] = []
        if elsewhere:
            stored = await self._database.read(partial(_stored_runs, user_id, elsewhere))
        return _in_order(jids, unfinished, stored)

    def _live_runs(self, first: int, last: int) -> list[tuple[int, int, str]]:
        return [
            (a, b, str(status))
            for span in self._live.overlapping(first, last)
            for a, b, status in self._live.runs(span, *span.cut(first, last))
        ]

    async def wait(
        self,
        user_id: int,
        jids: Ranges,
        *,
        timeout_seconds: float,
        until: str = "all",
        counts_seen: dict[str, int] | None = None,
    ) -> WaitAnswer:
        """Return how far ``jids`` are, as soon as ``until`` holds or the time is over (max 60 s).

        ``until``: "all" = all finished; "error" = one failed or all finished; "change" = counts
        differ from ``counts_seen``. Cancelling the call is safe.
        """
        if until not in ("all", "error", "change"):
            raise InvalidRequest(f"until must be all, error or change, got {until[:40]!r}")
        return await self._waiting.wait(user_id, jids, timeout_seconds, until, counts_seen)

    async def results(
        self, user_id: int, jids: Ranges, *, limit_bytes: int, wait_seconds: float = 0.0
    ) -> ResultsAnswer:
        """Return the results of those of ``jids`` that are finished, in the order asked.

        With ``wait_seconds`` (max 60) it waits until any of ``jids`` is finished.
        """
        return await self._results.results(user_id, jids, limit_bytes, wait_seconds)

    async def result(self, user_id: int, jid: int) -> ResultItem:
        """Return the result of one finished job. Conflict while it is not finished."""
        return await self._results.result(user_id, jid)

    async def info(
        self, user_id: int, jids: Ranges, fields: Sequence[str] | None
    ) -> dict[int, dict[str, Any]]:
        """Return ``{jid: {field: value}}``; None = stdout, stderr, status, runtime.

        Groups (memory, cputime ...) come as flat dotted keys, ["all"] gives every field.

        Raises:
            InvalidRequest: unknown field; the message names near ones.
        """
        return await self._information.info(user_id, jids, fields)

    async def arguments(self, user_id: int, jid: int) -> Payload:
        """Return the pickled (args, kwargs) of a job."""
        return await self._database.read(partial(_arguments, user_id, jid))

    async def function(self, user_id: int, jid: int) -> Function:
        """Return the pickled function of a job."""
        return await self._database.read(partial(_function, user_id, jid))

    async def output_place(self, user_id: int, jid: int) -> OutputPlace | None:
        """Return where the output of a job's last attempt is; None if it never started."""
        return await self._information.output_place(user_id, jid)

    async def require(self, user_id: int, jids: Ranges) -> None:
        """Return if all of ``jids`` are the user's.

        Raises:
            NotFound: the first that is not.
        """
        await self._waiting.require(user_id, jids)

    def code_versions(self) -> set[tuple[int, str]]:
        """Return (user, version) of the local modules that unfinished jobs use."""
        return {
            (batch.user_id, batch.spec.code_version) for batch in self._live.batches.values()
        }

    def lease_is_live(self, lease: str, user_id: int, jid: int, attempt: int) -> bool:
        """Return whether ``lease`` runs that attempt of ``jid`` now: the check behind job keys."""
        span = self._live.find(jid)
        if span is None or span.batch.user_id != user_id:
            return False
        if self._live.status(jid) in FINISHED_STATUSES:
            return False
        held = self._dispatch.lease_of(jid)
        return held is not None and held.lease == lease and held.attempt == attempt

    def running_spec(self, jid: int) -> JobSpec:
        """Return the spec of a job that runs now.

        Raises:
            NotAllowed: it has ended meanwhile.
        """
        span = self._live.find(jid)
        if span is None:
            raise NotAllowed(f"job {jid} has ended, so that it submits nothing more")
        return span.batch.spec

    # ------------------------------------------------------------------------- ending, removing
    async def kill(self, user_id: int, jids: Ranges | None) -> int:
        """Return how many jobs were ended; None = everything unfinished of the user.

        Returns when each is final, or its kill was sent and not answered for 2 seconds.
        """
        return await self._killing.kill(user_id, jids)

    async def delete(self, user_id: int, jids: Ranges, key: str = "") -> int:
        """Return how many jobs were removed with all that belongs to them.

        A request that is repeated with its ``key`` removes what is left of them and gives the same
        answer; without one, jobs that are gone are unknown.

        Raises:
            Conflict: one is not finished.
        """
        removed = await self._removal.delete(user_id, jids, key)
        self._results.forget(jids)
        return removed


def _stored_runs(user_id: int, jids: Ranges, tx: Transaction) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    for first, last in jids:
        runs = list(queries.status_runs(tx, user_id, first, last))
        if sum(b - a + 1 for a, b, _ in runs) != last - first + 1:
            raise unknown(first, last)
        found += runs
    return found


def _in_order(
    jids: Ranges,
    unfinished: list[list[tuple[int, int, str]]],
    stored: list[tuple[int, int, str]],
) -> list[tuple[int, int, str]]:
    """Return the runs in the order of ``jids``, neighbours of one status joined.

    ``unfinished`` has those in the image for each of ``jids``; ``stored`` the others, in order.
    """
    ordered: list[tuple[int, int, str]] = []
    rest = iter(stored)
    for (first, last), runs in zip(jids, unfinished, strict=True):
        missing = last - first + 1 - sum(b - a + 1 for a, b, _ in runs)
        while missing > 0:
            run = next(rest)
            runs.append(run)
            missing -= run[1] - run[0] + 1
        ordered += sorted(runs)
    joined: list[tuple[int, int, str]] = []
    for first, last, status in ordered:
        if joined and joined[-1][2] == status and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last, status)
        else:
            joined.append((first, last, status))
    return joined


def _arguments(user_id: int, jid: int, tx: Transaction) -> Payload:
    if not tx.one(_OWNED, jid=jid, user_id=user_id):
        raise unknown(jid, jid)
    found = read_part(tx, jid).cut(jid, 1)
    if found.files:
        return found.files[0][1]
    return Pack(found.pack)[0]


def _function(user_id: int, jid: int, tx: Transaction) -> Function:
    digest = tx.value(_FUNCTION_OF, jid=jid, user_id=user_id)
    if digest is None:
        raise unknown(jid, jid)
    return read_function(tx, digest)
