"""Damage in the write-ahead log is told from what a crash leaves there."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from picloud_jupyter.protocol.errors import Corrupt
from picloud_services.base.database import open_database
from picloud_services.base.log_check import check_log

PAGE_BYTES, FRAME_BYTES, HEADER_BYTES = 2048, 24 + 2048, 32
COMMITS = 12
WRITER = """
import os, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
for word in ("page_size=2048", "journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0"):
    store.execute("PRAGMA " + word)
store.execute("CREATE TABLE IF NOT EXISTS t (i INTEGER PRIMARY KEY, data BLOB)")
for size in sys.argv[2:]:
    store.execute("INSERT INTO t (data) VALUES (?)", (os.urandom(int(size)),))
os._exit(0)  # as a kill: the log stays
"""


def write(store: Path, *sizes: int) -> None:
    command = [sys.executable, "-c", WRITER, str(store), *map(str, sizes)]
    subprocess.run(command, check=True, timeout=30)


def rows(store: Path) -> int:
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as reader:
        return int(reader.execute("SELECT COUNT(*) FROM t").fetchone()[0])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    write(path, *[3000] * COMMITS)
    return path


def log_of(store: Path) -> Path:
    return store.with_name("store.db-wal")


def commits(log: bytes) -> list[int]:
    """Return the frames that are commits."""
    count = (len(log) - HEADER_BYTES) // FRAME_BYTES
    at = [HEADER_BYTES + i * FRAME_BYTES for i in range(count)]
    return [i for i in range(count) if log[at[i] + 4 : at[i] + 8] != bytes(4)]


@pytest.mark.parametrize("seed", range(30))
def test_bit_that_flips_is_noticed_unless_it_is_in_the_last_commit(store, seed):
    chance = Random(seed)
    log = bytearray(log_of(store).read_bytes())
    at = chance.randrange(
        0 if seed % 3 else HEADER_BYTES, HEADER_BYTES if seed % 3 == 1 else len(log)
    )
    log[at] ^= 1 << chance.randrange(8)
    log_of(store).write_bytes(log)
    (store.with_name("store.db-shm")).unlink(missing_ok=True)
    frame = (at - HEADER_BYTES) // FRAME_BYTES  # -1: the header of all
    behind = [commit for commit in commits(bytes(log)) if commit > frame]
    if len(behind) > 1:
        with pytest.raises(Corrupt, match="commits in it cannot be read"):
            check_log(store)
        with pytest.raises(Corrupt):  # again: nothing has taken it away
            check_log(store)
    else:
        check_log(store)
        assert rows(store) >= COMMITS - 2


@pytest.mark.parametrize("seed", range(20))
def test_log_that_was_cut_short_is_no_damage(store, seed):
    log = log_of(store).read_bytes()
    cut = Random(seed).randrange(len(log))
    log_of(store).write_bytes(log[:cut])
    (store.with_name("store.db-shm")).unlink(missing_ok=True)
    check_log(store)


def test_commits_that_failed_and_were_written_over_are_no_damage(store, tmp_path):
    """A failed wait for the disk leaves frames of a commit that nobody was told of."""
    older = tmp_path / "older"
    logs = []
    for sizes in ([60_000], [30_000], [1000]):
        shutil.rmtree(older, ignore_errors=True)
        older.mkdir()
        for path in tmp_path.glob("store.db*"):
            shutil.copy(path, older)
        write(older / "store.db", *sizes)
        logs.append(log_of(older / "store.db").read_bytes())
    longest, longer, last = logs
    log_of(store).write_bytes(last + longer[len(last) :] + longest[len(longer) :])
    check_log(store)
    assert rows(store) == COMMITS + 1


def test_sound_log_and_none_are_no_damage(store, tmp_path):
    check_log(store)
    assert rows(store) == COMMITS
    check_log(tmp_path / "none.db")
    log_of(store).write_bytes(b"")
    check_log(store)


async def test_store_with_a_damaged_log_is_not_opened_and_loses_nothing(store):
    log = bytearray(log_of(store).read_bytes())
    log[HEADER_BYTES + FRAME_BYTES + 100] ^= 1
    log_of(store).write_bytes(log)
    for _ in range(2):
        with pytest.raises(Corrupt, match="store.db-wal is damaged"):
            await open_database(store).open()
    assert log_of(store).read_bytes() == bytes(log)
    os.rename(log_of(store), store.with_name("aside"))
    database = open_database(store)
    await database.open()
    await database.close()
