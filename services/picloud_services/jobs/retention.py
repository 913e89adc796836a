"""Removes what is old: results and output, then rows, keys, and blobs that no row names.

Ages are seconds that the service has seen pass while it ran, so a jump of the wall clock
removes nothing. Every step works in slices and may be repeated.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from picloud_jupyter.protocol.ids import to_ranges
from picloud_services.accounts.service import Accounts
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.sql import Statement, Transaction
from picloud_services.blobs.store import GRACE_SECONDS
from picloud_services.jobs.ending import slices
from picloud_services.jobs.ports import OutputReader
from picloud_services.jobs.removal import (
    Removed,
    Remover,
    delete_jobs,
    remove_if_empty,
    unlink_item_blobs,
)
from picloud_services.jobs.store import lease_number, lease_text

_log = logging.getLogger(__name__)

DAY_SECONDS = 86_400.0
RESULTS_PER_SLICE = 100

_SEEN = Statement("UPDATE sequences SET seen_seconds = seen_seconds + :seconds")
_NOW_SEEN = Statement("SELECT seen_seconds FROM sequences")
_TOTAL = Statement("SELECT COALESCE(SUM(bytes), 0) FROM results")
_OLDEST = Statement(
    """SELECT result, user_id, node, lease, files, items, bytes FROM results
    WHERE seen_seconds < :before AND (unread = 0 OR seen_seconds < :unread_before)
      AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.lease = results.lease)
    ORDER BY seen_seconds LIMIT :limit"""
)
_DELETE_RESULT = Statement("DELETE FROM results WHERE result = :result")
_LEASE_IN_USE = Statement("SELECT 1 FROM results WHERE lease = :lease LIMIT 1")
_LEASE_NAMED = Statement(
    """SELECT 1 WHERE EXISTS (SELECT 1 FROM results WHERE lease = :lease)
    OR EXISTS (SELECT 1 FROM leases WHERE lease = :lease)"""
)
_FORGET_KEYS = Statement(
    """UPDATE batches SET request_key = NULL
    WHERE request_key IS NOT NULL AND finished_seen_seconds < :before"""
)
_FORGET_DELETIONS = Statement("DELETE FROM deletions WHERE seen_seconds < :before")
_OLD_BATCHES = Statement(
    """SELECT batch, user_id FROM batches WHERE finished_seen_seconds < :before
    ORDER BY finished_seen_seconds LIMIT 20"""
)
_JIDS_OF = Statement("SELECT first_jid, count FROM parts WHERE batch = :batch")
_UNLINKED = Statement(
    "SELECT blob FROM blobs WHERE links = 0 AND unlinked_at < :before LIMIT 500"
)
_DROP_BLOB = Statement("DELETE FROM blobs WHERE blob = :blob AND links = 0")
_NAMED = Statement("SELECT 1 FROM blobs WHERE blob = :blob")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things are kept; see the settings of the same names."""

    retention_seconds: float = 30 * DAY_SECONDS
    retention_bytes: int = 20_000_000_000
    unread_seconds: float = DAY_SECONDS
    row_seconds: float = 365 * DAY_SECONDS
    key_seconds: float = DAY_SECONDS


