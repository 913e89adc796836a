"""Removes finished jobs with all that belongs to them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from picloud_jupyter.protocol.errors import Conflict
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import Status
from picloud_services.accounts.quotas import Standing
from picloud_services.accounts.service import Accounts
from picloud_services.accounts.store import release
from picloud_services.base import codec
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.events import Events
from picloud_services.base.sql import Statement, Transaction
from picloud_services.jobs import links
from picloud_services.jobs.counting import Delta, add_to_batch, add_to_user
from picloud_services.jobs.ending import slices
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.ports import OutputReader
from picloud_services.jobs.spans import OPEN, Span
from picloud_services.jobs.store import arguments_bytes, lease_text
from picloud_services.jobs.waiting import Waiting
from picloud_services.jobs.words import Ranges

_UNFINISHED = Statement(
    """SELECT jid FROM jobs WHERE jid BETWEEN :first AND :last AND user_id = :user_id
    AND status IN ('waiting', 'queued') LIMIT 1"""
)
_TO_DELETE = Statement(
    """SELECT batch, status, result, COUNT(*) FROM jobs
    WHERE jid BETWEEN :first AND :last AND user_id = :user_id GROUP BY batch, status, result"""
)
_DELETE_JOBS = Statement(
    "DELETE FROM jobs WHERE jid BETWEEN :first AND :last AND user_id = :user_id RETURNING jid"
)
_STILL_SENT = Statement("SELECT 1 FROM batches WHERE batch = :batch AND state = 'open'")
_DELETE_CACHE_KEYS = Statement(
    "DELETE FROM cache_keys WHERE jid BETWEEN :first AND :last AND user_id = :user_id"
)
_UNLINK_RESULT = Statement(
    """UPDATE results SET links = links - :count WHERE result = :result
    RETURNING links, node, lease, files, items, user_id, bytes"""
)
_LEASE_IN_USE = Statement("SELECT 1 FROM results WHERE lease = :lease LIMIT 1")
_LEASE_IS_LIVE = Statement("SELECT 1 FROM leases WHERE lease = :lease")
_DELETE_RESULT = Statement("DELETE FROM results WHERE result = :result")
_PARTS = Statement(
    """SELECT first_jid, count, links, files, LENGTH(arguments) FROM parts
    WHERE first_jid <= :last AND first_jid > :before AND user_id = :user_id"""
)
_FIRST_PART = Statement(
    "SELECT MAX(first_jid) FROM parts WHERE first_jid <= :first AND user_id = :user_id"
)
_UNLINK_PART = Statement("UPDATE parts SET links = links - :count WHERE first_jid = :first")
_DELETE_PART = Statement("DELETE FROM parts WHERE first_jid = :first")
_PART_BLOBS = Statement(
    "DELETE FROM part_files WHERE jid BETWEEN :first AND :last RETURNING blob, size_bytes"
)
_LEFT_IN_PART = Statement("SELECT COUNT(*) FROM jobs WHERE jid BETWEEN :first AND :last")
_EMPTY_BATCH = Statement(
    """DELETE FROM batches WHERE batch = :batch AND state <> 'open' AND
    waiting + queued + done + error + killed + stalled = 0 RETURNING function_digest, spec"""
)
_LEFT_RESULTS = Statement(
    """DELETE FROM results WHERE batch = :batch AND links = 0
    RETURNING node, lease, files, items, user_id, bytes"""
)
_DELETED = Statement(
    "SELECT deleted FROM deletions WHERE user_id = :user_id AND request_key = :key"
)
_NOTE_DELETED = Statement(
    """INSERT INTO deletions (user_id, request_key, deleted, seen_seconds)
    VALUES (:user_id, :key, :count, (SELECT seen_seconds FROM sequences))
    ON CONFLICT (user_id, request_key) DO UPDATE SET deleted = deletions.deleted + excluded.deleted
    RETURNING deleted"""
)


@dataclass(slots=True)
class Removed:
    """What a slice of a deletion removed; the outputs are files, removed after the commit.

    ``freed`` becomes ``standings`` in the same transaction, by `settle`.
    """

    count: int = 0
    jids: list[int] = field(default_factory=list)
    outputs: dict[str, list[str]] = field(default_factory=dict)  # node -> leases
    deleted: int = 0  # by all slices of the request, where it has a key
    freed: Counter[int] = field(default_factory=Counter)  # user -> bytes
    standings: dict[int, Standing] = field(default_factory=dict)

    def settle(self, tx: Transaction) -> None:
        """Count what is not stored any more."""
        self.standings = release(tx, self.freed)


class Remover:
    """Carries out what removes rows: their files go too, and accounts hear of it."""

    def __init__(self, database: Database, outputs: OutputReader, accounts: Accounts) -> None:
        self._database = database
        self._outputs = outputs
        self._accounts = accounts

    async def run(self, work: Callable[[Transaction], Removed]) -> Removed:
        """Return what ``work`` removed, when the output is removed too.

        If this is cancelled both still happen: nothing but this knows of the output by then.
        """
        return await asyncio.shield(self._run(work))

    async def _run(self, work: Callable[[Transaction], Removed]) -> Removed:
        # It makes room, so it may use the reserve of a full disk.
        removed = await self._database.write(work, self._committed, essential=True)
        for node, leases in removed.outputs.items():
            await self._outputs.delete_output(node, leases)
        return removed

    def _committed(self, removed: Removed) -> None:
        for user_id, standing in removed.standings.items():
            self._accounts.stand(user_id, standing)


class Removal:
    """Deletes finished jobs by request."""

    def __init__(
        self,
        database: Database,
        live: LiveJobs,
        waiting: Waiting,
        outputs: OutputReader,
        accounts: Accounts,
        events: Events,
        clock: Clock,
    ) -> None:
        self._database = database
        self._live = live
        self._waiting = waiting
        self._events = events
        self._remover = Remover(database, outputs, accounts)
        self._clock = clock

    async def delete(self, user_id: int, jids: Ranges, key: str) -> int:
        """Return how many finished jobs were removed; see `JobService.delete`."""
        known = await self._database.read(partial(_deleted, user_id, key))
        if known is None:
            await self._waiting.require(user_id, jids)
        else:  # those that are gone are nobody's; but as many at most
            self._waiting.split(user_id, jids)
        for first, last in jids:
            for span in self._live.overlapping(first, last):
                _refuse_live(user_id, span, *span.cut(first, last))
        deleted = known or 0
        for first, last in slices(list(jids)):
            work = partial(_delete_slice, user_id, (first, last), self._clock.now_at(), key)
            done = await self._remover.run(work)
            self._events.publish("jobs.deleted", done.jids)
            deleted = done.deleted if key else deleted + done.count
        return deleted


def _refuse_live(user_id: int, span: Span, start: int, stop: int) -> None:
    if span.batch.user_id != user_id:
        return
    if span.unfinished(start, stop):
        raise _unfinished(_first_unfinished(span, start, stop))
    if span.batch.state == OPEN:
        raise _still_sent(span.batch.batch)


def _first_unfinished(span: Span, start: int, stop: int) -> int:
    codes = span.codes
    return next(span.first_jid + at for at in range(start, stop) if codes[at] in b"wq")


def _unfinished(jid: int) -> Conflict:
    return Conflict(
        "It is not finished; only finished jobs can be deleted.",
        jid=jid,
        hint="kill it first",
    )


def _still_sent(batch: int) -> Conflict:
    """A part whose jobs are gone could be sent again, and would run again."""
    return Conflict(
        f"Map {batch} is still being sent; its jobs can be deleted when it is complete.",
        hint="wait until cloud.map has returned; a map whose program is gone is given up after 10 minutes",
    )


def _deleted(user_id: int, key: str, tx: Transaction) -> int | None:
    """Return how many jobs the request with ``key`` has removed; None if it is a new one."""
    found: int | None = tx.value(_DELETED, user_id=user_id, key=key) if key else None
    return found


def _delete_slice(
    user_id: int, jids: JidRange, at: float, key: str, tx: Transaction
) -> Removed:
    removed = delete_jobs(user_id, *jids, at, tx)
    if key:
        removed.deleted = tx.value(_NOTE_DELETED, user_id=user_id, key=key, count=removed.count)
    return removed


def delete_jobs(user_id: int, first: int, last: int, at: float, tx: Transaction) -> Removed:
    """Remove finished jobs of a range with their results, arguments and counters.

    Raises:
        Conflict: one is not finished, or its map is still being sent.
    """
    running = tx.value(_UNFINISHED, first=first, last=last, user_id=user_id)
    if running is not None:
        raise _unfinished(running)
    removed = Removed()
    deltas: dict[int, Delta] = {}
    for batch, status, result, count in tx.all(
        _TO_DELETE, first=first, last=last, user_id=user_id
    ):
        deltas.setdefault(batch, Counter())[Status(status)] -= count
        removed.count += count
        if result is not None:
            unlink_result(tx, result, count, at, removed)
    for batch in deltas:
        if tx.one(_STILL_SENT, batch=batch):
            raise _still_sent(batch)
    jobs = tx.all(_DELETE_JOBS, first=first, last=last, user_id=user_id)
    removed.jids = [jid for (jid,) in jobs]
    tx.run(_DELETE_CACHE_KEYS, first=first, last=last, user_id=user_id)
    _unlink_parts(tx, user_id, (first, last), at, removed)
    for batch, delta in deltas.items():
        add_to_user(tx, user_id, delta)
        add_to_batch(tx, batch, delta)
        remove_if_empty(tx, batch, at, removed)
    removed.settle(tx)
    return removed


def remove_if_empty(tx: Transaction, batch: int, at: float, removed: Removed) -> None:
    """Remove a closed batch without jobs, with what attempts that no job names left behind."""
    row = tx.one(_EMPTY_BATCH, batch=batch)
    if row is None:
        return
    links.unlink_function(tx, row[0], at)
    links.unlink_spec(tx, row[1])
    for node, lease, files, items, user_id, size in tx.all(_LEFT_RESULTS, batch=batch):
        removed.freed[user_id] += size
        _removed_result(tx, node, lease, files, items, at, removed)


def unlink_result(
    tx: Transaction, result: int, count: int, at: float, removed: Removed
) -> None:
    """Drop ``count`` links to a record; the last one removes it with its blobs and output.

    One of a chunk that still runs stays, without links, until its batch goes or it is too old: other
    jobs of the chunk are writing into the same files.
    """
    row = tx.one(_UNLINK_RESULT, result=result, count=count)
    if row is None or row[0] > 0:
        return
    _, node, lease, files, items, user_id, size = row
    if lease and tx.one(_LEASE_IS_LIVE, lease=lease):
        return
    tx.run(_DELETE_RESULT, result=result)
    removed.freed[user_id] += size
    _removed_result(tx, node, lease, files, items, at, removed)


def _removed_result(
    tx: Transaction,
    node: str,
    lease: int | None,
    files: int,
    items: str,
    at: float,
    removed: Removed,
) -> None:
    if files:
        unlink_item_blobs(tx, items, at)
    if lease and not tx.one(_LEASE_IN_USE, lease=lease):
        removed.outputs.setdefault(node, []).append(lease_text(lease))


def unlink_item_blobs(tx: Transaction, items: str, at: float) -> None:
    """Drop the references of a record's items to blobs."""
    for item in codec.decode(items):
        for ref in links.blobs_of(item[6]):
            links.unlink_blob(tx, ref.blob, at)


def _unlink_parts(
    tx: Transaction, user_id: int, jids: JidRange, at: float, removed: Removed
) -> None:
    first, last = jids
    before = tx.value(_FIRST_PART, first=first, user_id=user_id)
    rows: Sequence[tuple[int, int, int, int, int]] = tx.all(
        _PARTS, last=last, before=(before or 0) - 1, user_id=user_id
    )
    for part_first, count, linked, files, pack_bytes in rows:
        left = tx.value(_LEFT_IN_PART, first=part_first, last=part_first + count - 1)
        if left:
            tx.run(_UNLINK_PART, first=part_first, count=linked - left)
            continue
        files_bytes = 0
        if files:
            for blob, size in tx.all(
                _PART_BLOBS, first=part_first, last=part_first + count - 1
            ):
                links.unlink_blob(tx, blob, at)
                files_bytes += size
        removed.freed[user_id] += arguments_bytes(pack_bytes, count, files_bytes)
        tx.run(_DELETE_PART, first=part_first)
