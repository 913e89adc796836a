"""Takes a picture of a service: its store, its files, and what it left on the machine."""

import contextlib
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from picloud_jupyter.transport.paths import ServicePaths
from tests.faults.invariants import COUNTED, ENDED, BatchRow, JobRow, LeaseRow, Picture

CGROUPS = Path("/sys/fs/cgroup")


def take_picture(paths: ServicePaths, canary: str = "") -> Picture:
    """Return what the service of ``paths`` holds; ``canary`` is the value of a secret."""
    picture = Picture()
    with contextlib.closing(_open(paths.home / "store.db")) as store:
        _read_rows(store, picture)
        picture.integrity = [*_integrity(store)]
        picture.damaged_blobs = [*_damaged_blobs(store, paths.home / "blobs")]
    picture.damaged_archives = [*_damaged_archives(paths.home / "code")]
    if canary:
        picture.secrets_found = [*_files_with(canary.encode(), paths)]
    return picture


def _open(path: Path) -> sqlite3.Connection:
    # Read only, beside the service's own connection, which alone writes and folds its log in.
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)


def _read_rows(store: sqlite3.Connection, picture: Picture) -> None:
    for row in store.execute("SELECT jid, batch, status, reason, attempt, result FROM jobs"):
        picture.jobs[row[0]] = JobRow(*row)
    counted = ", ".join(COUNTED)
    for batch, label, is_open, *counts in store.execute(
        f"SELECT batch, label, open, {counted} FROM batches"  # names of columns
    ):
        numbers = dict(zip(COUNTED, counts, strict=True))
        picture.batches[batch] = BatchRow(batch, label, is_open, numbers)
    sums = ", ".join(f"SUM({name})" for name in ENDED)
    (row,) = store.execute(f"SELECT {sums} FROM users")  # names of columns
    picture.user_counts = dict(zip(ENDED, (value or 0 for value in row), strict=True))
    for row in store.execute("SELECT lease, first_jid, next_position, count FROM leases"):
        picture.leases.append(LeaseRow(*row))
    picture.results = dict(store.execute("SELECT result, links FROM results"))


def _integrity(store: sqlite3.Connection) -> Iterator[str]:
    try:
        for (line,) in store.execute("PRAGMA integrity_check"):
            if line != "ok":
                yield line
    except sqlite3.DatabaseError as error:  # too damaged to be examined
        yield str(error)
    for row in store.execute("PRAGMA foreign_key_check"):
        yield f"a row without its parent: {row}"


def _damaged_blobs(store: sqlite3.Connection, folder: Path) -> Iterator[str]:
    rows = store.execute("SELECT blob, size_bytes, digest FROM blobs WHERE links > 0")
    for blob, size, digest in rows.fetchall():
        path = folder / blob[:2] / blob
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                right = not digest or hashlib.file_digest(file, "sha256").hexdigest() == digest
        except FileNotFoundError:
            yield f"blob {blob} is named by a row and is not there"
            continue
        if found != size or not right:
            yield f"blob {blob} has {found} of {size} bytes{'' if right else ', not those sent'}"


def _damaged_archives(folder: Path) -> Iterator[str]:
    import zipfile

    for path in folder.glob("??/*"):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            damaged = str(error)
        if damaged:
            yield f"the archive of modules {path.name} is damaged: {damaged}"


def _files_with(canary: bytes, paths: ServicePaths) -> Iterator[str]:
    for folder in (paths.home, paths.run):
        for path in folder.rglob("*"):
            if path.parent.name == "secrets" or not stat.S_ISREG(path.lstat().st_mode):
                continue
            with contextlib.suppress(FileNotFoundError):
                if canary in path.read_bytes():
                    yield str(path)


def find_leftovers(paths: ServicePaths, known_cgroups: set[str], *, down: bool) -> list[str]:
    """Return what of finished jobs, or of a service that is ``down``, is still on the machine.

    ``known_cgroups`` were there before this service was.
    """
    own = {path.name for path in (paths.run / "c").glob("*")}
    gone = (
        own if down else set()
    )  # the folder of a container outlives it where both were forgotten
    found = [*_mounts(paths), *_container_folders(paths, own - gone)]
    alive = _containers_of_this_machine(paths) - gone
    for name in sorted(cgroups_of_containers() - known_cgroups - alive):
        found.append(f"the cgroup {name} of a container that is gone")
    if down:
        found += [*_processes(paths), *_sockets(paths)]
    return found


def _mounts(paths: ServicePaths) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split()[4]
        if where.startswith((f"{paths.home}/", f"{paths.run}/")):
            yield f"a mount at {where}"


def _container_folders(paths: ServicePaths, alive: set[str]) -> Iterator[str]:
    for path in (paths.home / "layers").glob("*"):
        if path.name not in alive:
            yield f"the layer {path.name} of a container that is gone"
    for path in (paths.home / "blobs" / "incoming").glob("*"):
        yield f"a half-received file {path.name}"


def cgroups_of_containers() -> set[str]:
    """Return the names below each `picloud` cgroup of this machine in which nothing runs.

    What runs is somebody's container: processes that were left are found as such.
    """
    return {
        entry.name
        for root, folders, _ in os.walk(CGROUPS)
        for parent in [Path(root)]
        if parent.name == "picloud"
        for entry in map(parent.joinpath, folders)
        if not _members(entry)
    }


def _members(group: Path) -> str:
    with contextlib.suppress(OSError):
        return (group / "cgroup.procs").read_text()
    return "it went just now"


def _containers_of_this_machine(paths: ServicePaths) -> set[str]:
    return {path.name for path in paths.run.parent.glob("picloud-*/c/*")}


def _processes(paths: ServicePaths) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ")
            if str(paths.run).encode() in words + (process / "environ").read_bytes():
                yield f"process {process.name}: {words[:120].decode(errors='replace')}"


def _sockets(paths: ServicePaths) -> Iterator[str]:
    for path in paths.run.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                yield f"the socket {path}"
