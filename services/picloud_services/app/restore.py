"""`picloud restore`: a backup becomes the state of a service that has none.

All of it is read and compared with its list in a folder of its own first; then its parts are renamed into
the home, the store as the last: a home with a store is whole.
"""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.errors import (
    Conflict,
    Corrupt,
    Incompatible,
    InvalidRequest,
    NotAllowed,
    NotFound,
)
from picloud_jupyter.transport.paths import STATE_FOLDERS, ServicePaths
from picloud_services.app.backup_files import (
    LIST,
    STORE,
    BackupList,
    FolderTarget,
    damaged,
    read_backup,
    read_list,
)
from picloud_services.app.startup import load_settings, prepare
from picloud_services.base.connections import translate
from picloud_services.base.filesystem import sync_folder
from picloud_services.base.migrations import load_migrations
from picloud_services.base.single_instance import InstanceLock

_PARTS = ("blobs", "code", "logs", "secrets", STORE)  # the store comes last
_BLOB_MODE = 0o400
# Numbers that were given out after the backup must never name other jobs.
_SKIPPED_NUMBERS = 1_000_000


def restore(paths: ServicePaths, source: str) -> dict[str, Any]:
    """Put the backup ``source`` in the home of ``paths``; return what it holds. The service is not started.

    Raises:
        NotFound: there is no such backup.
        Corrupt: it is damaged or not whole.
        Conflict: the home is in use, or was used already.
        InvalidRequest: its service keeps jobs elsewhere.
        NotAllowed: its jobs are not this user's.
        Incompatible: a newer version made it.
        DiskFull: it does not fit.
    """
    path = Path(source)
    if not path.exists():
        raise NotFound(f"there is no backup {path}")
    _refuse_jobs(paths.home)
    if load_settings(paths, ()).database_url:
        raise InvalidRequest(
            f"the service of {paths.home} is set to keep its jobs in a database of its own (database_url), and "
            "would never see those of a backup",
            hint="unset database_url, or name another home with PICLOUD_HOME",
        )
    paths = prepare(paths).paths
    lock = InstanceLock(paths.lock)
    lock.acquire(paths.record)
    try:
        _refuse_jobs(paths.home)
        return _restore(paths, path)
    except sqlite3.Error as exc:
        raise translate(exc, path) or damaged(path, f"its {STORE}: {exc}") from exc
    finally:
        lock.release()


def _restore(paths: ServicePaths, source: Path) -> dict[str, Any]:
    staging = paths.restoring
    if not (staging / STORE).exists():  # it leaves last: without it no part came from here
        _refuse_state(paths.home)
    for name in (*_PARTS[:-1], staging.name):  # what an earlier try left
        shutil.rmtree(paths.home / name, ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        found = _unpack(source, staging)
        counts = _adapt(staging / STORE, source, everybody=paths.public is not None)
    except BaseException:
        shutil.rmtree(staging)
        raise
    os.sync()  # all of its files; what follows is renames
    for name in _PARTS:
        if (staging / name).exists():
            sync_folder(paths.home)
            (staging / name).rename(paths.home / name)
    sync_folder(paths.home)
    shutil.rmtree(staging)
    return {
        **counts,
        "home": str(paths.home),
        "made_at": found.made_at,
        "secrets": found.secrets,
        "lost": found.lost,
    }


def _refuse_jobs(home: Path) -> None:
    if (home / STORE).exists():
        raise Conflict(
            f"{home} was used already; a restore would replace its jobs",
            hint="name another home with PICLOUD_HOME, or remove what is there for good with `picloud down --purge`",
        )
    for log in (home / f"{STORE}-wal", home / f"{STORE}-journal"):
        if log.exists() and log.stat().st_size:
            raise Conflict(
                f"{log} is the log of a store that is gone: SQLite would write it into the restored one",
                hint="move it away and repeat; it is of use only beside the store that it belongs to",
            )


def _refuse_state(home: Path) -> None:
    found = [
        name
        for name in STATE_FOLDERS
        if any((home / name).glob("*" if name == "secrets" else "*/*"))
    ]
    if found:
        raise Conflict(
            f"{home} has {', '.join(found)} of a service, and no store",
            hint="name another home with PICLOUD_HOME, or remove those with `picloud down --purge`",
        )


def _unpack(source: Path, staging: Path) -> BackupList:
    """Copy all files into ``staging`` and compare them with the list; return it."""
    target = FolderTarget(staging)
    copied: dict[str, tuple[int, str]] = {}
    listed: BackupList | None = None
    with read_backup(source) as entries:
        for name, content in entries:
            if name == LIST:
                listed = read_list(content, source)
                continue
            try:
                target.put(name, content)
            except FileExistsError:
                raise damaged(source, f"it holds {name} twice") from None
            copied[name] = content.size_bytes, content.digest
    if listed is None:
        raise damaged(source, f"its list {LIST} is missing")
    for name in listed.files.keys() | copied.keys():
        if listed.files.get(name) != copied.get(name):
            raise damaged(source, f"{name} is not what was written there")
    for name in copied.keys() & set(listed.lost):  # no other name was checked
        (staging / name).unlink()
    for folder in ("blobs", "code"):
        for path in (staging / folder).glob("*/*"):
            path.chmod(_BLOB_MODE)
    if not (staging / STORE).exists():
        raise damaged(source, f"{STORE} is missing")
    return listed


def _adapt(store: Path, source: Path, *, everybody: bool) -> dict[str, Any]:
    """Make the store one of this machine; return how many jobs it has."""
    with contextlib.closing(sqlite3.connect(store)) as connection:
        found = [row[0] for row in connection.execute("PRAGMA quick_check(5)")]
        if found != ["ok"]:
            raise Corrupt(f"the store in {source} is damaged: {'; '.join(found)}")
        (schema,) = connection.execute("SELECT MAX(version) FROM schema_versions").fetchone()
        if schema > (known := len(load_migrations())):
            raise Incompatible(
                f"{source} was made by a newer version of picloud-jupyter: it has schema {schema}, and this "
                f"version knows schemas up to {known}.",
                hint="pip install -U picloud-jupyter",
            )
        users = [user for (user,) in connection.execute("SELECT user_id FROM users")]
        if not everybody and (others := set(users) - {os.getuid()}):
            raise NotAllowed(
                f"{source} holds jobs of uid {', '.join(map(str, sorted(others)))}, and you are uid "
                f"{os.getuid()}: nobody could use them in a service of yours",
                hint="restore it as that user, or for every user of the machine: sudo picloud restore --system",
            )
        with connection:
            connection.execute(
                "UPDATE sequences SET jid = jid + :skipped, batch = batch + :skipped",
                {"skipped": _SKIPPED_NUMBERS},
            )
            # Nobody runs them any more: this machine's agent will say so, and they are lost by the rules.
            connection.execute("UPDATE leases SET node = ?", (os.uname().nodename,))
        jobs = connection.execute("SELECT COUNT(*) FROM jobs").fetchone()[0]
        unfinished = connection.execute("SELECT COALESCE(SUM(open), 0) FROM batches").fetchone()
        return {"jobs": jobs, "unfinished": unfinished[0]}
