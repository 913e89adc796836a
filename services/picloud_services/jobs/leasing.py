"""Gives queued jobs to an engine: a lease is committed before anything of it may start."""

from collections.abc import Sequence
from dataclasses import dataclass

from picloud_jupyter.protocol.errors import Corrupt
from picloud_jupyter.protocol.frames import Pack
from picloud_services.base.sql import Statement, Transaction
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs.links import read_function
from picloud_services.jobs.store import NewLease, insert_lease
from picloud_services.jobs.sums import damaged, sum_of
from picloud_services.jobs.words import Function

_STILL_QUEUED = Statement(
    "SELECT COUNT(*) FROM jobs WHERE jid BETWEEN :first AND :last AND status = 'queued'"
)
_PART = Statement(
    """SELECT first_jid, count, arguments, files, arguments_sum FROM parts
    WHERE first_jid <= :jid ORDER BY first_jid DESC LIMIT 1"""
)
_PART_FILES = Statement(
    """SELECT jid, blob, size_bytes, digest FROM part_files
    WHERE jid BETWEEN :first AND :last ORDER BY jid"""
)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of contiguous jobs: a pack, and the blobs of records that are too large."""

    first_jid: int
    count: int
    pack: bytes
    files: tuple[tuple[int, BlobRef], ...] = ()  # (jid, blob)

    def cut(self, first_jid: int, count: int) -> "Arguments":
        """Return those of ``count`` jobs from ``first_jid`` on."""
        if first_jid == self.first_jid and count == self.count:
            return self
        start = first_jid - self.first_jid
        return Arguments(
            first_jid,
            count,
            Pack(self.pack).cut(start, start + count),
            tuple(item for item in self.files if first_jid <= item[0] < first_jid + count),
        )


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A lease wanted over queued jobs. ``arguments`` and ``function`` are read if None."""

    lease: NewLease
    batch: int
    user_id: int
    first_jid: int
    count: int
    function_digest: str
    at: float
    arguments: Arguments | None = None
    function: Function | None = None


@dataclass(frozen=True, slots=True)
class Leased:
    """What a committed lease runs; None instead of it: some of the jobs are not queued any more."""

    request: LeaseRequest
    arguments: Arguments
    function: Function
    part: (
        Arguments | None
    )  # the whole part, where it was read: worth keeping for the next chunk
    damage: str = ""  # why nothing of it can run: the store is damaged


def lease_jobs(tx: Transaction, wanted: LeaseRequest) -> Leased | None:
    """Enter the lease and return what it runs; None if a job of it was killed meanwhile.

    Where the arguments must be read, the lease ends with their part: then it is shorter than wanted.
    """
    first, count = wanted.first_jid, wanted.count
    part, arguments, function = None, wanted.arguments, wanted.function
    damage = ""
    try:
        if arguments is None:
            part = arguments = read_part(tx, first)
            count = min(count, part.first_jid + part.count - first)
        function = function or read_function(tx, wanted.function_digest)
    except Corrupt as exc:  # the lease ends at once, by the rules of a start that fails
        damage, arguments, function = str(exc), None, Function(b"", wanted.function_digest)
        count = _count_in_part(tx, first, count)
    if tx.value(_STILL_QUEUED, first=first, last=first + count - 1) != count:
        return None
    insert_lease(
        tx,
        wanted.lease,
        batch=wanted.batch,
        user_id=wanted.user_id,
        first_jid=first,
        count=count,
        at=wanted.at,
    )
    taken = arguments.cut(first, count) if arguments else Arguments(first, count, b"")
    return Leased(wanted, taken, function, part if not damage else None, damage)


def _count_in_part(tx: Transaction, first: int, count: int) -> int:
    row = tx.one(_PART, jid=first)
    assert row is not None
    return int(min(count, row[0] + row[1] - first))


def read_part(tx: Transaction, jid: int) -> Arguments:
    """Return the arguments of all jobs in the part of ``jid``, which must exist.

    Raises:
        Corrupt: they are not what was written.
    """
    row = tx.one(_PART, jid=jid)
    assert row is not None
    first_jid, count, pack, files, written_sum = row
    if written_sum not in (None, sum_of(pack)):
        raise damaged("What it was called with", jid)
    refs: Sequence[tuple[int, BlobRef]] = ()
    if files:
        refs = [
            (owner, BlobRef(blob, size, digest))
            for owner, blob, size, digest in tx.all(
                _PART_FILES, first=first_jid, last=first_jid + count - 1
            )
        ]
    return Arguments(first_jid, count, bytes(pack), tuple(refs))
