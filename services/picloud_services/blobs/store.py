"""The seam to where large payloads live. Whole contents never pass through memory.

A blob is immutable and named by 16 to 64 lowercase hex digits. References to blobs are rows of
the job store, counted in its own transactions: a blob is made durable *before* the row that names
it commits. What no row names is swept after ``GRACE_SECONDS``.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

GRACE_SECONDS = 3600.0  # between a blob's arrival and the commit that names it
PIECE_BYTES = 256 * 1024  # what a stream hands over at a time
BLOB_ID = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True, slots=True)
class BlobRef:
    """What a row says of a blob. ``digest`` is the sha256 in hex of its content, or "" if unknown."""

    blob: str
    size_bytes: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class BlobUsage:
    """How many blobs there are and what they occupy."""

    count: int
    total_bytes: int


class BlobStore(Protocol):
    """Keeps blobs. Async; called on the event loop, which it never blocks.

    Methods that take a `BlobRef` check what they serve against it and raise `Corrupt` where size
    or digest differ, `NotFound` where there is no such blob.
    """

    def incoming_path(self, blob: str) -> Path:
        """Return where somebody on this machine may write the content of a new ``blob``."""

    def upload_path(self, name: str) -> Path:
        """Return where a client, or who reads what it sends, may write an upload called ``name``.

        Whoever writes it holds a lock (flock) on the file until it was adopted; see `sweep_uploads`.
        """

    async def adopt(
        self, blob: str, *, size_bytes: int, digest: str = "", source: Path | None = None
    ) -> BlobRef:
        """Make the file at ``incoming_path(blob)``, or at ``source``, that blob, durable when this returns.

        ``source`` must be on the file system of ``incoming_path``. May be repeated, and at the same
        time: a blob that is there already is answered again, and the file removed.

        Raises:
            Corrupt: its size is not ``size_bytes``, or the blob that is there has another digest.
            NotFound: neither file nor blob is there.
        """

    async def local_path(self, ref: BlobRef) -> Path:
        """Return a read-only file with the content, which lasts while the blob is referenced."""

    def stream(
        self, ref: BlobRef, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[bytes]:
        """Return pieces of at most ``PIECE_BYTES`` of the bytes from ``start`` up to ``stop``."""

    async def find(self, blob: str) -> BlobRef | None:
        """Return size and id of ``blob`` if it is there (no digest), and count that as a use of it."""

    async def verify(self, ref: BlobRef) -> None:
        """Read the whole content once and compare it with ``ref``."""

    async def sweep_uploads(self) -> int:
        """Remove uploads whose writer ended before they were adopted; return how many."""

    async def sweep(
        self,
        referenced: Callable[[Sequence[str]], Awaitable[set[str]]],
        *,
        now_at: float,
        grace_seconds: float = GRACE_SECONDS,
    ) -> int:
        """Remove blobs older than the grace that no row names; return their count.

        Whoever has one open keeps it; one that was taken into use meanwhile stays.
        ``referenced`` gets at most 500 ids and answers those that a row names.
        """

    async def usage(self) -> BlobUsage:
        """Return how much is kept, at most a minute old."""


def check_id(blob: str) -> str:
    """Return ``blob`` if it is a blob's id.

    Raises:
        ValueError: it is not; nothing else may ever become part of a path.
    """
    if not BLOB_ID.fullmatch(blob):
        raise ValueError(f"{blob[:80]!r} is not the id of a blob")
    return blob
