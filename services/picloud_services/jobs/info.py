"""Answers info and listings: what the store, the image and the output files know of jobs."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from picloud_jupyter.protocol.jobs import MAX_RESULT_COUNT, Status
from picloud_services.base import codec
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.sql import Row, Statement, Transaction
from picloud_services.jobs import queries
from picloud_services.jobs.cache import environment_of
from picloud_services.jobs.info_fields import (
    DEFAULT_FIELDS,
    OUTPUT_FIELDS,
    JobFacts,
    expand,
    values,
)
from picloud_services.jobs.links import SpecBook
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.ports import Dispatch, OutputReader
from picloud_services.jobs.reasoning import Whys
from picloud_services.jobs.store import lease_text
from picloud_services.jobs.waiting import Waiting
from picloud_services.jobs.words import JobLine, OutputPlace, Ranges

TAIL_CHARACTERS = 64 * 1024
MAX_CHARACTER_BYTES = 4
OUTPUTS_AT_ONCE = 16
PARTS_AT_ONCE = 64

_ROWS = Statement(
    """SELECT j.jid, j.status, j.reason, j.message, j.attempt, j.finished_at, j.result,
      b.created_at, b.label, b.batch, b.is_map, b.parent_jid, b.spec
    FROM jobs j JOIN batches b ON b.batch = j.batch
    WHERE j.jid BETWEEN :first AND :last AND j.user_id = :user_id ORDER BY j.jid"""
)
_USAGE = Statement("SELECT usage FROM results WHERE lease = :lease AND usage IS NOT NULL")
_PLACE = Statement(
    """SELECT r.node, r.lease, r.first_position + j.jid - r.first_jid, j.attempt
    FROM jobs j JOIN results r ON r.result = j.result WHERE j.jid = :jid AND r.lease IS NOT NULL"""
)


class Information:
    """Reads; changes nothing."""

    def __init__(
        self,
        database: Database,
        live: LiveJobs,
        book: SpecBook,
        dispatch: Dispatch,
        waiting: Waiting,
        whys: Whys,
        outputs: OutputReader,
        clock: Clock,
    ) -> None:
        self._database = database
        self._live = live
        self._book = book
        self._dispatch = dispatch
        self._waiting = waiting
        self._whys = whys
        self._outputs = outputs
        self._clock = clock

    # ------------------------------------------------------------------------------------- info
    async def info(
        self, user_id: int, jids: Ranges, fields: Sequence[str] | None
    ) -> dict[int, dict[str, Any]]:
        """Return the fields of jobs; see `JobService.info`."""
        names = expand(fields)
        await self._waiting.require(user_id, jids)
        facts = await self._database.read(partial(self._facts, user_id, jids))
        found = {fact.jid: values(self._complete(fact), names) for fact in facts}
        streams = [name for name in names if name in OUTPUT_FIELDS]
        if streams:
            gate = asyncio.Semaphore(OUTPUTS_AT_ONCE)
            await asyncio.gather(
                *(
                    self._add_output(gate, user_id, jid, stream, found[jid])
                    for jid in found
                    for stream in streams
                )
            )
        ordered = names if fields is not None else DEFAULT_FIELDS
        return {jid: {name: row[name] for name in ordered} for jid, row in found.items()}

    def _facts(self, user_id: int, jids: Ranges, tx: Transaction) -> list[JobFacts]:
        reader = queries.ResultReader(tx)
        return [
            self._fact(tx, reader, row)
            for first, last in jids
            for row in tx.all(_ROWS, first=first, last=last, user_id=user_id)
        ]

    def _fact(self, tx: Transaction, reader: queries.ResultReader, row: Row) -> JobFacts:
        jid, status, reason, message, attempt, finished_at, result, *rest = row
        created_at, label, batch, is_map, parent_jid, spec_number = rest
        record = reader.row(result) if result is not None else None
        usage = None
        if record is not None and record.lease:
            usage = tx.value(_USAGE, lease=record.lease)
        spec = self._book.read(tx, spec_number)
        return JobFacts(
            jid=jid,
            status=Status(status),
            reason=reason or ("done" if status == "done" else None),
            message=message,
            attempt=attempt,
            created_at=created_at,
            finished_at=finished_at,
            label=label,
            map_id=batch if is_map else None,
            parent_jid=parent_jid,
            spec=spec,
            environment_id=environment_of(spec.host_python),
            record=record,
            usage=codec.decode(usage) if usage else {},
            running=None,
            why="",
            now_at=0.0,
        )

    def _complete(self, fact: JobFacts) -> JobFacts:
        """Add what only the image knows."""
        fields = {name: getattr(fact, name) for name in JobFacts.__slots__}
        fields["now_at"] = self._clock.now_at()
        if fact.status in (Status.WAITING, Status.QUEUED):
            fields["status"] = self._live.status(fact.jid) or fact.status
            fields["running"] = self._live.running.get(fact.jid)
            fields["why"] = self._whys.why(fact.jid)
        return JobFacts(**fields)

    async def _add_output(
        self,
        gate: asyncio.Semaphore,
        user_id: int,
        jid: int,
        stream: str,
        found: dict[str, Any],
    ) -> None:
        async with gate:
            place = await self.output_place(user_id, jid, checked=True)
            found[stream] = "" if place is None else await self._tail(place, stream)

    async def _tail(self, place: OutputPlace, stream: str) -> str:
        """Return the last characters that were printed."""
        wanted = TAIL_CHARACTERS * MAX_CHARACTER_BYTES
        read = self._outputs.read_output
        where = (place.node, place.lease, place.position, stream)
        found = await read(*where, 0, wanted)
        if found.total_bytes > wanted:
            found = await read(*where, found.total_bytes - wanted, wanted)
        return bytes(found.data).decode("utf-8", "replace")[-TAIL_CHARACTERS:]

    async def output_place(
        self, user_id: int, jid: int, *, checked: bool = False
    ) -> OutputPlace | None:
        """Return where the output of a job is; see `JobService.output_place`."""
        if not checked:
            await self._waiting.require(user_id, [(jid, jid)])
        running = self._live.running.get(jid)
        if running is not None:
            lease = self._dispatch.lease_of(jid)
            attempt = lease.attempt if lease else 0
            return OutputPlace(
                running.node, running.lease, running.position, attempt, finished=False
            )
        if self._live.status(jid) in (Status.WAITING, Status.QUEUED):
            return None
        row = await self._database.read(lambda tx: tx.one(_PLACE, jid=jid))
        if row is None:
            return None
        return OutputPlace(row[0], lease_text(row[1]), row[2], row[3], finished=True)

    # --------------------------------------------------------------------------------- listings
    async def list_jobs(
        self,
        user_id: int,
        limit: int,
        before: int | None,
        label: str | None,
        status: str | None,
        map_id: int | None,
    ) -> list[JobLine]:
        """Return lines, newest first; see `JobService.list_jobs`."""
        limit = max(1, min(limit, 1000))
        start = before if before is not None else 2**53
        unfinished: list[int] | None = None
        if status in (Status.WAITING, Status.QUEUED, Status.PROCESSING):
            unfinished = self._unfinished(user_id, Status(status), start, limit, label, map_id)
        lines = await self._database.read(
            lambda tx: list(
                self._lines(tx, user_id, limit, start, label, status, map_id, unfinished)
            )
        )
        return [self._line(*line) for line in lines]

    def _unfinished(
        self,
        user_id: int,
        status: Status,
        before: int,
        limit: int,
        label: str | None,
        map_id: int | None,
    ) -> list[int]:
        """Return the newest jids in an unfinished status: the image knows them all."""
        found: list[int] = []
        spans = [
            span
            for batch in self._live.batches.values()
            if batch.user_id == user_id
            and (label is None or batch.label == label)
            and (map_id is None or batch.batch == map_id)
            for span in batch.spans
            if span.first_jid < before
        ]
        for span in sorted(spans, key=lambda span: -span.first_jid):
            start, stop = span.cut(0, before - 1)
            for first, last, current in reversed(list(self._live.runs(span, start, stop))):
                if current is status:
                    lowest = max(first, last - limit + 1)
                    found += range(last, lowest - 1, -1)
            if len(found) >= limit:
                break
        return found[:limit]

    def _lines(
        self,
        tx: Transaction,
        user_id: int,
        limit: int,
        before: int,
        label: str | None,
        status: str | None,
        map_id: int | None,
        unfinished: list[int] | None,
    ) -> "list[tuple[Row, float | None, str, int, str]]":
        rows: list[Row] = []
        if unfinished is not None:
            for jid in unfinished:
                rows += queries.lines(tx, user_id, jid, jid, 1)
        elif status in ("error", "killed", "stalled") and label is None and map_id is None:
            for jid in queries.failed_jids(tx, user_id, status, before, limit):
                rows += queries.lines(tx, user_id, jid, jid, 1)
        else:
            rows = _walk(tx, user_id, limit, before, label, status, map_id)
        reader = queries.ResultReader(tx)
        found = []
        for row in rows:
            record = reader.row(row[8]) if row[8] is not None else None
            spec = self._book.read(tx, row[9])
            started_at = record.item(row[0])[1] if record is not None else None
            found.append((row, started_at, spec.core_type, spec.cores, spec.function_name))
        return found

    def _line(
        self, row: Row, started_at: float | None, core_type: str, cores: int, function: str
    ) -> JobLine:
        jid, status, reason, label, created_at, finished_at, batch, is_map, _, _ = row
        running = None
        why = ""
        if status in ("waiting", "queued"):
            status = str(self._live.status(jid) or status)
            running = self._live.running.get(jid)
            why = self._whys.why(jid)
        return JobLine(
            jid=jid,
            status=status,
            reason=reason or ("done" if status == "done" else None),
            label=label,
            function=function,
            created_at=created_at,
            started_at=running.started_at if running else started_at or None,
            finished_at=finished_at,
            map=batch if is_map else None,
            core_type=core_type,
            cores=cores,
            why=why,
        )


def _walk(
    tx: Transaction,
    user_id: int,
    limit: int,
    before: int,
    label: str | None,
    status: str | None,
    map_id: int | None,
) -> list[Row]:
    """Walk the user's parts from the newest on until enough lines are found."""
    rows: list[Row] = []
    looked_at = 0
    while len(rows) < limit and looked_at < 100 * MAX_RESULT_COUNT:
        parts = queries.part_ranges(
            tx, user_id, before, PARTS_AT_ONCE, label=label, map_id=map_id
        )
        if not parts:
            break
        for first, last in parts:
            left = limit if status else limit - len(rows)
            found = queries.lines(tx, user_id, first, last, 1000 if status else left)
            looked_at += last - first + 1
            rows += [row for row in found if status in (None, row[1])]
            before = first
            if len(rows) >= limit:
                break
    return rows[:limit]
