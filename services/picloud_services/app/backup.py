"""`picloud backup`: what a service keeps, copied while it runs.

The store is copied first, in one snapshot; then what that names. A payload is immutable and stays for
an hour after its last job is gone, so that what a snapshot names is nearly always there still; where it is not,
a fresh snapshot names it no more.
"""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from picloud_jupyter.protocol.errors import (
    CloudException,
    Conflict,
    Corrupt,
    DiskFull,
    InvalidRequest,
    NotFound,
)
from picloud_jupyter.protocol.version import __version__
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.app.backup_files import (
    STORE,
    BackupList,
    FolderTarget,
    HashedFile,
    Readable,
    SourceFile,
    Target,
    TarTarget,
    belongs,
    put_list,
)
from picloud_services.app.startup import load_settings, place_of
from picloud_services.base.connections import BUSY_SECONDS, translate
from picloud_services.base.filesystem import sync_folder
from picloud_services.base.log_check import check_log
from picloud_services.base.single_instance import is_alive, read_record
from picloud_services.blobs.code_archives import archive_id
from picloud_services.jobs.store import lease_text

SNAPSHOTS = 5


def back_up(paths: ServicePaths, target: str, *, secrets: bool) -> dict[str, Any]:
    """Write a backup of the service in ``paths`` to ``target``; return what it holds, and lacks.

    That is a folder if it is one, or ends with a slash; else a tar file. Half a backup is removed.
    A file that is damaged, or cannot be read, costs itself alone: it is named under "lost".

    Raises:
        NotFound: no service was ever there.
        Conflict: ``target`` is there already.
        Corrupt: the store or its log is damaged.
        DiskFull: it does not fit.
    """
    home = place_of(paths).paths.home
    if load_settings(paths, ()).database_url:
        raise InvalidRequest(
            "the jobs of this service are in PostgreSQL, of which this is no backup",
            hint=f"use pg_dump, and keep a copy of {home / 'blobs'} and {home / 'code'} made after it",
        )
    if not (home / STORE).exists():
        raise NotFound(
            f"{home} holds no jobs: no service kept anything there",
            hint="name another one with PICLOUD_HOME, or with --system that of the machine",
        )
    path = Path(target)
    if target.endswith("/"):
        path.mkdir(mode=0o700, exist_ok=True)
    place = _FolderPlace(path) if path.is_dir() else _FilePlace(path)
    with place.filled() as (files, store):
        backup = _Backup(home, files, store, secrets=secrets)
        try:
            if not _is_running(paths):
                check_log(home / STORE)  # SQLite would leave out in silence what it cannot read
            return backup.run()
        except sqlite3.Error as exc:
            raise _in_words(exc, home / STORE, path) from exc


def _is_running(paths: ServicePaths) -> bool:
    record = read_record(paths.record)
    return record is not None and is_alive(record)


def _in_words(error: sqlite3.Error, store: Path, target: Path) -> CloudException:
    known = translate(error, store)
    if isinstance(known, DiskFull):  # the store is only read
        return DiskFull(
            f"the disk is full ({target})", hint="free some space there, or use another disk"
        )
    return known or Corrupt(
        f"The store {store} cannot be read: {error}. No backup was made of it.",
        hint="keep the backups that you have",
    )


class _FolderPlace:
    """A backup that becomes an empty folder's content."""

    def __init__(self, folder: Path) -> None:
        if any(folder.iterdir()):
            raise Conflict(
                f"{folder} is not empty", hint="name a new or an empty folder, or a file"
            )
        self._folder = folder

    @contextlib.contextmanager
    def filled(self) -> Iterator[tuple[Target, Path]]:
        """Give the target and where the store is copied to."""
        try:
            with contextlib.closing(FolderTarget(self._folder)) as target:
                yield target, self._folder / f"{STORE}.new"
            os.sync()
        except BaseException:
            for path in self._folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise


