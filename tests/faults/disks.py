"""Full disks: the whole home, one of its folders, what a job writes, room for files."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.catalog import Trial, fault
from tests.faults.journal import Journal
from tests.faults.kills import wait_for_work
from tests.faults.world import World
from tests.tools.disks import fill

END_SECONDS = 15.0  # for a job that fills the disk to be ended, with its container
MIB = 1024**2
NO_ROOM = frozenset({"disk_full"})  # a large result that could not be written
# Writes to a place of its own until the disk is full or it is ended, and keeps what it wrote.
HOG = """
import sys
from picloud_jupyter import cloud

def hog(place, pause_seconds):
    import os, tempfile, time
    number = 0
    folder = {"tmp": "/tmp", "folder": ".", "home": os.path.expanduser("~")}.get(place)
    file = open(f"{folder}/hog", "wb") if folder else tempfile.TemporaryFile()
    while True:
        try:
            if place == "files":
                number += 1
                open(f"/tmp/hog-{number}", "wb").close()
            else:
                file.write(b"x" * 2**20)
                file.flush()
        except OSError:
            time.sleep(0.05)
        time.sleep(pause_seconds)

jid = cloud.call(hog, sys.argv[1], float(sys.argv[2]), _label="hog", _priority=0)
try:
    cloud.result(jid, timeout=60)
except cloud.CloudException as error:
    print(error.reason, error)
"""


@contextlib.contextmanager
def full(folder: Path, leave_bytes: int) -> Iterator[None]:
    """Fill the disk of ``folder`` for the time of the block."""
    filler = folder / "filler"
    try:
        fill(filler, leave_bytes)
        yield
    finally:
        filler.unlink(missing_ok=True)


def run_hog(world: World, place: str, pause_seconds: float) -> str:
    """Run the job that takes all it can; return how it ended: its reason, then words."""
    folder = world.folder / "submitted"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)  # the job has a uid of its own
    done = subprocess.run(
        [sys.executable, "-c", HOG, place, str(pause_seconds)],
        env={**world.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return (done.stdout or done.stderr).strip().partition("\n")[0]


@fault("full disk: the whole home", ci=4, soak=30, needs_root=True)
def fill_home(trial: Trial) -> None:
    with trial.world(home_disk="size=300m,mode=755") as world:
        world.explained = NO_ROOM
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 0.6)
            leave = trial.random.choice([0, 0, 100_000, 3 * MIB, 12 * MIB])
            with full(world.paths.home, leave):
                world.rest(0.3, 1.5)


@fault("full disk: blobs or logs alone", ci=4, soak=30, needs_root=True)
def fill_folders(trial: Trial) -> None:
    with trial.world(clients=0) as world:
        places = [world.mount(name, "size=24m,mode=700") for name in ("blobs", "logs")]
        (places[0] / "incoming").mkdir()
        world.explained = NO_ROOM
        for _ in range(2):
            world.add_client()
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 0.6)
            with full(trial.random.choice(places), trial.random.choice([0, 5_000])):
                world.rest(0.3, 1.5)


@fault("full disk: the service starts on it, and deletes", ci=1, soak=10, needs_root=True)
def start_on_full(trial: Trial) -> None:
    with trial.world(home_disk="size=200m,mode=755") as world:
        wait_for_work(world)
        world.rest(0.5, 1.0)
        clients = world.find("client")
        for client in clients:
            client.kill(signal.SIGSTOP)
        for _ in trial.rounds():
            world.service.cli("down")
            with full(world.paths.home, 0):
                status = world.service.cli("status", check=False)
                if status.returncode:
                    trial.refuse("full", f"no start: {status.stderr}")
                    continue
                done = [e["jid"] for e in world.events() if e["do"] == "ended"]
                known = [e["jids"] for e in world.events() if e["do"] == "delete"]
                left = sorted(set(done) - {jid for jids in known for jid in jids})
                if not left:
                    continue
                jid = trial.random.choice(left)
                notes = Journal(world.journals / "clients.jsonl")
                notes.note(client="nemesis", do="delete", jids=[jid])
                gone = world.service.cli("delete", str(jid), check=False)
                if gone.returncode:
                    trial.refuse("full", f"job {jid} cannot be deleted: {gone.stderr}")
        for client in clients:
            client.kill(signal.SIGCONT)


@fault("a job that fills the disk, others at work", ci=2, soak=20, needs_root=True)
def fill_by_job(trial: Trial) -> None:
    """At 200 MiB/s it is ended before others notice."""
    places = ["removed", "folder", "home", "tmp"]
    with trial.world(clients=1, home_disk="size=700m,mode=755") as world:
        wait_for_work(world)
        for number in trial.rounds():
            check_hog(trial, world, places[number % len(places)], 0.004)
        for event in world.events():
            if event["do"] == "refused":
                trial.refuse("I10", f"others were refused: {event['error']}")


@fault("a job that fills the disk as fast as it can", ci=0, soak=20, needs_root=True)
def fill_fast(trial: Trial) -> None:
    places = ["removed", "tmp"]
    with trial.world(clients=0, home_disk="size=500m,mode=755") as world:
        for number in trial.rounds():
            check_hog(trial, world, places[number % len(places)], 0.0)


@fault("a job that makes files until there is no room for more", ci=0, soak=10, needs_root=True)
def fill_inodes(trial: Trial) -> None:
    with trial.world(home_disk="size=300m,nr_inodes=9000,mode=755") as world:
        world.explained = NO_ROOM
        wait_for_work(world)
        for _ in trial.rounds():
            check_hog(trial, world, "files", 0.0005)


@fault("no room for more files in the home", ci=0, soak=20, needs_root=True)
def no_inodes(trial: Trial) -> None:
    with trial.world(home_disk="size=300m,nr_inodes=5000,mode=755") as world:
        world.explained = NO_ROOM
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 0.6)
            folder = world.paths.home / "many"
            folder.mkdir()
            made: list[Path] = []
            with contextlib.suppress(OSError):
                while True:
                    made.append(folder / str(len(made)))
                    made[-1].touch()
            world.rest(0.3, 1.5)
            for path in made:
                path.unlink(missing_ok=True)
            folder.rmdir()


def check_hog(trial: Trial, world: World, place: str, pause_seconds: float) -> None:
    """Run it; it must be ended for the right reason, and its room be free again."""
    began = time.monotonic()
    end = run_hog(world, place, pause_seconds)
    trial.figures[f"ended after, writing to {place}"] = f"{time.monotonic() - began:.1f} s"
    if not end.startswith("disk_full"):
        trial.refuse("full", f"a job that wrote to {place} all it could ended so: {end}")
    deadline = time.monotonic() + END_SECONDS
    while (left := bytes_below(world.paths.home / "layers")) > 10 * MIB:
        if time.monotonic() > deadline:
            trial.refuse("I7", f"{left // MIB} MiB that it wrote are still there")
            return
        time.sleep(0.1)


def bytes_below(folder: Path) -> int:
    """Return what the files below ``folder`` take of the disk."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(place, name)).st_blocks * 512
    return found
