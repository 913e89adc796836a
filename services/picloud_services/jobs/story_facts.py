"""Reads what the store knows of one job's life: its batch, its leases, what came back of each."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.protocol.ids import JidRange
from picloud_services.base import codec
from picloud_services.base.sql import Row, Statement, Transaction
from picloud_services.jobs.links import SpecBook
from picloud_services.jobs.queries import unknown
from picloud_services.jobs.store import lease_number, lease_text

LOST_ROWS = 200  # of a batch, looked through for attempts that brought nothing

_JOB = Statement(
    """SELECT j.status, j.reason, j.message, j.attempt, j.result, j.finished_at, j.kill_wished,
      j.retry_at, b.batch, b.user_id, b.is_map, b.size, b.label, b.parent_jid, b.depends_on, b.spec
    FROM jobs j JOIN batches b ON b.batch = j.batch
    WHERE j.jid = :jid AND j.user_id = :user_id"""
)
_PART = Statement(
    """SELECT created_at, first_index + :jid - first_jid FROM parts
    WHERE first_jid <= :jid ORDER BY first_jid DESC LIMIT 1"""
)
_COLUMNS = (
    "first_jid, attempt, node, lease, first_position, links, finished_at, usage, items, result"
)
_RESULT = Statement(f"SELECT {_COLUMNS} FROM results WHERE result = :result")  # noqa: S608  # our names
_OF_LEASE = Statement(f"SELECT {_COLUMNS} FROM results WHERE lease = :lease")  # noqa: S608
_UNLINKED = Statement(
    f"""SELECT {_COLUMNS} FROM results
    WHERE links = 0 AND batch = :batch AND first_jid <= :jid ORDER BY result DESC LIMIT {LOST_ROWS}"""  # noqa: S608
)
_LIVE_LEASE = Statement(
    """SELECT lease, attempt, node, slot, fresh FROM leases
    WHERE batch = :batch AND first_jid + next_position <= :jid AND first_jid + count > :jid"""
)
_DEPENDENCIES = Statement(
    """SELECT COUNT(*), MAX(finished_at) FROM jobs
    WHERE jid BETWEEN :first AND :last AND user_id = :user_id AND finished_at IS NOT NULL"""
)


@dataclass(slots=True)
class Attempt:
    """One start of the job, or what should have been one. Times are 0.0 where they are not known.

    ``fresh``: its runner had run nothing before; None: not known. ``reason`` is empty while it is out.
    """

    lease: str
    attempt: int
    node: str
    given_at: float
    started_at: float = 0.0
    ended_at: float = 0.0
    runtime_seconds: float = 0.0
    reason: str = ""
    detail: str = ""
    container: str = ""
    fresh: bool | None = None
    others: int = 0  # jobs of the same chunk
    position: int = 0  # in its lease


@dataclass(slots=True)
class StoryFacts:
    """All that the store knows."""

    jid: int
    user_id: int
    status: str
    reason: str | None
    message: str
    attempt: int
    created_at: float
    finished_at: float | None
    function: str
    label: str | None
    batch: int
    is_map: bool
    index: int
    size: int | None
    parent_jid: int | None
    kill_wished: bool
    retry_at: float | None
    depends_on: list[JidRange] = field(default_factory=list)
    met_at: float | None = None  # when the last of these finished
    cached_from: int | None = None
    record_gone: bool = False  # retention has removed what came back
    attempts: list[Attempt] = field(default_factory=list)
    out: Attempt | None = None  # the lease that it is given out under


def read_facts(
    tx: Transaction, book: SpecBook, user_id: int, jid: int, leases: Iterable[str]
) -> StoryFacts:
    """Return what is known of ``jid``; ``leases`` are those that the logs name beside.

    Raises:
        NotFound: there is no such job of the user.
    """
    row = tx.one(_JOB, jid=jid, user_id=user_id)
    if row is None:
        raise unknown(jid, jid)
    status, reason, message, attempt, result, finished_at, wished, retry_at, *rest = row
    batch, owner, is_map, size, label, parent_jid, depends_on, spec = rest
    part = tx.one(_PART, jid=jid)
    assert part is not None
    facts = StoryFacts(
        jid=jid,
        user_id=owner,
        status=status,
        reason=reason,
        message=message or "",
        attempt=attempt,
        created_at=part[0],
        finished_at=finished_at,
        function=book.read(tx, spec).function_name,
        label=label,
        batch=batch,
        is_map=bool(is_map),
        index=part[1],
        size=size,
        parent_jid=parent_jid,
        kill_wished=bool(wished),
        retry_at=retry_at,
    )
    if depends_on:
        facts.depends_on = [(first, last) for first, last in codec.decode(depends_on)]
        facts.met_at = _met_at(tx, user_id, facts.depends_on)
    _read_attempts(tx, facts, result, leases)
    return facts


def _met_at(tx: Transaction, user_id: int, ranges: list[JidRange]) -> float | None:
    """Return when the last of ``ranges`` finished; None if one has not, or is deleted."""
    latest = 0.0
    for first, last in ranges:
        row = tx.one(_DEPENDENCIES, first=first, last=last, user_id=user_id)
        assert row is not None
        if row[0] != last - first + 1:
            return None
        latest = max(latest, row[1])
    return latest


def _read_attempts(
    tx: Transaction, facts: StoryFacts, result: int | None, leases: Iterable[str]
) -> None:
    jid, batch = facts.jid, facts.batch
    rows: dict[int, Row] = {}
    if result is not None:
        found = tx.one(_RESULT, result=result)
        facts.record_gone = found is None
        if found is not None and found[3] is None:
            items = codec.decode(found[8])
            facts.cached_from = ((items[0][6] if items else None) or {}).get("cached_from")
        elif found is not None:
            rows[found[9]] = found
    rows |= {row[9]: row for row in tx.all(_UNLINKED, batch=batch, jid=jid)}
    for lease in leases:
        rows |= {row[9]: row for row in tx.all(_OF_LEASE, lease=lease_number(lease))}
    for row in rows.values():
        if (attempt := _attempt(tx, jid, row)) is not None:
            facts.attempts.append(attempt)
    facts.attempts.sort(key=lambda found: found.given_at)
    live = tx.one(_LIVE_LEASE, batch=batch, jid=jid)
    if live is not None:
        lease, number, node, _, fresh = live
        facts.out = Attempt(lease_text(lease), number, node, lease / 1e9)
        facts.out.fresh = True if fresh else None


def _attempt(tx: Transaction, jid: int, row: Row) -> Attempt | None:
    """Return the attempt of ``jid`` that a record tells of; None if it is of other jobs."""
    first_jid, number, node, lease, first_position, _, finished_at, own_usage, *rest = row
    at = jid - first_jid
    items: list[list[Any]] = codec.decode(rest[0])
    own: dict[str, Any] = codec.decode(own_usage) if own_usage else {}
    if lease is None or at < 0 or at >= (len(items) or own.get("count", 0)):
        return None
    found = Attempt(lease_text(lease), number, node, lease / 1e9, ended_at=finished_at)
    found.position = first_position + at
    if not items:
        found.reason, found.detail = str(own.get("lost", "")), str(own.get("detail", ""))
        return found
    reason, started_at, runtime, _, _, _, extra = items[at]
    found.reason, found.started_at, found.runtime_seconds = reason, started_at, runtime
    found.detail = str((extra or {}).get("note") or "")
    _add_place(tx, found, lease)
    return found


def _add_place(tx: Transaction, found: Attempt, lease: int) -> None:
    """Add where it ran: what came last of its lease has that."""
    for row in tx.all(_OF_LEASE, lease=lease):
        usage = codec.decode(row[7]) if row[7] else {}
        found.container = usage.get("container", found.container)
        if "elements" in usage:
            count = row[4] + len(codec.decode(row[8]))
            found.others = count - 1
            found.fresh = usage["elements"] <= count
