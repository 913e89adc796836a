"""The log of the store is looked through in little memory, and may grow meanwhile."""

import os
import sqlite3
import tracemalloc

import pytest

from picloud_jupyter.protocol.errors import Corrupt
from picloud_services.base import log_check
from picloud_services.base.connections import Source, connect
from picloud_services.base.log_check import check_log

LONG_BYTES = 32 * 1024**2


@pytest.fixture
def store(tmp_path):
    """A store whose log was left by a kill, and was longer once."""
    path = tmp_path / "store.db"
    writer = connect(Source(path))
    writer.execute("CREATE TABLE t (x)")
    for number in range(9):
        writer.execute("INSERT INTO t VALUES (?)", (number,))
    log = path.with_name("store.db-wal")
    content = log.read_bytes()
    writer.close()
    log.write_bytes(content)
    os.truncate(log, LONG_BYTES)
    return path


def test_log_when_long_then_it_is_not_read_into_memory(store):
    tracemalloc.start()
    try:
        check_log(store)
        assert tracemalloc.get_traced_memory()[1] < LONG_BYTES / 8
    finally:
        tracemalloc.stop()


def test_log_when_long_and_damaged_then_refused(store):
    with store.with_name("store.db-wal").open("r+b") as log:
        log.seek(3000)
        log.write(b"\xff\xff")
    with pytest.raises(Corrupt, match="commits in it cannot be read"):
        check_log(store)
    with sqlite3.connect(store) as left:  # what SQLite would have said nothing of
        assert left.execute("PRAGMA quick_check").fetchone() == ("ok",)
    left.close()


def test_log_when_commits_come_while_it_is_read_then_they_are_not_lost_ones(store, monkeypatch):
    frames = [1, 10, 1, 1]
    monkeypatch.setattr(log_check, "_valid_frames", lambda _store: frames.pop(0))
    check_log(store)
    with pytest.raises(Corrupt, match="commits in it cannot be read"):
        check_log(store)
