"""Opens connections to SQLite and PostgreSQL, and says what their errors mean."""

import errno
import os
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from picloud_jupyter.protocol.errors import (
    CloudException,
    Corrupt,
    DiskFull,
    InvalidRequest,
    Unavailable,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

BUSY_SECONDS = 30.0
_LOG_HEADER = struct.Struct(">8xI4x8s")  # page size, salts: sqlite.org/fileformat2.html 4.1
_LOG_HEADER_BYTES = 32
_LOG_FRAME = struct.Struct(">8x8s8x")  # salts
_DISK_FULL_CODES = {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE"}
_DISK_FULL_STATES = {"53100"}  # PostgreSQL: disk_full
_LOCKED_STATE = "55P03"  # lock_not_available
_SERVICE_LOCK = int.from_bytes(b"picloud", "big")  # an advisory lock of the database
PAGE_BYTES = 2048
_WRITER_PRAGMAS = (
    f"PRAGMA page_size={PAGE_BYTES}",  # of a new file; a call changes a few bytes on each of 20 pages
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # NORMAL lost acknowledged rows in power cuts
    "PRAGMA cache_size=-16000",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA wal_autocheckpoint=0",  # database.py does it, off the loop
    "PRAGMA journal_size_limit=67108864",
)


@dataclass(frozen=True, slots=True)
class Source:
    """Which database: ``url`` empty means the SQLite file ``path``."""

    path: Path
    url: str = ""

    @property
    def dialect(self) -> str:
        """Return "sqlite" or "postgresql"."""
        name = _parse(self.url).get_backend_name() if self.url else "sqlite"
        if name not in ("sqlite", "postgresql"):
            raise ValueError(
                f"database_url must begin with sqlite: or postgresql:, got {name!r}"
            )
        return name

    @property
    def file(self) -> Path:
        """Return the SQLite file."""
        database = _parse(self.url).database if self.url else None
        return Path(database) if database else self.path

    def __str__(self) -> str:
        if self.dialect == "sqlite":
            return str(self.file)
        return str(_parse(self.url).render_as_string(hide_password=True))


def _parse(url: str) -> "URL":
    try:
        from sqlalchemy.engine import make_url  # half of a start's time: see base/sql.py
    except ModuleNotFoundError as exc:
        raise ValueError(
            "database_url needs SQLAlchemy and psycopg; install them with: "
            "pip install 'picloud-jupyter[postgres]'"
        ) from exc

    return make_url(url)


def connect(source: Source, *, read_only: bool = False) -> Any:  # noqa: ANN401  # two drivers
    """Return a connection in autocommit mode: transactions are begun in words.

    Raises:
        DiskFull, Corrupt, Unavailable: it cannot be opened.
    """
    try:
        if source.dialect == "sqlite":
            return _connect_sqlite(source.file, read_only=read_only)
        return _connect_postgresql(source.url, read_only=read_only)
    except Exception as exc:
        raise translate(exc, source) or exc from exc


def _connect_sqlite(path: Path, *, read_only: bool) -> sqlite3.Connection:
    uri = f"file:{quote(str(path))}{'?mode=ro' if read_only else ''}"
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        for pragma in ("PRAGMA query_only=ON",) if read_only else _WRITER_PRAGMAS:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def log_bytes(path: Path) -> int:
    """Return how much of the write-ahead log of the SQLite file ``path`` is in use, 0 if unknown.

    Its file does not shrink when it is begun anew, but the frames of now begin it, with the salts of its header.
    The index knows the number, but to close that file drops all locks of this process on it (fcntl(2)): the
    next program to open the store would take it for unused and cut it off under our feet.
    """
    try:
        with open(f"{path}-wal", "rb", buffering=0) as file:
            page_bytes, salts = _LOG_HEADER.unpack(file.read(_LOG_HEADER.size))
            step = _LOG_FRAME.size + page_bytes
            low, high = 0, (os.fstat(file.fileno()).st_size - _LOG_HEADER_BYTES) // step
            while low < high:
                frame = (low + high) // 2
                at = _LOG_HEADER_BYTES + frame * step
                found = _LOG_FRAME.unpack(os.pread(file.fileno(), _LOG_FRAME.size, at))
                low, high = (frame + 1, high) if found == (salts,) else (low, frame)
    except (OSError, struct.error):
        return 0
    return int(page_bytes * low)


def _connect_postgresql(url: str, *, read_only: bool) -> Any:  # noqa: ANN401
    import psycopg  # only where PostgreSQL is used

    dsn = _parse(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=3)
    try:
        connection.execute("SET synchronous_commit = on")
        if read_only:
            connection.execute("SET default_transaction_read_only = on")
        else:
            _lock_postgresql(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _lock_postgresql(connection: Any) -> None:  # noqa: ANN401
    """Hold the database as long as ``connection`` lives: two services would run each job twice."""
    # A machine that lost its power says no farewell: the server is to notice before we give up.
    connection.execute("SET tcp_keepalives_idle = 10")
    connection.execute("SET tcp_keepalives_interval = 5")
    connection.execute("SET tcp_keepalives_count = 2")
    connection.execute(f"SET lock_timeout = '{BUSY_SECONDS:.0f}s'")
    connection.execute(f"SELECT pg_advisory_lock({_SERVICE_LOCK})")
    connection.execute("RESET lock_timeout")


def translate(error: BaseException, where: object) -> CloudException | None:
    """Return what a driver's error means for the product; None if it is not the store's."""
    if isinstance(error, CloudException):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(where)
    if isinstance(error, sqlite3.Error):
        return _translate_sqlite(error, where)
    if type(error).__module__.startswith("psycopg"):
        return _translate_postgresql(error, where)
    return None


def _translate_postgresql(error: BaseException, where: object) -> CloudException | None:
    state = getattr(error, "sqlstate", None) or ""
    if state in _DISK_FULL_STATES:
        return _disk_full(where)
    if state in ("XX001", "XX002"):
        return _corrupt(error, where)
    if state == _LOCKED_STATE:
        return Unavailable(
            f"The database {where} is in use by another service.",
            hint="end that one (picloud down), or give this one a database of its own (database_url)",
        )
    if type(error).__name__ == "DataError" or state.startswith("22"):
        return InvalidRequest(f"PostgreSQL cannot keep what was sent: {error}")
    if type(error).__name__ in ("OperationalError", "InterfaceError", "AdminShutdown"):
        return Unavailable(
            f"The database {where} does not answer: {error}",
            hint="check that it runs; the request may be repeated",
        )
    return None


def _translate_sqlite(error: sqlite3.Error, where: object) -> CloudException | None:
    code = getattr(error, "sqlite_errorname", "") or ""
    if code in _DISK_FULL_CODES:
        return _disk_full(where)
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return _corrupt(error, where)
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Unavailable(
            f"The store {where} is locked by another process.",
            hint="close the program that has it open and try again",
        )
    if code.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return Unavailable(
            f"The store {where} cannot be read or written: {error} ({code}).",
            hint="check the disk and the permissions of the folder",
        )
    return None


def _disk_full(where: object) -> DiskFull:
    return DiskFull(
        f"The disk that holds {where} is full.",
        hint="free some space (picloud delete JIDS removes results) and try again",
    )


def _corrupt(error: BaseException, where: object) -> Corrupt:
    return Corrupt(
        f"The store {where} is damaged: {error}. It is not used any further.",
        hint="put back a copy of the file, or set PICLOUD_HOME to a new folder",
    )
