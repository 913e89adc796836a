"""How new jobs enter the store: calls, maps, their parts, and the leases under which they run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.protocol.errors import Conflict, NotFound
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import EndReason, JobSpec, Status
from picloud_jupyter.protocol.users import Quota
from picloud_services.accounts import quotas
from picloud_services.accounts import store as accounts
from picloud_services.accounts.quotas import NO_LIMITS, Standing
from picloud_services.base import codec
from picloud_services.base.sql import Statement, Transaction
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs import links
from picloud_services.jobs.counting import Delta, add_to_batch, add_to_user
from picloud_services.jobs.lifecycle import after_dependencies
from picloud_services.jobs.reasons import Facts, message
from picloud_services.jobs.spans import OPEN, SEALED
from picloud_services.jobs.sums import sum_of
from picloud_services.jobs.words import Cached, Function

MAX_NUMBER = 2**63 - 1
JOB_OVERHEAD_BYTES = 64
MET, WAITING, FAILED = "met", "waiting", "failed"
DEPENDENCIES_OF = {Status.QUEUED: MET, Status.WAITING: WAITING, Status.STALLED: FAILED}
STATUS_BY_DEPENDENCIES = {text: status for status, text in DEPENDENCIES_OF.items()}

_STANDING_AND_KEY = Statement(
    """SELECT u.cost, u.disk_bytes, u.max_cost, u.max_disk_bytes, b.batch, b.first_jid, b.is_map
    FROM users u LEFT JOIN batches b ON b.user_id = u.user_id AND b.request_key = :key
    WHERE u.user_id = :user_id"""
)
_BY_KEY = Statement(
    "SELECT batch, first_jid, is_map FROM batches WHERE user_id = :user_id AND request_key = :key"
)
_NUMBERS = Statement(
    "UPDATE sequences SET jid = jid + :jids, batch = batch + :batches RETURNING jid, batch"
)
_INSERT_BATCH = Statement(
    """INSERT INTO batches (batch, user_id, kind, is_map, spec, function_digest, label, priority,
      request_key, parent_jid, depends_on, dependencies, size, first_jid, state, created_at,
      heard_at, open, waiting, queued)
    VALUES (:batch, :user_id, :kind, :is_map, :spec, :function, :label, :priority,
      :key, :parent, :depends_on, :dependencies, :size, :first_jid, :state, :at, :at,
      :waiting + :queued, :waiting, :queued)"""
)
_INSERT_PART = Statement(
    """INSERT INTO parts (first_jid, batch, user_id, part, first_index, count, arguments,
      arguments_sum, files, links, created_at)
    VALUES (:first_jid, :batch, :user_id, :part, :first_index, :count, :arguments, :sum, :files,
      :count, :at)"""
)
_INSERT_PART_FILE = Statement(
    """INSERT INTO part_files (jid, user_id, blob, size_bytes, digest)
    VALUES (:jid, :user_id, :blob, :size, :digest)"""
)
_INSERT_JOBS = Statement(
    """INSERT INTO jobs (jid, batch, user_id, status, attempt)
    WITH RECURSIVE n (i) AS (
      SELECT CAST(:first AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < :last)
    SELECT i, CAST(:batch AS BIGINT), CAST(:user_id AS BIGINT), CAST(:status AS TEXT), 1 FROM n"""
)
_INSERT_JOB = Statement(
    """INSERT INTO jobs (jid, batch, user_id, status, attempt)
    VALUES (:first, :batch, :user_id, :status, 1)"""
)
_STALL_NEW = Statement(
    """UPDATE jobs SET reason = :reason, message = :message, finished_at = :at
    WHERE jid BETWEEN :first AND :last"""
)
_INSERT_LEASE = Statement(
    """INSERT INTO leases (lease, batch, user_id, first_jid, count, attempt, node, slot, fresh,
      leased_at)
    VALUES (:lease, :batch, :user_id, :first_jid, :count, :attempt, :node, :slot, :fresh, :at)"""
)
_DEPENDENCIES = Statement(
    """SELECT COUNT(*),
      COALESCE(SUM(CASE WHEN status IN ('waiting', 'queued') THEN 1 ELSE 0 END), 0),
      COALESCE(SUM(CASE WHEN status IN ('error', 'killed', 'stalled') THEN 1 ELSE 0 END), 0),
      MIN(CASE WHEN status IN ('error', 'killed', 'stalled') THEN jid ELSE NULL END)
    FROM jobs WHERE jid BETWEEN :first AND :last AND user_id = :user_id"""
)
_INSERT_CACHE_KEY = Statement(
    "INSERT INTO cache_keys (jid, user_id, digest) VALUES (:jid, :user_id, :digest)"
)


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A call or a map as it is entered. ``spec`` is the shared part."""

    user_id: int
    spec: JobSpec
    label: str | None
    priority: int
    parent_jid: int | None
    depends_on: tuple[JidRange, ...]
    key: str
    function: Function
    at: float
    default_quota: Quota = NO_LIMITS


@dataclass(frozen=True, slots=True)
class NewLease:
    """A lease as it is entered."""

    lease: str
    node: str
    slot: str
    fresh: bool = False
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Entered:
    """What a new batch became. ``repeated``: it was there already, under its key."""

    batch: int
    first_jid: int | None
    status: Status = Status.QUEUED
    spec: int = 0
    repeated: bool = False
    cached_from: int | None = None
    text: str = ""


@dataclass(slots=True)
class PartRows:
    """A part as it is entered."""

    batch: int
    user_id: int
    part: int
    first_jid: int
    first_index: int
    count: int
    arguments: bytes
    at: float
    status: Status = Status.QUEUED
    text: str = ""
    files: list[tuple[int, BlobRef]] = field(default_factory=list)  # index in part
    default_quota: Quota = NO_LIMITS
    counted: bool = False  # the batch was entered with its counters set
    cache_digests: list[str] = field(default_factory=list)
    cached: "list[tuple[int, Cached]]" = field(
        default_factory=list
    )  # jids that take a kept result
    standing: Standing | None = None  # what it made of the user's disk use


def lease_number(lease: str) -> int:
    """Return what the store calls the lease with these hex digits; 0 (none) for other text."""
    try:
        return int(lease, 16) & MAX_NUMBER
    except ValueError:
        return 0


def lease_text(number: int) -> str:
    """Return the 16 hex digits that the wire and the output files show of a lease."""
    return f"{number:016x}"


def admit(
    tx: Transaction, user_id: int, key: str, default: Quota, *, is_map: bool
) -> Entered | None:
    """Return what an earlier request with the same key made, or None: the user may submit.

    Raises:
        Conflict: that made a map and this is a call, or the other way round.
        QuotaExceeded: what the user's jobs may cost, or occupy on the disk, is reached.
    """
    row = tx.one(_STANDING_AND_KEY, user_id=user_id, key=key)
    if row is None:  # before a user's first job
        known = tx.one(_BY_KEY, user_id=user_id, key=key)
        return _repeated(known, is_map=is_map) if known else None
    cost, disk_bytes, max_cost, max_disk_bytes, *earlier = row
    if earlier[0] is not None:
        return _repeated(earlier, is_map=is_map)
    quota = quotas.in_force(Quota(cost=max_cost, disk_bytes=max_disk_bytes), default)
    accounts.require(quotas.why_paused(quota, Standing(cost, disk_bytes)))
    return None


def _repeated(known: Sequence[Any], *, is_map: bool) -> Entered:
    batch, first_jid, was_map = known
    if bool(was_map) != is_map:
        raise Conflict(
            f"This _key named a {'map' if was_map else 'call'} before, and this is a "
            f"{'map' if is_map else 'call'}; nothing was submitted.",
            hint="give each call and each map a _key of its own",
        )
    return Entered(batch, first_jid, repeated=True)


def take_numbers(tx: Transaction, *, jids: int, batches: int) -> tuple[int, int]:
    """Return the first of ``jids`` new jids and the first of ``batches`` new batch numbers."""
    row = tx.one(_NUMBERS, jids=jids, batches=batches)
    assert row is not None
    return row[0] - jids, row[1] - batches


def check_dependencies(
    tx: Transaction,
    user_id: int,
    depends_on: tuple[JidRange, ...],
    *,
    ignore_errors: bool,
    deleted_ok: bool = False,
) -> tuple[Status, str]:
    """Return the status that a job begins with, and the words if that is stalled.

    Raises:
        NotFound: one of the jobs depended on is unknown (not with ``deleted_ok``).
    """
    unfinished = failed = 0
    first_failed: int | None = None
    for first, last in depends_on:
        row = tx.one(_DEPENDENCIES, first=first, last=last, user_id=user_id)
        assert row is not None
        if row[0] != last - first + 1 and not deleted_ok:
            raise NotFound(
                f"One of the jobs {first}-{last} named in _depends_on does not exist."
                if last > first
                else f"Job {first}, named in _depends_on, does not exist."
            )
        unfinished += row[1]
        failed += row[2]
        first_failed = first_failed if first_failed is not None else row[3]
    status = after_dependencies(failed, unfinished=unfinished, ignore_errors=ignore_errors)
    return status, dependency_text(first_failed) if status is Status.STALLED else ""


def dependency_text(jid: int | None) -> str:
    """Return the words for a job whose dependency ``jid`` failed."""
    return message(EndReason.DEPENDENCY_FAILED, Facts(detail=f"job {jid}"))


def insert_batch(
    tx: Transaction,
    new: NewBatch,
    book: links.SpecBook,
    *,
    size: int | None,
    is_map: bool,
    counted: bool = False,
) -> Entered:
    """Enter a batch without jobs; jids are taken for its ``size`` (None: with each part).

    ``counted``: the counters of its one job, waiting or queued, are set at once.
    """
    status, text = (
        check_dependencies(
            tx,
            new.user_id,
            new.depends_on,
            ignore_errors=new.spec.depends_on_errors == "ignore",
        )
        if new.depends_on
        else (Status.QUEUED, "")
    )
    jid, batch = take_numbers(tx, jids=size or 0, batches=1)
    first_jid = jid if size else None
    spec = book.number(tx, new.spec)
    links.link_function(tx, new.function)
    tx.run(
        _INSERT_BATCH,
        batch=batch,
        user_id=new.user_id,
        kind=str(new.spec.kind),
        is_map=int(is_map),
        spec=spec,
        function=new.function.digest,
        label=new.label,
        priority=new.priority,
        key=new.key or None,
        parent=new.parent_jid,
        depends_on=codec.encode(new.depends_on).decode() if new.depends_on else None,
        dependencies=DEPENDENCIES_OF[status],
        size=size,
        first_jid=first_jid,
        state=OPEN if is_map else SEALED,
        at=new.at,
        waiting=int(counted and status is Status.WAITING),
        queued=int(counted and status is Status.QUEUED),
    )
    return Entered(batch, first_jid, status, spec, text=text)


def arguments_bytes(pack_bytes: int, count: int, files_bytes: int) -> int:
    """Return what the arguments of ``count`` jobs count for on the disk."""
    return pack_bytes + files_bytes + JOB_OVERHEAD_BYTES * count


def insert_part(tx: Transaction, rows: PartRows) -> None:
    """Enter the jobs of a part with their arguments, and count them.

    Raises:
        QuotaExceeded: the arguments are more than the user's quota of the disk.
    """
    first, last = rows.first_jid, rows.first_jid + rows.count - 1
    size = arguments_bytes(
        len(rows.arguments), rows.count, sum(ref.size_bytes for _, ref in rows.files)
    )
    rows.standing = accounts.occupy(tx, rows.user_id, size, rows.at, rows.default_quota)
    tx.run(
        _INSERT_PART,
        first_jid=first,
        batch=rows.batch,
        user_id=rows.user_id,
        part=rows.part,
        first_index=rows.first_index,
        count=rows.count,
        arguments=rows.arguments,
        sum=sum_of(rows.arguments),
        files=len(rows.files),
        at=rows.at,
    )
    for index, ref in rows.files:
        links.link_blob(tx, ref)
        tx.run(
            _INSERT_PART_FILE,
            jid=first + index,
            user_id=rows.user_id,
            blob=ref.blob,
            size=ref.size_bytes,
            digest=ref.digest,
        )
    tx.run(
        _INSERT_JOBS if rows.count > 1 else _INSERT_JOB,
        first=first,
        last=last,
        batch=rows.batch,
        user_id=rows.user_id,
        status=str(rows.status),
    )
    if rows.status is Status.STALLED:
        reason = str(EndReason.DEPENDENCY_FAILED)
        tx.run(_STALL_NEW, first=first, last=last, reason=reason, message=rows.text, at=rows.at)
    if rows.cache_digests:
        tx.many(
            _INSERT_CACHE_KEY,
            [
                {"jid": first + i, "user_id": rows.user_id, "digest": digest}
                for i, digest in enumerate(rows.cache_digests)
            ],
        )
    delta: Delta = Counter({rows.status: rows.count})
    add_to_user(tx, rows.user_id, delta)
    if not rows.counted:
        add_to_batch(tx, rows.batch, delta)


def insert_lease(
    tx: Transaction,
    lease: NewLease,
    *,
    batch: int,
    user_id: int,
    first_jid: int,
    count: int,
    at: float,
) -> None:
    """Enter a lease over ``count`` jobs from ``first_jid`` on."""
    tx.run(
        _INSERT_LEASE,
        lease=lease_number(lease.lease),
        batch=batch,
        user_id=user_id,
        first_jid=first_jid,
        count=count,
        attempt=lease.attempt,
        node=lease.node,
        slot=lease.slot,
        fresh=int(lease.fresh),
        at=at,
    )
