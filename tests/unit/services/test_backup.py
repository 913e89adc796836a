"""What `picloud backup` says when it cannot, and whose file it writes into."""

import os
import sqlite3
from io import BytesIO
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import Corrupt, DiskFull, InvalidRequest
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.app import backup
from picloud_services.app.backup import back_up
from picloud_services.app.backup_files import HashedFile, TarTarget


@pytest.fixture
def paths(tmp_path: Path) -> ServicePaths:
    found = ServicePaths(tmp_path / "home", tmp_path / "run")
    found.home.mkdir()
    return found


def test_backup_when_jobs_are_in_postgresql_then_said_though_there_is_no_store(
    paths, tmp_path, monkeypatch
):
    monkeypatch.setenv("PICLOUD_DATABASE_URL", "postgresql://x/y")
    with pytest.raises(InvalidRequest, match="PostgreSQL"):
        back_up(paths, str(tmp_path / "b.tar"), secrets=False)


def test_backup_when_the_store_has_no_tables_then_in_words(paths, tmp_path):
    (paths.home / "store.db").touch()  # a start that was cut
    with pytest.raises(Corrupt, match=r"store\.db cannot be read: no such table"):
        back_up(paths, str(tmp_path / "b.tar"), secrets=False)
    assert not list(tmp_path.glob("b.tar*"))


def test_backup_when_its_own_disk_is_full_then_that_one_is_named(paths, tmp_path, monkeypatch):
    def full(_backup: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise error

    (paths.home / "store.db").touch()
    monkeypatch.setattr(backup._Backup, "run", full)
    with pytest.raises(DiskFull, match=r"b\.tar") as found:
        back_up(paths, str(tmp_path / "b.tar"), secrets=False)
    assert "picloud delete" not in str(found.value)


def test_backup_when_the_log_of_a_stopped_service_is_damaged_then_refused(paths, tmp_path):
    store, log = paths.home / "store.db", paths.home / "store.db-wal"
    writer = sqlite3.connect(store, isolation_level=None)
    writer.executescript("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0")
    writer.execute("CREATE TABLE t (x)")
    for number in range(9):
        writer.execute("INSERT INTO t VALUES (?)", (number,))
    copies = store.read_bytes(), bytearray(log.read_bytes())
    writer.close()
    copies[1][len(copies[1]) // 2] ^= 1
    store.write_bytes(copies[0])
    log.write_bytes(copies[1])
    with pytest.raises(Corrupt, match="commits in it cannot be read"):
        back_up(paths, str(tmp_path / "b.tar"), secrets=False)
    assert not list(tmp_path.glob("b.tar*"))


def test_tar_when_a_file_lies_at_its_name_then_it_is_not_written_into(tmp_path):
    path = tmp_path / "b.tar.partial"
    path.touch(mode=0o666)
    with path.open("rb") as theirs:
        target = TarTarget(path, compressed=False)
        target.put("store.db", HashedFile(BytesIO(b"jobs"), 4))
        target.close()
        assert theirs.read() == b""
        assert not os.path.samestat(os.fstat(theirs.fileno()), path.stat())
    assert path.stat().st_mode & 0o777 == 0o600
