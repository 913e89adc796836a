"""Old stores and new ones, fresh control planes over running jobs, and backups made meanwhile."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from picloud_jupyter.transport.paths import service_paths
from picloud_services.base.migrations import load_migrations
from tests.faults.catalog import Trial, fault
from tests.faults.invariants import ENDED
from tests.faults.kills import wait_for_work
from tests.faults.picture import take_picture
from tests.faults.world import World

CALLS = ("pwrite64", "fdatasync", "ftruncate", "unlink", "fcntl")
OPEN = """
import asyncio, sys
from pathlib import Path
from picloud_services.base.database import open_database

async def main():
    database = open_database(Path(sys.argv[1]))
    await database.open()
    await database.close()

asyncio.run(main())
"""


# ------------------------------------------------------------------------------------- migrations
@fault("kill -9 in the midst of a migration, at the N-th call", ci=6, soak=400)
def kill_migration(trial: Trial) -> None:
    with tempfile.TemporaryDirectory(prefix="picloud-fault-", dir="/var/tmp") as folder:
        old = Path(folder) / "old.db"
        make_old_store(old)
        swept = [(call, number) for call in CALLS for number in _calls(old, call)]
        trial.figures["calls of a migration"] = str(len(swept))
        trial.random.shuffle(swept)
        for _ in trial.rounds():
            if not swept:
                return
            call, number = swept.pop()
            store = _copy(old)
            struck = _open(
                store,
                "strace",
                "-f",
                "-qq",
                "-e",
                f"trace={call}",
                "-e",
                f"inject={call}:signal=KILL:when={number}",
            )
            if struck.returncode != -signal.SIGKILL:  # strace ends as its program did
                trial.miss()
            for text in look(store):
                trial.refuse("I11", f"killed at {call} {number}: {text}")


def make_old_store(path: Path) -> None:
    """Make a store as the first version left it: one job in it, and not closed well."""
    first = load_migrations()[0]
    with contextlib.closing(sqlite3.connect(path)) as store:
        store.execute("PRAGMA journal_mode=WAL")
        store.executescript(
            "CREATE TABLE schema_versions (version BIGINT PRIMARY KEY, name TEXT, applied_at DOUBLE)"
        )
        store.executescript(first.for_dialect("sqlite"))
        store.execute("INSERT INTO schema_versions VALUES (1, 'initial', 0)")
        store.execute("INSERT INTO users (user_id, done, cost_cap) VALUES (7, 1, 9)")
        store.execute(
            "INSERT INTO parts VALUES (1, 1, 7, 0, 0, 1, 0, 1, 1000.0, ?)", (b"x" * 100,)
        )
        store.execute(
            "INSERT INTO jobs (jid, batch, user_id, status, attempt) VALUES (1, 1, 7, 'done', 1)"
        )
        store.commit()


def _calls(old: Path, call: str) -> range:
    """Return how often opening the old store makes ``call``, numbered from 1."""
    store = _copy(old)
    done = _open(store, "strace", "-f", "-qq", "-c", "-e", f"trace={call}")
    for line in done.stderr.splitlines():
        words = line.split()
        if words and words[-1] == call:
            return range(1, int(words[3]) + 1)
    return range(0)


def _copy(old: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=old.parent))
    shutil.copy(old, folder / "store.db")
    return folder / "store.db"


def _open(store: Path, *before: str) -> "subprocess.CompletedProcess[str]":
    command = [*before, sys.executable, "-c", OPEN, str(store)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def look(store: Path) -> Iterator[str]:
    """Yield what is wrong with a store once it was opened again."""
    again = _open(store)
    if again.returncode:
        yield f"it cannot be opened: {again.stderr[-500:]}"
        return
    with contextlib.closing(sqlite3.connect(store)) as found:
        if (state := found.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            yield state
        versions = [row[0] for row in found.execute("SELECT version FROM schema_versions")]
        if sorted(versions) != list(range(1, len(load_migrations()) + 1)):
            yield f"it has the versions {versions}"
        row = found.execute(
            "SELECT done, max_cost, disk_bytes, (SELECT COUNT(*) FROM jobs) FROM users"
        )
        if (values := row.fetchall()) != [(1, 9.0, 164, 1)]:
            yield f"its rows are {values}"


# --------------------------------------------------------------------------------------- upgrades
@fault("a fresh control plane takes over while jobs run (up --replace)", ci=1, soak=60)
def replace(trial: Trial) -> None:
    with trial.world() as world:
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 1.0)
            world.service.cli("up", "--replace")
        lost = "SELECT COUNT(*) FROM jobs WHERE attempt > 1"
        again = _ask(world, lost)
    trial.figures["jobs that ran again"] = str(again)
    if again:
        trial.refuse("I4", f"{again} jobs ran again though only control planes were replaced")


def _ask(world: World, sql: str) -> int:
    with contextlib.closing(sqlite3.connect(world.paths.home / "store.db")) as store:
        return int(store.execute(sql).fetchone()[0])


@fault("an older version finds a store that a newer one wrote, while jobs run", ci=1, soak=20)
def downgrade(trial: Trial) -> None:
    with trial.world() as world:
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 1.0)
            for process in world.find("control plane"):
                process.kill()
            _set_newer(world, there=True)
            for process in world.find("control plane"):  # one that was faster
                process.kill()
            refused = world.service.cli("status", check=False)
            if refused.returncode != 3 or "newer version" not in refused.stderr:
                trial.refuse("words", f"{refused.returncode}: {refused.stderr[-500:]}")
            _set_newer(world, there=False)
            world.service.cli("status")


def _set_newer(world: World, *, there: bool) -> None:
    with contextlib.closing(
        sqlite3.connect(world.paths.home / "store.db", timeout=30)
    ) as store:
        if there:
            store.execute("INSERT INTO schema_versions VALUES (99, 'later', 0)")
        else:
            store.execute("DELETE FROM schema_versions WHERE version = 99")
        store.commit()


# ---------------------------------------------------------------------------------------- backups
@fault("a backup made while clients work, restored elsewhere", ci=1, soak=30)
def back_up(trial: Trial) -> None:
    with trial.world() as world:
        wait_for_work(world)
        for number in trial.rounds():
            world.rest(0.2, 1.0)
            promised = _promised(world)
            target = world.folder / f"backup-{number}.tar"
            world.service.cli("backup", str(target))
            asked = _deleted(world)
            home = world.folder / f"restored-{number}"
            restored = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "picloud_jupyter.cli",
                    "-o",
                    "json",
                    "restore",
                    str(target),
                ],
                env={**os.environ, "PICLOUD_HOME": str(home)},
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            )
            picture = take_picture(service_paths(home), world.canary)
            for jid in promised - asked - picture.jobs.keys():
                trial.refuse("I1", f"job {jid} was promised before the backup, which lacks it")
            wrong = (
                *picture.integrity,
                *picture.damaged_blobs,
                *picture.damaged_archives,
                *picture.secrets_found,
                *json.loads(restored.stdout)["lost"],
            )
            for text in wrong:
                trial.refuse("I11", f"restored: {text}")
            counts = {s: sum(j.status == s for j in picture.jobs.values()) for s in ENDED}
            if counts != picture.user_counts:
                trial.refuse(
                    "I2", f"restored: the user counts {picture.user_counts}, jobs are {counts}"
                )
            shutil.rmtree(home)
            target.unlink()


def _promised(world: World) -> set[int]:
    return {jid for event in world.events() if event["do"] == "acked" for jid in event["jids"]}


def _deleted(world: World) -> set[int]:
    return {jid for event in world.events() if event["do"] == "delete" for jid in event["jids"]}
