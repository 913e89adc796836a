"""How long the write-ahead log is, asked without harm to who uses it."""

import os
from pathlib import Path

import pytest

from picloud_services.base.connections import PAGE_BYTES, Source, connect, log_bytes


def locks_on(path: Path) -> list[str]:
    """Return the locks that processes hold on ``path``."""
    inode = path.stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return [line for line in lines if f":{inode} " in line and f" {os.getpid()} " in line]


def test_log_when_its_length_is_asked_for_then_sqlite_keeps_its_locks(tmp_path):
    path = tmp_path / "store.db"
    connection = connect(Source(path))
    connection.execute("CREATE TABLE t (x)")
    before = locks_on(tmp_path / "store.db-shm")
    assert log_bytes(path) > 0
    assert before
    assert locks_on(tmp_path / "store.db-shm") == before
    connection.close()


@pytest.mark.parametrize("rows", [1, 2, 3, 30])
def test_log_when_begun_anew_then_as_long_as_what_is_in_use(tmp_path, rows):
    path = tmp_path / "store.db"
    assert log_bytes(path) == 0
    connection = connect(Source(path))
    connection.execute("CREATE TABLE t (x)")
    for number in range(40):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
    assert log_bytes(path) == (tmp_path / "store.db-wal").stat().st_size // 2072 * PAGE_BYTES
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    for number in range(rows):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
    assert log_bytes(path) == rows * PAGE_BYTES
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert log_bytes(path) == 0
    connection.close()
