"""What a restore must never take, and what it must never remove. The backups are made by hand."""

import json
import os
import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import Conflict, InvalidRequest
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.app.backup_files import LIST
from picloud_services.app.restore import restore

SCHEMA = """
CREATE TABLE schema_versions (version INTEGER);
INSERT INTO schema_versions VALUES (1);
CREATE TABLE users (user_id INTEGER);
CREATE TABLE sequences (jid INTEGER, batch INTEGER);
CREATE TABLE leases (node TEXT);
CREATE TABLE jobs (jid INTEGER PRIMARY KEY);
INSERT INTO jobs VALUES (1);
CREATE TABLE batches (open INTEGER);
"""


@pytest.fixture
def paths(tmp_path: Path) -> ServicePaths:
    found = ServicePaths(tmp_path / "home", tmp_path / "run")
    for folder in (found.home, found.run):
        folder.mkdir(mode=0o700)
    found.lock.touch()  # a service was here
    return found


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    folder = tmp_path / "backup"
    folder.mkdir()
    with sqlite3.connect(folder / "store.db") as store:
        store.executescript(SCHEMA)
    store.close()
    write_list(folder)
    return folder


def write_list(folder: Path, lost: tuple[str, ...] = ()) -> None:
    data = (folder / "store.db").read_bytes()
    files = {"store.db": [len(data), sha256(data).hexdigest()]}
    words = {"version": "1", "host": "h", "made_at": 1.0, "secrets": False, "format": 1}
    (folder / LIST).write_text(json.dumps(words | {"lost": lost, "files": files}))


def jobs_in(home: Path) -> list[tuple[int]]:
    with sqlite3.connect(home / "store.db") as store:
        found = store.execute("SELECT jid FROM jobs").fetchall()
    store.close()
    return found


def test_restore_when_a_list_names_files_outside_as_lost_then_they_stay(
    paths, backup, tmp_path
):
    mine = tmp_path / "mine"
    mine.write_text("dear")
    write_list(backup, lost=(str(mine), "../../mine", "../lock", "blobs/aa/gone"))
    restore(paths, str(backup))
    assert mine.read_text() == "dear"
    assert paths.lock.exists()


def test_restore_when_secrets_are_there_then_refused_and_they_stay(paths, backup):
    (paths.home / "secrets").mkdir()
    kept = paths.home / "secrets" / "1000.json"
    kept.write_text("{}")
    with pytest.raises(Conflict, match="has secrets of a service"):
        restore(paths, str(backup))
    assert kept.exists()


def test_restore_when_the_log_of_another_store_is_there_then_refused(paths, backup):
    store = sqlite3.connect(paths.home / "store.db", isolation_level=None)
    store.executescript(f"PRAGMA journal_mode=WAL; {SCHEMA} INSERT INTO jobs VALUES (2);")
    log = (paths.home / "store.db-wal").read_bytes()
    store.close()
    (paths.home / "store.db").unlink()
    (paths.home / "store.db-wal").write_bytes(log)
    with pytest.raises(Conflict, match=r"store\.db-wal is the log of a store that is gone"):
        restore(paths, str(backup))
    (paths.home / "store.db-wal").rename(paths.home / "moved")
    restore(paths, str(backup))
    assert jobs_in(paths.home) == [(1,)]


def test_restore_when_one_of_before_left_its_folder_then_state_is_not_removed(paths, backup):
    paths.restoring.mkdir()
    payload = paths.home / "blobs" / "aa" / "aa0"
    payload.parent.mkdir(parents=True)
    payload.write_bytes(b"x")
    with pytest.raises(Conflict, match="has blobs of a service"):
        restore(paths, str(backup))
    assert payload.exists()


def test_restore_when_jobs_are_kept_in_another_database_then_refused(
    paths, backup, monkeypatch
):
    monkeypatch.setenv("PICLOUD_DATABASE_URL", "postgresql://x/y")
    with pytest.raises(InvalidRequest, match="database_url"):
        restore(paths, str(backup))
    assert os.listdir(paths.home) == ["lock"]
