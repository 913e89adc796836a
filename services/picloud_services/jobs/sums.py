"""Sums of the payloads in rows: what a disk has damaged is refused, and never handed out. Pure."""

import zlib

from picloud_jupyter.protocol.errors import Corrupt


def sum_of(*parts: bytes) -> int:
    """Return the sum of ``parts``, one after another."""
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found


def damaged(what: str, jid: int | None = None) -> Corrupt:
    """Return the error for ``what`` of the store, which is not what was written there."""
    return Corrupt(
        f"{what} was damaged on the disk of the service, and is not used.",
        jid=jid,
        hint="submit the job again; check that disk, and see `picloud backup`",
    )
