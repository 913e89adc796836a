"""The one door to SQL: one writing connection with group commit, a few reading ones.

Writing work is queued and run by one thread; whatever has gathered meanwhile shares one COMMIT,
which is where the disk is waited for. Quick pieces pass long ones: a group of those is committed early
when a quick one waits. Results are handed back on the event loop in the order of the commits, so what
``committed`` callbacks build up is an exact image of the store.

A single short piece of work is run on the loop itself while nothing else is queued and the disk is
known to be fast: two thread switches cost more than the whole transaction; some of it within `write`.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from picloud_jupyter.protocol.errors import DiskFull, PlatformError, Unavailable
from picloud_services.base.ballast import ballast_of, fill_ballast
from picloud_services.base.commit_pace import CommitPace
from picloud_services.base.connections import Source, connect, log_bytes, translate
from picloud_services.base.instruments import Histogram
from picloud_services.base.log_check import check_log
from picloud_services.base.migrations import load_migrations, migrate
from picloud_services.base.sql import Statement, Transaction
from picloud_services.base.write_queue import WriteQueue

T = TypeVar("T")
GROUP_LIMIT = 64  # pieces of work that share one commit at most
READERS = 2
INLINE_PIECES = 2  # more than this gathers for the thread
CHECKPOINT_BYTES = 16 * 1024 * 1024  # a longer log is folded in, on the thread
CHECKPOINT_EVERY = 64  # quick commits between two looks at its size
_log = logging.getLogger(__name__)
_QUICK_CHECK = Statement("PRAGMA quick_check(5)")


@dataclass(slots=True)
class _Job(Generic[T]):
    work: Callable[[Transaction], T]
    committed: Callable[[T], None] | None
    future: asyncio.Future[T]
    essential: bool
    quick: bool = False
    before_commit: Callable[[T], None] | None = None
    result: Any = None
    error: BaseException | None = None


class Database:
    """Runs work in transactions. Made and used on one event loop."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._dialect = source.dialect
        self._queue: WriteQueue[_Job[Any]] = WriteQueue(GROUP_LIMIT)
        self._fold_wanted = False  # the write-ahead log is long
        self._ballast = ballast_of(source.file)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._reading = threading.local()
        self._reader_connections: list[Any] = []
        self._connection: Any = None
        self._gathered: list[_Job[Any]] = []
        self._queued = 0  # pieces given to the thread and not delivered yet
        self._pace = CommitPace()
        self.commit_seconds = Histogram()
        self._commits = 0
        self._is_busy = False  # within `_run_here` or `_deliver`
        self._reserve_used = False

    @property
    def dialect(self) -> str:
        """Return "sqlite" or "postgresql"."""
        return self._dialect

    async def open(self) -> None:
        """Connect and bring the schema up to date.

        Raises:
            DiskFull, Corrupt, Unavailable, Incompatible: the store cannot be used; the words say why.
        """
        self._loop = asyncio.get_running_loop()
        self._connection = await asyncio.to_thread(self._prepare)
        self._thread = threading.Thread(
            target=self._write_all, name="store-writer", daemon=True
        )
        self._thread.start()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")

    async def close(self) -> None:
        """Finish what is queued and disconnect."""
        if self._thread is None:
            return
        if self._gathered:
            self._flush()
        self._queue.close()
        thread, self._thread = self._thread, None  # nothing more is taken from now on
        await asyncio.to_thread(thread.join)
        if self._readers is not None:
            await asyncio.to_thread(self._readers.shutdown)
        for connection in self._reader_connections:
            connection.close()
        self._reader_connections.clear()
        self._connection.close()

    def write(
        self,
        work: Callable[[Transaction], T],
        committed: Callable[[T], None] | None = None,
        *,
        essential: bool = False,
        quick: bool = False,
        at_once: bool = False,
        before_commit: Callable[[T], None] | None = None,
    ) -> asyncio.Future[T]:
        """Run ``work`` in a transaction; the future is done when it is durable.

        ``committed`` gets the result on the loop, in commit order, before anybody who awaits the
        future. Raised exceptions undo this work alone. ``essential`` work (the end of a job, a removal) may
        use the last reserve of a full disk; ``quick`` work touches a few rows only, and ``at_once``
        such work may be run before this returns. ``before_commit`` gets the result just before the
        commit if that is made on the loop: what it begins must bear that the commit fails.

        Raises:
            DiskFull, Corrupt, Unavailable: through the future.
        """
        if self._loop is None or self._thread is None:
            raise Unavailable("The store is closed.")
        future: asyncio.Future[T] = self._loop.create_future()
        job = _Job(work, committed, future, essential, quick, before_commit)
        if at_once and self._may_run_now(job):
            self._run_here([job])
            return future
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(job)
        return future

    def _may_run_now(self, job: _Job[Any]) -> bool:
        if self._gathered or self._is_busy or not self._pace.is_quiet:
            return False
        return self._may_run_here([job])

    def _flush(self) -> None:
        """Run what one turn of the loop has gathered: here if it is short, else on the thread."""
        group, self._gathered = self._gathered, []
        if self._may_run_here(group):
            self._run_here(group)
        else:
            self._queued += len(group)
            for job in group:
                self._queue.put(job, short=job.quick)

    def _run_here(self, group: list[_Job[Any]]) -> None:
        self._is_busy = True
        started = time.perf_counter()
        self._run_group(group, on_loop=True)
        self._pace.ended_here(started)
        self._look_after_log()
        self._deliver(group)

    def _may_run_here(self, group: list[_Job[Any]]) -> bool:
        if self._queued or not self._pace.is_fast or len(group) > INLINE_PIECES:
            return False
        return self._dialect == "sqlite" and all(job.quick for job in group)

    def _look_after_log(self, *, now: bool = False) -> None:
        """Have a long write-ahead log folded into the file, on the thread."""
        self._commits += 1
        if self._dialect != "sqlite" or (self._commits % CHECKPOINT_EVERY and not now):
            return
        if log_bytes(self.source.file) >= CHECKPOINT_BYTES or self._reserve_used:
            self._queued += 1  # nothing runs on the loop meanwhile
            self._fold_wanted = True
            self._queue.nudge()

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` on a connection that cannot write, on one snapshot; return its result."""
        if self._loop is None or self._readers is None:
            raise Unavailable("The store is closed.")
        return await self._loop.run_in_executor(self._readers, self._read, work)

    async def check(self) -> list[str]:
        """Return what is damaged in a SQLite file; [] if nothing is. Reads the whole file."""
        if self._dialect != "sqlite":
            return []
        found = await self.read(lambda tx: [str(row[0]) for row in tx.all(_QUICK_CHECK)])
        return [] if found == ["ok"] else found

    # ------------------------------------------------------------------------- on other threads
    def _prepare(self) -> Any:  # noqa: ANN401
        if self._dialect == "sqlite":
            self.source.file.parent.mkdir(parents=True, exist_ok=True)
            self._check_log()
        connection = connect(self.source)
        try:
            self._begin(connection)
            migrate(Transaction(connection, self._dialect), load_migrations(), str(self.source))
            connection.execute("COMMIT")
        except BaseException as exc:
            connection.close()
            raise translate(exc, self.source) or exc from exc
        self._fill_ballast()
        return connection

    def _check_log(self) -> None:
        try:
            check_log(self.source.file)
        except (sqlite3.Error, OSError) as exc:
            raise translate(exc, self.source) or exc from exc

    def _begin(self, connection: Any) -> None:  # noqa: ANN401
        connection.execute("BEGIN IMMEDIATE" if self._dialect == "sqlite" else "BEGIN")

    def _read(self, work: Callable[[Transaction], T]) -> T:
        try:
            connection = getattr(self._reading, "connection", None)
            if connection is None:
                connection = connect(self.source, read_only=True)
                self._reading.connection = connection
                self._reader_connections.append(connection)
            connection.execute(
                "BEGIN"
                if self._dialect == "sqlite"
                else "BEGIN ISOLATION LEVEL REPEATABLE READ"
            )
            try:
                return work(Transaction(connection, self._dialect))
            finally:
                connection.execute("ROLLBACK")
        except Exception as exc:
            known = translate(exc, self.source)
            if isinstance(known, Unavailable):
                self._reading.connection = None
            raise known or exc from exc

    def _write_all(self) -> None:
        while not self._queue.is_over:
            group = self._queue.take()
            if group:
                self._write_group(group)
            if self._fold_wanted:
                self._fold_wanted = False
                self._fold_in_log()

    def _fold_in_log(self) -> None:
        """Move the write-ahead log into the file: only this connection ever does."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as exc:
            _log.warning("the log of the store could not be folded in yet: %s", exc)
        if self._reserve_used:
            self._fill_ballast()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._folded_in)

    def _write_group(self, group: list[_Job[Any]]) -> None:
        started = time.perf_counter()
        self._run_group(group)
        seconds = time.perf_counter() - started
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._delivered, group, seconds)

    def _run_group(self, group: list[_Job[Any]], *, on_loop: bool = False) -> None:
        try:
            self._commit(group, on_loop=on_loop)
        except Exception as exc:  # noqa: BLE001  # one bad piece must not fail the others
            if len(group) == 1:
                self._retry_essential(group[0], exc)
            else:
                for job in group:
                    job.result = job.error = None
                    self._write_alone(job)

    def _write_alone(self, job: _Job[Any]) -> None:
        try:
            self._commit([job])
        except Exception as exc:  # noqa: BLE001  # handed to whoever awaits the future
            self._retry_essential(job, exc)

    def _retry_essential(self, job: _Job[Any], error: Exception) -> None:
        known = translate(error, self.source)
        if isinstance(known, DiskFull) and job.essential and self._ballast.exists():
            self._ballast.unlink()
            self._reserve_used = True
            job.result = job.error = None
            self._write_alone(job)
            return
        if isinstance(known, Unavailable) and self._dialect != "sqlite":
            self._reconnect()
        job.error = known or error

    def _commit(self, group: list[_Job[Any]], *, on_loop: bool = False) -> None:
        connection = self._connection
        transaction = Transaction(connection, self._dialect)
        began = time.perf_counter()
        self._begin(connection)
        alone = len(group) == 1
        try:
            for i, job in enumerate(group):
                if i and not job.quick and self._queue.is_urgent:
                    self._queue.put_back(group[i:])
                    del group[i:]
                    break
                self._run_one(connection, transaction, job, alone=alone)
            if on_loop and alone and (begin := group[0].before_commit) is not None:
                begin(group[0].result)
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        self.commit_seconds.observe(time.perf_counter() - began)

    def _run_one(
        self,
        connection: Any,  # noqa: ANN401
        transaction: Transaction,
        job: _Job[Any],
        *,
        alone: bool,
    ) -> None:
        if alone:
            job.result = job.work(transaction)
            return
        connection.execute("SAVEPOINT piece")
        try:
            job.result = job.work(transaction)
        except Exception as exc:
            if isinstance(translate(exc, self.source), PlatformError):
                raise
            connection.execute("ROLLBACK TO SAVEPOINT piece")
            job.error = exc
        connection.execute("RELEASE SAVEPOINT piece")

    def _roll_back(self, connection: Any) -> None:  # noqa: ANN401
        try:
            connection.execute("ROLLBACK")
        except Exception as exc:  # noqa: BLE001  # SQLite ends some failed transactions itself
            _log.debug("rollback: %s", exc)

    def _reconnect(self) -> None:
        self._connection.close()  # first: it may hold the database still
        try:
            self._connection = connect(self.source)
        except PlatformError as exc:
            _log.warning("the database cannot be reached again yet: %s", exc)

    def _fill_ballast(self) -> None:
        """Keep a file that can be removed on a full disk, so that the failure itself is recorded."""
        if self._dialect == "sqlite":
            self._reserve_used = not fill_ballast(self._ballast)  # then it is tried again

    # ------------------------------------------------------------------------------ on the loop
    def _folded_in(self) -> None:
        self._queued -= 1

    def _delivered(self, group: list[_Job[Any]], seconds: float) -> None:
        self._queued -= len(group)
        if len(group) == 1 and group[0].quick:
            self._pace.measure(seconds)
        self._look_after_log(now=not group[0].quick)  # 64 large parts of maps are gigabytes
        self._deliver(group)

    def _deliver(self, group: list[_Job[Any]]) -> None:
        self._is_busy = True
        for job in group:
            if job.error is None and job.committed is not None:
                try:
                    job.committed(job.result)
                except Exception as exc:  # noqa: BLE001  # the next in the group must go on
                    _log.exception("what follows a commit failed")
                    job.error = exc
            if job.future.done():
                continue
            if job.error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(job.error)
        self._is_busy = False


def open_database(path: Path, url: str = "") -> Database:
    """Return a database for the SQLite file ``path``, or for ``url`` if it is not empty; not open yet."""
    return Database(Source(path, url))
