"""The checker notices: each promise is broken on purpose in what a real, healthy run left."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from picloud_jupyter.transport.paths import ServicePaths
from tests.faults.invariants import Figures, check
from tests.faults.journal import read_journal
from tests.faults.picture import cgroups_of_containers, find_leftovers, take_picture
from tests.faults.world import World
from tests.tools.service_under_test import kinds_of_this_machine

WORK_SECONDS = 4.0


@dataclass(frozen=True)
class Left:
    """A copy of what a run left, to be damaged; ``broken`` are the invariants that do not hold."""

    paths: ServicePaths
    journals: Path
    canary: str
    figures: Figures

    def broken(self) -> set[str]:
        picture = take_picture(self.paths, self.canary)
        picture.leftovers = find_leftovers(self.paths, cgroups_of_containers(), down=True)
        events = list(read_journal(self.journals / "clients.jsonl"))
        effects = list(read_journal(self.journals / "effects.jsonl"))
        found = check(events, effects, picture, self.figures)
        return {violation.invariant for violation in found}

    def store(self, statement: str, *values: object) -> None:
        """Change the store behind the back of its service, exactly one row."""
        with contextlib.closing(sqlite3.connect(self.paths.home / "store.db")) as db, db:
            assert db.execute(statement, values).rowcount == 1

    def ask(self, query: str) -> int:
        with contextlib.closing(sqlite3.connect(self.paths.home / "store.db")) as db:
            (value,) = db.execute(query).fetchone()
            return int(value)

    def note(self, journal: str, **event: object) -> None:
        with (self.journals / f"{journal}.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def jid(self, kind: str) -> int:
        """Return a job of that kind which is done and was read."""
        events = list(read_journal(self.journals / "clients.jsonl"))
        tokens = {e["token"] for e in events if e["do"] == "submit" and e["kind"] == kind}
        asked = {jid for e in events if e["do"] in ("kill", "delete") for jid in e["jids"]}
        return next(
            int(e["jid"])
            for e in events
            if e["do"] == "ended"
            and e["token"] in tokens
            and e["reason"] == "done"
            and e["jid"] not in asked
        )


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Figures]]:
    """What a run without any fault left: its service is down, its files are there."""
    folder = tmp_path_factory.mktemp("healthy")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    world = World(folder, kinds_of_this_machine()[0], Random(7), {})
    try:
        world.start()
        world.add_client()
        world.rest(WORK_SECONDS, WORK_SECONDS)
        troubles, figures = world.settle()
        assert troubles == []
        yield world, figures
    finally:
        world.end()


@pytest.fixture
def left(healthy: tuple[World, Figures], tmp_path: Path) -> Left:
    world, figures = healthy
    home, run, journals = (tmp_path / name for name in ("home", "run", "outside"))
    shutil.copytree(world.paths.home, home)
    run.mkdir()
    shutil.copytree(world.journals, journals)
    return Left(ServicePaths(home, run), journals, world.canary, figures)


def test_healthy_run_breaks_nothing(left):
    assert left.broken() == set()


def test_i1_a_store_that_forgets_a_job(left):
    left.store("DELETE FROM jobs WHERE jid = ?", left.jid("call"))
    assert "I1" in left.broken()


def test_i1_a_submit_entered_twice(left):
    jid = left.jid("call")
    batch = left.ask(f"SELECT batch FROM jobs WHERE jid = {jid}")
    names = "user_id, kind, is_map, spec, function_digest, label, priority, dependencies, state"
    left.store(
        f"INSERT INTO batches (batch, {names}, created_at, heard_at, open)"
        f" SELECT 999999, {names}, 0, 0, 0 FROM batches WHERE batch = ?",
        batch,
    )
    assert left.broken() == {"I1"}


def test_i2_a_second_end(left):
    left.store(
        "UPDATE jobs SET status = 'killed', reason = 'killed' WHERE jid = ?", left.jid("call")
    )
    assert "I2" in left.broken()


def test_i2_an_end_that_was_counted_twice(left):
    left.store("UPDATE users SET done = done + 1")
    assert left.broken() == {"I2"}


def test_i2_a_job_without_an_end(left):
    left.store("UPDATE jobs SET status = 'queued' WHERE jid = ?", left.jid("call"))
    assert "I2" in left.broken()


def test_i2_a_result_that_nobody_names(left):
    left.store("UPDATE jobs SET result = NULL WHERE jid = ?", left.jid("call"))
    assert "I2" in left.broken()


@pytest.mark.parametrize("times", [1, 2])
def test_i3_a_lease_that_outlives_its_job(left, times):
    for lease in range(times):
        left.store(
            "INSERT INTO leases VALUES (?, 1, 1, ?, 1, 0, 1, 'node', 'slot', 0, 0)",
            lease + 1,
            left.jid("call"),
        )
    assert left.broken() == {"I3"}


def test_i3_a_late_attempt_that_won(left):
    left.store("UPDATE jobs SET attempt = 5 WHERE jid = ?", left.jid("call"))
    assert left.broken() == {"I3"}


def test_i4_a_job_that_may_not_restart_and_did(left):
    jid = left.jid("once_only")
    left.note("effects", what="start", jid=jid, attempt=1, lease="other", token="", index=0)
    assert left.broken() == {"I4"}


def test_i4_a_job_that_is_done_and_never_ran(left):
    jid = left.jid("call")
    path = left.journals / "effects.jsonl"
    kept = [e for e in read_journal(path) if (e["jid"], e["what"]) != (jid, "start")]
    path.write_text("".join(json.dumps(event) + "\n" for event in kept))
    assert left.broken() == {"I4"}


def test_i5_a_wrong_result(left):
    left.note("clients", do="ended", jid=left.jid("call"), reason="done", right=False, token="")
    assert left.broken() == {"I5"}


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_i5_a_damaged_blob(left, damage):
    blob = next((left.paths.home / "blobs").glob("??/*"))
    if damage == "gone":
        blob.unlink()
    else:
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.chmod(0o600)
        blob.write_bytes(data if damage == "flipped" else data[:-1])
    assert left.broken() == {"I5"}


def test_i7_a_leaked_mount(left):
    if os.geteuid():
        pytest.skip("mounting needs root")
    folder = left.paths.home / "layers"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    try:
        assert left.broken() == {"I7"}
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_i7_a_leaked_layer(left):
    (left.paths.home / "layers" / "0123456789ab").mkdir()
    assert left.broken() == {"I7"}


def test_i7_a_half_received_file(left):
    (left.paths.home / "blobs" / "incoming" / "half").touch()
    assert left.broken() == {"I7"}


def test_i7_a_leaked_socket(left):
    with socket.socket(socket.AF_UNIX) as forgotten:
        os.chdir(left.paths.run)  # its path would be too long
        forgotten.bind("api.sock")
        assert left.broken() == {"I7"}


def test_i7_a_leaked_process(left):
    program = [sys.executable, "-c", "import time; time.sleep(60)", str(left.paths.run)]
    with subprocess.Popen(program) as process:
        assert left.broken() == {"I7"}
        process.kill()


def test_i7_a_leaked_cgroup(left):
    parent = Path("/sys/fs/cgroup/pids/picloud")
    if not os.access(parent, os.W_OK):
        pytest.skip("no cgroup of ours to write to")
    known = cgroups_of_containers()
    (parent / "0123456789ab").mkdir()
    try:
        found = find_leftovers(left.paths, known, down=False)
        assert "the cgroup 0123456789ab of a container that is gone" in found
    finally:
        (parent / "0123456789ab").rmdir()


def test_i8_a_damaged_archive_of_modules(left):
    folder = left.paths.home / "code" / "ab"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "abcd", "w") as archive:
        archive.writestr("module.py", "x = 1\n" * 100)
    assert left.broken() == set()
    data = bytearray((folder / "abcd").read_bytes())
    data[60] ^= 1
    (folder / "abcd").write_bytes(data)
    assert left.broken() == {"I8"}


def test_i9_a_backlog_that_does_not_drain(left):
    slow = replace(left, figures=Figures(drain_seconds=31.0, drain_limit_seconds=10.0))
    assert slow.broken() == {"I9"}


def test_i9_a_submit_that_never_ends(left):
    left.note("clients", do="settled", unread=1)
    assert left.broken() == {"I9"}


@pytest.mark.parametrize("figures", [{"others_failed": 1}, {"others_p99_ratio": 2.5}])
def test_i10_others_that_suffer(left, figures):
    assert replace(left, figures=replace(left.figures, **figures)).broken() == {"I10"}


def test_i11_a_damaged_store(left):
    path = left.paths.home / "store.db"
    data = bytearray(path.read_bytes())
    page = left.ask("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_failed'") - 1
    size = left.ask("SELECT page_size FROM pragma_page_size")
    data[page * size : page * size + 8] = b"\x0a\xff\xff\xff\xff\xff\xff\xff"
    path.write_bytes(data)
    assert "I11" in left.broken()


def test_i12_a_reason_that_is_not_on_the_list(left):
    left.store("UPDATE jobs SET reason = 'broken' WHERE jid = ?", left.jid("call"))
    assert "I12" in left.broken()


def test_i12_an_end_that_no_fault_explains(left):
    jid = left.jid("once_only")
    left.store("UPDATE jobs SET status = 'error', reason = 'oom' WHERE jid = ?", jid)
    assert "I12" in left.broken()


@pytest.mark.parametrize("where", ["service.log", "store.db", "logs/x"])
def test_i13_a_secret_that_leaked(left, where):
    path = left.paths.home / where
    path.parent.mkdir(exist_ok=True)
    if where == "store.db":
        left.store("UPDATE jobs SET message = ? WHERE jid = ?", left.canary, left.jid("call"))
    else:
        with path.open("a") as file:
            file.write(f"Authorization: {left.canary}\n")
    assert left.broken() == {"I13"}
