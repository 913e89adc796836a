"""Builds the image and the queue from the store when the service starts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

from picloud_jupyter.protocol.jobs import JobSpec, Status
from picloud_services.base import codec
from picloud_services.base.sql import Row, Statement, Transaction
from picloud_services.jobs.lifecycle import longest_delay_seconds
from picloud_services.jobs.links import SpecBook
from picloud_services.jobs.live import LiveJobs, Ready
from picloud_services.jobs.spans import ABANDONED, CODE_OF, LiveBatch
from picloud_services.jobs.store import WAITING, lease_text

_BATCHES = Statement(
    """SELECT batch, user_id, spec, function_digest, label, priority, depends_on, size, first_jid,
      state, created_at, is_map, waiting, dependencies
    FROM batches WHERE open > 0 OR state = 'open' ORDER BY batch"""
)
_PARTS = Statement(
    "SELECT first_jid, first_index, count FROM parts WHERE batch = :batch ORDER BY first_jid"
)
_JOBS = Statement(
    """SELECT jid, status, attempt, fresh, retry_at, kill_wished FROM jobs
    WHERE jid BETWEEN :first AND :last ORDER BY jid"""
)
_LEASES = Statement(
    """SELECT lease, batch, user_id, first_jid, count, next_position, attempt, node, slot, fresh
    FROM leases"""
)


@dataclass(frozen=True, slots=True)
class KnownLease:
    """A lease that was live when the service stopped."""

    lease: str
    batch: int
    user_id: int
    first_jid: int
    count: int
    next_position: int
    attempt: int
    node: str
    slot: str
    fresh: bool

    def jids(self) -> range:
        """Return the jobs that are still out under it."""
        return range(self.first_jid + self.next_position, self.first_jid + self.count)


@dataclass(slots=True)
class LoadedPart:
    """Jobs of one part: status codes, what is queued, and what of it is to end by request."""

    first_jid: int
    first_index: int
    codes: bytes
    ready: list[Ready]
    wished: list[int]


@dataclass(slots=True)
class LoadedBatch:
    """An unfinished batch as the store has it."""

    batch: LiveBatch
    spec: int
    first_jid: int | None
    waits: bool
    parts: list[LoadedPart] = field(default_factory=list)


@dataclass(slots=True)
class Loaded:
    """All that is unfinished."""

    batches: list[LoadedBatch]
    leases: list[KnownLease]


def load(tx: Transaction, book: SpecBook, now_at: float) -> Loaded:
    """Read everything unfinished."""
    leases = [_lease(row) for row in tx.all(_LEASES)]
    leased: dict[int, set[int]] = {}
    for lease in leases:
        leased.setdefault(lease.batch, set()).update(lease.jids())
    specs: dict[int, JobSpec] = {}
    batches = []
    for row in tx.all(_BATCHES):
        spec = specs.get(row[2])
        if spec is None:
            spec = specs[row[2]] = book.read(tx, row[2])
        found = _batch(row, spec)
        away = leased.get(row[0], set())
        delay_left = partial(_delay_left, now_at, longest_delay_seconds(spec.retries))
        for first_jid, first_index, count in tx.all(_PARTS, batch=row[0]):
            jobs = tx.all(_JOBS, first=first_jid, last=first_jid + count - 1)
            found.parts.append(
                _part(row[0], first_jid, first_index, count, jobs, away, delay_left)
            )
        batches.append(found)
    return Loaded(batches, leases)


def _lease(row: Row) -> KnownLease:
    lease, batch, user_id, first_jid, count, next_position, attempt, node, slot, fresh = row
    return KnownLease(
        lease_text(lease),
        batch,
        user_id,
        first_jid,
        count,
        next_position,
        attempt=attempt,
        node=node,
        slot=slot,
        fresh=bool(fresh),
    )


def _batch(row: Row, spec: JobSpec) -> LoadedBatch:
    batch, user_id, number, function, label, priority, depends_on, size, first_jid, *rest = row
    state, created_at, is_map, waiting, dependencies = rest
    live = LiveBatch(
        batch=batch,
        user_id=user_id,
        spec=spec,
        function_digest=function,
        priority=priority,
        label=label,
        state=state,
        size=size,
        created_at=created_at,
        depends_on=tuple(tuple(pair) for pair in codec.decode(depends_on or "[]")),
        is_map=bool(is_map),
    )
    # An open map may have none that wait yet; one that is let go may have some that still do.
    waits = waiting > 0 or dependencies == WAITING
    return LoadedBatch(live, number, first_jid, waits)


def _part(
    batch: int,
    first_jid: int,
    first_index: int,
    count: int,
    jobs: list[Row],
    away: set[int],
    delay_left: Callable[[float | None], float],
) -> LoadedPart:
    codes = bytearray(count)
    for jid, status, *_ in jobs:
        codes[jid - first_jid] = CODE_OF[Status(status)]
    queued = [row for row in jobs if row[1] == "queued" and row[0] not in away]
    ready = []
    for (_, attempt, fresh, retry_at), run in groupby(
        enumerate(queued), key=lambda pair: (pair[1][0] - pair[0], *pair[1][2:5])
    ):
        members = [row for _, row in run]
        ready.append(
            Ready(
                batch,
                members[0][0],
                len(members),
                attempt=attempt,
                fresh=bool(fresh),
                alone=bool(fresh),
                delay_seconds=delay_left(retry_at),
            )
        )
    wished = [row[0] for row in jobs if row[5] and row[1] == "queued"]
    return LoadedPart(first_jid, first_index, bytes(codes), ready, wished)


def _delay_left(now_at: float, longest_seconds: float, retry_at: float | None) -> float:
    """Return how long a job still waits: a clock that jumped must not make that years."""
    return min(max((retry_at or 0) - now_at, 0.0), longest_seconds)


def restore(loaded: Loaded, live: LiveJobs, book: SpecBook) -> list[Ready]:
    """Enter what was read into the image; return what may run."""
    ready: list[Ready] = []
    for found in loaded.batches:
        batch = found.batch
        batch.spec = book.remember(found.spec, batch.spec)
        live.add_batch(batch)
        state, batch.state = batch.state, "open"  # not forgotten while parts are entered
        if batch.size and found.first_jid is not None:
            live.reserve(batch, found.first_jid, batch.size)
        for part in found.parts:
            live.add_jobs(batch, part.first_jid, part.first_index, part.codes)
            if state != ABANDONED:
                ready += part.ready
            for jid in part.wished:
                live.wish_end(jid)
        batch.state = state
        live.forget_if_finished(batch)
    return ready
