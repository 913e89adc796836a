"""Payloads that many rows share: functions, specs and blobs, with their reference counts."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from picloud_jupyter.protocol.errors import Corrupt
from picloud_jupyter.protocol.jobs import DEFAULT_PRIORITY, JobSpec
from picloud_services.base import codec
from picloud_services.base.sql import Statement, Transaction
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs.sums import damaged
from picloud_services.jobs.words import Function, Payload

KEPT_SPECS = 1_000
NUMBER_DIGITS = 15  # hex digits of a digest: 60 bits fit a BIGINT

_FUNCTION = Statement(
    """INSERT INTO functions (digest, size_bytes, data, blob, links)
    VALUES (:digest, :size, :data, :blob, 1)
    ON CONFLICT (digest) DO UPDATE SET links = functions.links + 1 RETURNING links"""
)
_READ_FUNCTION = Statement(
    "SELECT data, blob, size_bytes FROM functions WHERE digest = :digest"
)
_UNLINK_FUNCTION = Statement(
    "UPDATE functions SET links = links - 1 WHERE digest = :digest RETURNING links, blob"
)
_REMOVE_FUNCTION = Statement("DELETE FROM functions WHERE digest = :digest")
_LINK_BLOB = Statement(
    """INSERT INTO blobs (blob, size_bytes, digest, links) VALUES (:blob, :size, :digest, :links)
    ON CONFLICT (blob) DO UPDATE SET links = blobs.links + :links, unlinked_at = NULL"""
)
_UNLINK_BLOB = Statement(
    """UPDATE blobs SET links = links - 1,
    unlinked_at = CASE WHEN links = 1 THEN CAST(:at AS DOUBLE PRECISION) ELSE NULL END
    WHERE blob = :blob AND links > 0"""
)
_LINK_SPEC = Statement("UPDATE specs SET links = links + 1 WHERE spec = :spec")
_ADD_SPEC = Statement(
    """INSERT INTO specs (spec, links, data) VALUES (:spec, 1, :data)
    ON CONFLICT (spec) DO UPDATE SET links = specs.links + 1
    WHERE specs.data = excluded.data RETURNING spec"""
)
_UNLINK_SPEC = Statement(
    "UPDATE specs SET links = links - 1 WHERE spec = :spec RETURNING links"
)
_REMOVE_SPEC = Statement("DELETE FROM specs WHERE spec = :spec")
_READ_SPEC = Statement("SELECT data FROM specs WHERE spec = :spec")


def link_blob(tx: Transaction, ref: BlobRef, *, links: int = 1) -> None:
    """Count ``links`` more references to a blob that is durable already."""
    tx.run(_LINK_BLOB, blob=ref.blob, size=ref.size_bytes, digest=ref.digest, links=links)


def unlink_blob(tx: Transaction, blob: str, at: float) -> None:
    """Drop one reference; the last one starts the grace after which the blob goes."""
    tx.run(_UNLINK_BLOB, blob=blob, at=at)


def blobs_of(extra: Mapping[str, Any] | None) -> Iterator[BlobRef]:
    """Yield the blobs that an item's ``extra`` names: a large result, and the files that it wrote."""
    for holder in (extra, extra.get("files")) if extra else ():
        if (ref := blob_of(holder)) is not None:
            yield ref


def blob_of(holder: Mapping[str, Any] | None) -> BlobRef | None:
    """Return the blob that ``holder`` names, a large result or written files."""
    if not holder or not holder.get("blob"):
        return None
    return BlobRef(holder["blob"], holder["size"], holder["digest"])


def link_function(tx: Transaction, function: Function) -> None:
    """Count one more reference to ``function``, which is kept if it is new."""
    payload = function.payload
    blob = payload if isinstance(payload, BlobRef) else None
    links = tx.value(
        _FUNCTION,
        digest=function.digest,
        size=blob.size_bytes if blob else len(payload),  # type: ignore[arg-type]
        data=None if blob else payload,
        blob=blob.blob if blob else None,
    )
    if links == 1 and blob:
        link_blob(tx, blob)


def unlink_function(tx: Transaction, digest: str, at: float) -> None:
    """Drop one reference to a function; the last one removes it."""
    row = tx.one(_UNLINK_FUNCTION, digest=digest)
    if row and row[0] <= 0:
        tx.run(_REMOVE_FUNCTION, digest=digest)
        if row[1]:
            unlink_blob(tx, row[1], at)


def read_function(tx: Transaction, digest: str) -> Function:
    """Return the function with ``digest``.

    Raises:
        Corrupt: a row names a function that is not there, or not what it was.
    """
    row = tx.one(_READ_FUNCTION, digest=digest)
    if row is None:
        raise Corrupt(f"The store has no function {digest}, though a job names it.")
    data, blob, size = row
    payload: Payload = BlobRef(blob, size, digest) if blob else bytes(data)
    if isinstance(payload, bytes) and hashlib.sha256(payload).hexdigest() != digest:
        raise damaged("Its function")
    return Function(payload, digest)


def shared_part(spec: JobSpec) -> JobSpec:
    """Return ``spec`` without what is kept per batch, so that equal ones are kept once."""
    if (
        spec.label is None
        and spec.priority == DEFAULT_PRIORITY
        and not spec.depends_on
        and spec.parent_jid is None
    ):
        return spec
    return dataclasses.replace(
        spec, label=None, priority=DEFAULT_PRIORITY, depends_on=(), parent_jid=None
    )


def unlink_spec(tx: Transaction, number: int) -> None:
    """Drop one reference to a spec; the last one removes it: its variables may be secrets."""
    links = tx.value(_UNLINK_SPEC, spec=number)
    if links is not None and links <= 0:
        tx.run(_REMOVE_SPEC, spec=number)


class SpecBook:
    """Specs that have committed lately, in memory: each once, by number and by value.

    A number comes from the content, so that one which is removed and entered again means the same.
    """

    def __init__(self) -> None:
        self._numbers: dict[JobSpec, int] = {}
        self._specs: dict[int, JobSpec] = {}

    def known(self, spec: JobSpec) -> JobSpec:
        """Return the kept equal of ``spec``, or itself."""
        number = self._numbers.get(spec)
        return spec if number is None else self._specs[number]

    def number(self, tx: Transaction, spec: JobSpec) -> int:
        """Count one more reference to ``spec``, entered if it is new; return its number.

        Raises:
            Corrupt: another spec has that number.
        """
        known = self._numbers.get(spec)
        if known is not None and tx.run(_LINK_SPEC, spec=known):
            return known
        number = int(codec.digest(spec)[:NUMBER_DIGITS], 16)
        data = codec.encode(spec).decode()
        if tx.value(_ADD_SPEC, spec=number, data=data) is None:
            raise Corrupt(f"The store has another spec under the number {number}.")
        return number

    def remember(self, number: int, spec: JobSpec) -> JobSpec:
        """Keep ``spec`` under its committed number; return the kept one."""
        if number not in self._specs and len(self._specs) >= KEPT_SPECS:
            del self._numbers[self._specs.pop(next(iter(self._specs)))]
        self._numbers.setdefault(spec, number)
        return self._specs.setdefault(number, spec)

    def read(self, tx: Transaction, number: int) -> JobSpec:
        """Return the spec with ``number``.

        Raises:
            Corrupt: there is none.
        """
        if (kept := self._specs.get(number)) is not None:
            return kept
        data = tx.value(_READ_SPEC, spec=number)
        if data is None:
            raise Corrupt(f"The store has no spec {number}, though a batch names it.")
        return codec.read(JobSpec, data)