class _FilePlace:
    """A backup that becomes a tar file, which has its name when it is whole."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise Conflict(f"{path} is there already", hint="name another file")
        if not path.parent.is_dir():
            raise NotFound(f"there is no folder {path.parent}")
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")

    @contextlib.contextmanager
    def filled(self) -> Iterator[tuple[Target, Path]]:
        """Give the target and where the store is copied to."""
        store = self._path.with_name(f"{self._path.name}.store")
        try:
            is_compressed = self._path.suffix in (".gz", ".tgz")
            target = TarTarget(self._partial, compressed=is_compressed)
            with contextlib.closing(target):
                yield target, store
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.rename(self._path)
            sync_folder(self._path.parent)
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise
        finally:
            store.unlink(missing_ok=True)


@dataclass(slots=True)
class _Names:
    """What one snapshot of the store names."""

    jobs: int
    blobs: dict[str, tuple[int, str]]  # id -> bytes, sha256 or ""
    users: list[int]
    leases: set[str]


class _Backup:
    def __init__(self, home: Path, target: Target, store: Path, *, secrets: bool) -> None:
        self._home = home
        self._target = target
        self._store = store
        self._list = BackupList(__version__, os.uname().nodename, time.time(), secrets)
        self._lost: set[str] = set()

    def run(self) -> dict[str, Any]:
        for _ in range(SNAPSHOTS):
            names = self._copy_store()
            gone = self._copy_blobs(names.blobs)
            if not gone:
                break
        self._lost.update(gone)
        with self._store.open("rb") as copy:
            self._add(STORE, copy, os.fstat(copy.fileno()).st_size)
        self._store.unlink()
        self._copy_archives(names.users)
        self._copy_output(names.leases)
        if self._list.secrets:
            for file in self._names_in("secrets"):
                if belongs(name := f"secrets/{file}"):
                    self._put(name)
        self._list.lost = sorted(self._lost)
        put_list(self._target, self._list)
        files = self._list.files
        return {
            "jobs": names.jobs,
            "payloads": sum(name.startswith("blobs/") for name in files),
            "bytes": sum(size for size, _ in files.values()),
            "secrets": self._list.secrets,
            "lost": self._list.lost,
        }

    def _copy_store(self) -> _Names:
        """Make a copy of the store as it is now; return what it names."""
        self._list.made_at = time.time()
        self._store.unlink(missing_ok=True)
        os.close(os.open(self._store, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        source = f"file:{quote(str(self._home / STORE))}?mode=ro"
        with contextlib.closing(
            sqlite3.connect(source, uri=True, timeout=BUSY_SECONDS)
        ) as live:
            live.execute("VACUUM INTO ?", (str(self._store),))
        with contextlib.closing(sqlite3.connect(self._store)) as copy:
            found = [row[0] for row in copy.execute("PRAGMA quick_check(5)")]
            if found != ["ok"]:
                raise Corrupt(
                    f"The store {self._home / STORE} is damaged: {'; '.join(found)}. No backup was made of it.",
                    hint="keep the backups that you have; `picloud status` says what can still be read",
                )
            return _read_names(copy)

    def _copy_blobs(self, blobs: dict[str, tuple[int, str]]) -> list[str]:
        """Copy those that were not copied yet; return those that are not there."""
        gone = []
        for blob, (size, digest) in blobs.items():
            name = f"blobs/{blob[:2]}/{blob}"
            if name in self._list.files or name in self._lost:
                continue
            try:
                found = self._put(name)
            except FileNotFoundError:
                gone.append(name)
            else:
                if found and (self._list.files[name][0] != size or digest not in ("", found)):
                    self._lost.add(name)
        return gone

    def _copy_archives(self, users: list[int]) -> None:
        """Copy the archives of modules that are what their name says, of some user."""
        for name in self._names_of("code"):
            with contextlib.suppress(FileNotFoundError):  # nobody used it for long
                digest = self._put(name)
                archive = name.rpartition("/")[2]
                if digest and archive not in {archive_id(user, digest) for user in users}:
                    self._lost.add(name)

    def _copy_output(self, leases: set[str]) -> None:
        found = [
            name
            for name in self._names_of("logs")
            if name.rpartition("/")[2].partition(".")[0] in leases
        ]
        # of each lease the index first: of output that still grows there is then no less than it says
        for name in sorted(found, key=lambda n: (n.partition(".")[0], not n.endswith(".idx"))):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                self._put(name)

    def _names_of(self, part: str) -> Iterator[str]:
        """Yield the files of a part of the home that is divided into folders by two digits."""
        for folder in self._names_in(part):
            if len(folder) == 2:
                for file in self._names_in(f"{part}/{folder}"):
                    if belongs(name := f"{part}/{folder}/{file}"):
                        yield name

    def _names_in(self, folder: str) -> list[str]:
        """Return what is in a folder of the home; one that cannot be listed is lost."""
        try:
            return sorted(os.listdir(self._home / folder))
        except FileNotFoundError:
            return []
        except OSError:
            self._lost.add(folder)
            return []

    def _put(self, name: str) -> str:
        """Copy one file of the home; return its sha256, or "" if it cannot be read, and is lost.

        Raises:
            FileNotFoundError: it is not there.
        """
        try:
            file = (self._home / name).open("rb")
        except FileNotFoundError:
            raise
        except OSError:
            self._lost.add(name)
            return ""
        with file:
            source = SourceFile(file)
            digest = self._add(name, source, os.fstat(file.fileno()).st_size)
        if source.is_read:
            return digest
        self._lost.add(name)
        return ""

    def _add(self, name: str, source: Readable, size_bytes: int) -> str:
        content = HashedFile(source, size_bytes)
        self._target.put(name, content)
        self._list.files[name] = content.size_bytes, content.digest
        return content.digest


def _read_names(store: sqlite3.Connection) -> _Names:
    blobs = store.execute("SELECT blob, size_bytes, digest FROM blobs WHERE links > 0")
    leases = store.execute(
        "SELECT lease FROM results WHERE lease IS NOT NULL UNION SELECT lease FROM leases"
    )
    return _Names(
        store.execute("SELECT COUNT(*) FROM jobs").fetchone()[0],
        {blob: (size, digest) for blob, size, digest in blobs},
        [user for (user,) in store.execute("SELECT user_id FROM users")],
        {lease_text(lease) for (lease,) in leases},
    )
