"""Reads of the store: statuses, listings, results. Each runs on one snapshot, on a reader's thread."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from picloud_jupyter.protocol.errors import NotFound
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import MAX_RESULT_COUNT, EndReason, Status
from picloud_services.base import codec
from picloud_services.base.sql import Row, Statement, Transaction
from picloud_services.jobs.links import blob_of
from picloud_services.jobs.sums import damaged, sum_of
from picloud_services.jobs.words import ResultItem

_COUNT = Statement(
    "SELECT COUNT(*) FROM jobs WHERE jid BETWEEN :first AND :last AND user_id = :user_id"
)
_COUNTS = Statement(
    """SELECT status, COUNT(*) FROM jobs
    WHERE jid BETWEEN :first AND :last AND user_id = :user_id GROUP BY status"""
)
_STATUSES = Statement(
    """SELECT jid, status FROM jobs
    WHERE jid BETWEEN :first AND :last AND user_id = :user_id ORDER BY jid"""
)
_FAILED = Statement(
    """SELECT jid, status, reason FROM jobs WHERE jid BETWEEN :first AND :last
    AND user_id = :user_id AND status IN ('error', 'killed', 'stalled') ORDER BY jid LIMIT :limit"""
)
_FINISHED = Statement(
    """SELECT jid, status, reason, message, result FROM jobs WHERE jid BETWEEN :first AND :last
    AND user_id = :user_id AND status NOT IN ('waiting', 'queued') ORDER BY jid LIMIT :limit"""
)
_RESULT = Statement(
    """SELECT first_jid, items, data, lease, node, first_position, data_sum
    FROM results WHERE result = :result"""
)
_PARTS_OF_USER = Statement(
    """SELECT first_jid, count FROM parts WHERE user_id = :user_id AND first_jid < :before
    ORDER BY first_jid DESC LIMIT :limit"""
)
_PARTS_OF_MAP = Statement(
    """SELECT p.first_jid, p.count FROM parts p JOIN batches b ON b.batch = p.batch
    WHERE b.batch = :batch AND b.user_id = :user_id AND p.first_jid < :before
    ORDER BY p.first_jid DESC LIMIT :limit"""
)
_PARTS_BY_LABEL = Statement(
    """SELECT p.first_jid, p.count FROM batches b JOIN parts p ON p.batch = b.batch
    WHERE b.user_id = :user_id AND b.label = :label AND p.first_jid < :before
    ORDER BY p.first_jid DESC LIMIT :limit"""
)
_LINES = Statement(
    """SELECT j.jid, j.status, j.reason, b.label, b.created_at, j.finished_at, b.batch, b.is_map,
      j.result, b.spec
    FROM jobs j JOIN batches b ON b.batch = j.batch
    WHERE j.jid BETWEEN :first AND :last AND j.user_id = :user_id
    ORDER BY j.jid DESC LIMIT :limit"""
)
_FAILED_JIDS = Statement(
    """SELECT jid FROM jobs WHERE user_id = :user_id AND status = :status AND jid < :before
    AND status IN ('error', 'killed', 'stalled') ORDER BY jid DESC LIMIT :limit"""
)


def unknown(first: int, last: int) -> NotFound:
    """Return the error for jobs that do not exist or are somebody else's."""
    if first == last:
        return NotFound("There is no such job.", jid=first)
    return NotFound(f"Not every one of the jobs {first}-{last} exists.")


def count_owned(tx: Transaction, user_id: int, jids: Sequence[JidRange]) -> JidRange | None:
    """Return the first of ``jids`` of which not every job is the user's; None if all are."""
    for first, last in jids:
        if tx.value(_COUNT, first=first, last=last, user_id=user_id) != last - first + 1:
            return first, last
    return None


def counts(tx: Transaction, user_id: int, jids: Sequence[JidRange]) -> dict[str, int]:
    """Return how many of ``jids`` are in each stored status."""
    found: dict[str, int] = {}
    for first, last in jids:
        for status, count in tx.all(_COUNTS, first=first, last=last, user_id=user_id):
            found[status] = found.get(status, 0) + count
    return found


def status_runs(
    tx: Transaction, user_id: int, first: int, last: int
) -> Iterator[tuple[int, int, str]]:
    """Yield (first jid, last jid, status) of stored jobs in a range; gaps are unknown jobs."""
    run_first = run_last = 0
    current = ""
    for jid, status in tx.all(_STATUSES, first=first, last=last, user_id=user_id):
        if current and status == current and jid == run_last + 1:
            run_last = jid
            continue
        if current:
            yield run_first, run_last, current
        run_first = run_last = jid
        current = status
    if current:
        yield run_first, run_last, current


def failed(
    tx: Transaction, user_id: int, jids: Sequence[JidRange], limit: int
) -> list[tuple[int, str, str]]:
    """Return (jid, status, reason) of the first ``limit`` failed ones of ``jids``."""
    found: list[tuple[int, str, str]] = []
    for first, last in jids:
        rows = tx.all(
            _FAILED, first=first, last=last, user_id=user_id, limit=limit - len(found)
        )
        found += [(jid, status, reason) for jid, status, reason in rows]
        if len(found) >= limit:
            break
    return found


