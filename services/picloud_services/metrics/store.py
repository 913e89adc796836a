"""Keeps samples in a SQLite file of its own: the one door to it. Sync; for one thread at a time.

Plain sqlite3, not the truth store's door: the file is a ring that may be lost at any time, so it
gives durability away for speed, and it is never anything but a local file.
"""

import logging
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from picloud_jupyter.protocol.metrics import ResourceSample

logger = logging.getLogger(__name__)

PRUNE_ROWS = 5_000  # removed in one transaction
_COLUMNS = (
    "at, jid, cpu_seconds, memory_bytes, disk_read_bytes, disk_written_bytes, "
    "network_received_bytes, network_sent_bytes, processes, approximate, gpu_percent, gpu_memory_bytes"
)
_SCHEMA = """
PRAGMA auto_vacuum = NONE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS sample (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    jid INTEGER NOT NULL,
    cpu_seconds REAL NOT NULL,
    memory_bytes INTEGER NOT NULL,
    disk_read_bytes INTEGER NOT NULL,
    disk_written_bytes INTEGER NOT NULL,
    network_received_bytes INTEGER NOT NULL,
    network_sent_bytes INTEGER NOT NULL,
    processes INTEGER NOT NULL,
    approximate INTEGER NOT NULL,
    gpu_percent REAL NOT NULL DEFAULT 0,
    gpu_memory_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS sample_of_job ON sample (jid, at);
"""

_THINNED = """
SELECT s.at, s.jid, s.cpu_seconds, peak.memory_bytes, s.disk_read_bytes, s.disk_written_bytes,
       s.network_received_bytes, s.network_sent_bytes, peak.processes, peak.approximate,
       peak.gpu_percent, peak.gpu_memory_bytes
FROM (SELECT max(id) AS id, max(memory_bytes) AS memory_bytes, max(processes) AS processes,
             max(approximate) AS approximate, avg(gpu_percent) AS gpu_percent,
             max(gpu_memory_bytes) AS gpu_memory_bytes
      FROM sample WHERE jid = ? AND at > ? GROUP BY CAST((at - ?) / ? AS INTEGER)) AS peak
JOIN sample AS s ON s.id = peak.id
ORDER BY s.at, s.id
"""


class SampleStore:
    """Samples by job and time, the oldest dropped first. Close it when done.

    A file that is not a sound database is put aside as ``NAME.broken`` and a new one begun.

    Raises:
        OSError, sqlite3.OperationalError: the file cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = _open(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            broken = path.with_name(f"{path.name}.broken")
            logger.warning("%s is damaged (%s); it is kept as %s", path, error, broken)
            path.replace(broken)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._connection = _open(path)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._connection.close()

    def change(
        self, samples: Iterable[ResourceSample], forgotten: Collection[int] = ()
    ) -> None:
        """Store ``samples``, and remove all of the jobs ``forgotten``, in one transaction."""
        rows = [
            (
                s.at,
                s.jid,
                s.cpu_seconds,
                s.memory_bytes,
                s.disk_read_bytes,
                s.disk_written_bytes,
                s.network_received_bytes,
                s.network_sent_bytes,
                s.processes,
                s.approximate,
                s.gpu_percent,
                s.gpu_memory_bytes,
            )
            for s in samples
            if s.jid not in forgotten
        ]
        with self._connection:
            self._connection.executemany(
                f"INSERT INTO sample ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
                rows,
            )
            self._connection.executemany(
                "DELETE FROM sample WHERE jid = ?", ((jid,) for jid in forgotten)
            )

    def read(
        self, jid: int, since_at: float, max_rows: int
    ) -> "tuple[list[ResourceSample], float]":
        """Return (samples of ``jid`` taken after ``since_at`` in order of time, their spacing).

        More than ``max_rows`` are thinned here: the last sample of each span of equal length, with
        the span's maximum of memory and processes and mean use of GPUs. The spacing is that length, 0.0 if all came.
        """
        count, first_at, last_at = self._connection.execute(
            "SELECT count(*), min(at), max(at) FROM sample WHERE jid = ? AND at > ?",
            (jid, since_at),
        ).fetchone()
        span = 0.0
        if count <= max_rows:
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM sample WHERE jid = ? AND at > ? ORDER BY at, id",  # noqa: S608
                (jid, since_at),
            )
        else:
            span = (last_at - first_at) / max_rows or 1.0
            rows = self._connection.execute(_THINNED, (jid, since_at, first_at, span))
        return [ResourceSample(*(*row[:9], bool(row[9]), *row[10:])) for row in rows], span

    def prune(self, before_at: float, max_bytes: int) -> int:
        """Remove up to `PRUNE_ROWS` of the oldest samples, if there is a reason; return how many.

        Reasons: taken before ``before_at``, or the data fill more than ``max_bytes``.
        """
        where = "" if self.used_bytes > max_bytes else "WHERE at < :before_at"
        with self._connection:
            cursor = self._connection.execute(
                "DELETE FROM sample WHERE id <= (SELECT max(id) FROM "  # noqa: S608
                f"(SELECT id, at FROM sample ORDER BY id LIMIT :rows) {where})",
                {"rows": PRUNE_ROWS, "before_at": before_at},
            )
        return cursor.rowcount

    @property
    def used_bytes(self) -> int:
        """What the samples fill in the file; freed pages are used again, not given back."""
        page, pages, free = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
        return int(page * (pages - free))


def _open(path: Path) -> sqlite3.Connection:
    # One thread at a time uses it, which the service sees to; not always the same one.
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.executescript(_SCHEMA)
        _add_columns(connection)
        connection.execute("SELECT max(id) FROM sample").fetchone()
    except sqlite3.DatabaseError:
        with suppress(sqlite3.Error):
            connection.close()
        raise
    return connection


def _add_columns(connection: sqlite3.Connection) -> None:
    """Add what a file of an earlier version lacks."""
    known = {row[1] for row in connection.execute("PRAGMA table_info(sample)")}
    for name, kind in (("gpu_percent", "REAL"), ("gpu_memory_bytes", "INTEGER")):
        if name not in known:
            connection.execute(
                f"ALTER TABLE sample ADD COLUMN {name} {kind} NOT NULL DEFAULT 0"
            )