class Retention:
    """Steps for tickers: `note_time` every minute, `prune` every few minutes."""

    def __init__(
        self,
        database: Database,
        outputs: OutputReader,
        accounts: Accounts,
        clock: Clock,
        limits: Limits | None = None,
    ) -> None:
        self._database = database
        self._outputs = outputs
        self._remover = Remover(database, outputs, accounts)
        self._clock = clock
        self._limits = limits or Limits()
        self._noted = clock.steady_seconds()

    async def note_time(self) -> None:
        """Add the time since the last call to the age of everything."""
        now = self._clock.steady_seconds()
        seconds, self._noted = now - self._noted, now  # at once: `prune` may come meanwhile
        try:
            await self._database.write(lambda tx: tx.run(_SEEN, seconds=seconds))
        except BaseException:
            self._noted -= seconds
            raise

    async def prune(self) -> None:
        """Remove what is over its age or size."""
        await self.note_time()
        await self._prune_results()
        await self._forget_keys()
        await self._delete_old_rows()
        await self._forget_blobs()

    async def _prune_results(self) -> None:
        limits = self._limits
        seen, total = await self._database.read(
            lambda tx: (tx.value(_NOW_SEEN), tx.value(_TOTAL))
        )
        while True:
            over = total - limits.retention_bytes
            before = seen if over > 0 else seen - limits.retention_seconds
            removed = await self._remover.run(
                partial(
                    _remove_results,
                    before=before,
                    unread_before=seen - limits.unread_seconds,
                    at_most_bytes=over if over > 0 else None,
                    at=self._clock.now_at(),
                )
            )
            total -= removed.freed.total()
            if not removed.count:
                return

    async def _forget_keys(self) -> None:
        await self._database.write(partial(_forget_keys, self._limits.key_seconds))

    async def _delete_old_rows(self) -> None:
        seen = await self._database.read(lambda tx: tx.value(_NOW_SEEN))
        before = seen - self._limits.row_seconds
        while rows := await self._database.read(lambda tx: tx.all(_OLD_BATCHES, before=before)):
            for batch, user_id in rows:
                await self._delete_batch(batch, user_id)

    async def _delete_batch(self, batch: int, user_id: int) -> None:
        parts = await self._database.read(lambda tx: tx.all(_JIDS_OF, batch=batch))
        ranges = to_ranges(jid for first, count in parts for jid in range(first, first + count))
        for first, last in slices(ranges):
            await self._remover.run(
                partial(delete_jobs, user_id, first, last, self._clock.now_at())
            )
        # one that never had any
        await self._remover.run(partial(_remove_empty, batch, self._clock.now_at()))

    async def _forget_blobs(self) -> None:
        """Drop the rows of blobs that nothing names; the sweep, which sees what is used anew, has the files."""
        before = self._clock.now_at() - GRACE_SECONDS
        while await self._database.write(partial(_drop_unlinked, before)):
            pass

    async def sweep_output(self, *, now_at: float) -> None:
        """Remove output whose rows went just before the service was killed, or that never had any."""
        before_at = now_at - GRACE_SECONDS
        count = await self._outputs.sweep_output(self._printed, before_at=before_at)
        if count:
            _log.warning("%d files of output that belonged to no job are removed", count)

    async def _printed(self, leases: Sequence[str]) -> set[str]:
        """Return those of ``leases`` that a row names."""
        return await self._database.read(
            lambda tx: {
                lease for lease in leases if tx.one(_LEASE_NAMED, lease=lease_number(lease))
            }
        )

    async def referenced(self, blobs: Sequence[str]) -> set[str]:
        """Return those of ``blobs`` that a row names: for `BlobStore.sweep`."""
        return await self._database.read(
            lambda tx: {blob for blob in blobs if tx.one(_NAMED, blob=blob)}
        )


def _forget_keys(key_seconds: float, tx: Transaction) -> None:
    before = tx.value(_NOW_SEEN) - key_seconds
    tx.run(_FORGET_KEYS, before=before)
    tx.run(_FORGET_DELETIONS, before=before)


def _remove_results(
    tx: Transaction,
    *,
    before: float,
    unread_before: float,
    at_most_bytes: int | None,
    at: float,
) -> Removed:
    removed = Removed()
    for result, user_id, node, lease, files, items, count in tx.all(
        _OLDEST, before=before, unread_before=unread_before, limit=RESULTS_PER_SLICE
    ):
        if at_most_bytes is not None and removed.freed.total() >= at_most_bytes:
            break
        if files:
            unlink_item_blobs(tx, items, at)
        tx.run(_DELETE_RESULT, result=result)
        removed.count += 1
        removed.freed[user_id] += count
        if lease and not tx.one(_LEASE_IN_USE, lease=lease):
            removed.outputs.setdefault(node, []).append(lease_text(lease))
    removed.settle(tx)
    return removed


def _remove_empty(batch: int, at: float, tx: Transaction) -> Removed:
    removed = Removed()
    remove_if_empty(tx, batch, at, removed)
    removed.settle(tx)
    return removed


def _drop_unlinked(before: float, tx: Transaction) -> int:
    """Drop some; return how many."""
    blobs = tx.all(_UNLINKED, before=before)
    tx.many(_DROP_BLOB, ({"blob": blob} for (blob,) in blobs))
    return len(blobs)