# --------------------------------------------------------------------------------------- results
@dataclass(slots=True)
class ResultRow:
    """A record of what came back, opened."""

    first_jid: int
    items: list[list[Any]]  # reason, started_at, runtime, cpu_user, cpu_system, size, extra
    data: bytes
    lease: int | None
    node: str
    first_position: int
    ends: list[int]
    is_damaged: bool

    def item(self, jid: int) -> list[Any]:
        """Return the item of ``jid``."""
        return self.items[jid - self.first_jid]

    def body(self, jid: int) -> bytes:
        """Return the inline bytes of ``jid``.

        Raises:
            Corrupt: they are not what was written.
        """
        if self.is_damaged:
            raise damaged("Its result", jid)
        at = jid - self.first_jid
        return self.data[self.ends[at] : self.ends[at + 1]]


def read_result_row(tx: Transaction, result: int) -> ResultRow | None:
    """Return a result record; None if retention has removed it."""
    row = tx.one(_RESULT, result=result)
    if row is None:
        return None
    items = codec.decode(row[1])
    ends = list(accumulate((item[5] for item in items), initial=0))
    data = bytes(row[2] or b"")
    is_damaged = row[6] not in (None, sum_of(data, row[1].encode()))
    return ResultRow(row[0], items, data, row[3], row[4], row[5], ends, is_damaged)


class ResultReader:
    """Reads results in order; keeps the last opened records, since neighbours share them."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._rows: dict[int, ResultRow | None] = {}
        self.touched: set[int] = set()

    def row(self, result: int) -> ResultRow | None:
        """Return an opened record."""
        if result not in self._rows:
            if len(self._rows) >= 8:
                del self._rows[next(iter(self._rows))]
            self._rows[result] = read_result_row(self._tx, result)
            self.touched.add(result)
        return self._rows[result]

    def item(self, row: Row) -> ResultItem:
        """Return the end of one job from its row (jid, status, reason, message, result)."""
        jid, status, reason, message, result = row
        reason = reason or str(EndReason.DONE)
        message = message or ""
        if result is None:
            return ResultItem(jid, status, reason, message)
        record = self.row(result)
        if record is None:
            gone = "Its result was removed: it was older than is kept (see picloud status)."
            return ResultItem(jid, status, reason, f"{message} {gone}".strip())
        extra = record.item(jid)[6] or {}
        files = blob_of(extra.get("files"))
        ref = blob_of(extra)
        if ref is not None:
            return ResultItem(
                jid, status, reason, message, ref.size_bytes, ref.digest, blob=ref, files=files
            )
        body = record.body(jid)
        has_body = bool(body) or status == Status.DONE
        kept = body if has_body else None
        return ResultItem(jid, status, reason, message, len(body), body=kept, files=files)


def read_results(
    tx: Transaction, user_id: int, jids: Sequence[JidRange], limit_bytes: int
) -> tuple[list[ResultItem], bool, set[int]]:
    """Return the finished ones of ``jids`` in that order, whether more are left, and what was read.

    Raises:
        NotFound: one of those looked at is not the user's.
    """
    reader = ResultReader(tx)
    items: list[ResultItem] = []
    size = 0
    for first, last in _pieces(jids):
        if tx.value(_COUNT, first=first, last=last, user_id=user_id) != last - first + 1:
            raise unknown(first, last)
        for row in tx.all(
            _FINISHED,
            first=first,
            last=last,
            user_id=user_id,
            limit=MAX_RESULT_COUNT + 1 - len(items),
        ):
            if len(items) == MAX_RESULT_COUNT:
                return items, True, reader.touched
            item = reader.item(row)
            inline = len(item.body) if item.body else 0
            if items and size + inline > limit_bytes:
                return items, True, reader.touched
            size += inline
            items.append(item)
    return items, False, reader.touched


def _pieces(jids: Sequence[JidRange]) -> Iterator[JidRange]:
    """Yield ``jids`` in pieces: most of a long range is not looked at by one request."""
    for first, last in jids:
        for start in range(first, last + 1, MAX_RESULT_COUNT):
            yield start, min(start + MAX_RESULT_COUNT - 1, last)


# -------------------------------------------------------------------------------------- listings
def part_ranges(
    tx: Transaction,
    user_id: int,
    before: int,
    limit: int,
    *,
    label: str | None = None,
    map_id: int | None = None,
) -> list[JidRange]:
    """Return at most ``limit`` ranges of jids below ``before``, newest first."""
    if map_id is not None:
        rows = tx.all(_PARTS_OF_MAP, batch=map_id, user_id=user_id, before=before, limit=limit)
    elif label is not None:
        rows = tx.all(_PARTS_BY_LABEL, user_id=user_id, label=label, before=before, limit=limit)
    else:
        rows = tx.all(_PARTS_OF_USER, user_id=user_id, before=before, limit=limit)
    return [(first, min(first + count, before) - 1) for first, count in rows]


def lines(tx: Transaction, user_id: int, first: int, last: int, limit: int) -> list[Row]:
    """Return rows of a listing, newest first."""
    return tx.all(_LINES, first=first, last=last, user_id=user_id, limit=limit)


def failed_jids(
    tx: Transaction, user_id: int, status: str, before: int, limit: int
) -> list[int]:
    """Return the newest jobs in a failed status."""
    rows = tx.all(_FAILED_JIDS, user_id=user_id, status=status, before=before, limit=limit)
    return [row[0] for row in rows]
