"""Power cuts with a lost page cache: the home is an image of ext4, and what survives is what was in it.

All processes are stopped, the image is copied, and everything is killed; then the copy is mounted in the
image's place, as after a reboot. What a program wrote and did not wait for is in no copy.
"""

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from picloud_services.agent.processes import Process, find_process
from tests.faults.catalog import Trial, fault
from tests.faults.kills import wait_for_work
from tests.faults.picture import CGROUPS, cgroups_of_containers
from tests.faults.world import ROLES, World

IMAGE_BYTES = 384 * 1024**2
NEW_CLIENTS = 2


@dataclass(slots=True)
class Disk:
    """A disk that can lose its power: ``image`` is mounted at ``place``."""

    image: Path
    place: Path

    def copy(self) -> Path:
        """Return a copy of the image at one moment: one that changed meanwhile is copied again."""
        found = self.image.with_suffix(".copy")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            _run("cp", "--sparse=always", self.image, found)
            if subprocess.run(["cmp", "-s", self.image, found], check=False).returncode == 0:
                return found
        raise AssertionError("the image never stood still")

    def replace(self, image: Path) -> None:
        """Mount ``image`` in the place of the one that lost its power."""
        eventually_unmount(self.place)
        image.replace(self.image)
        self.mount()

    def mount(self) -> None:
        """Mount the image; nothing but fsync writes it soon."""
        _run("mount", "-o", "loop,commit=300", self.image, self.place)


@contextlib.contextmanager
def ext4_image(place: Path) -> Iterator[Disk]:
    """Give a small ext4 that is mounted at ``place``."""
    with tempfile.TemporaryDirectory(prefix="picloud-disk-", dir="/dev/shm") as folder:
        image = Path(folder) / "image"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", image)
        place.mkdir()
        disk = Disk(image, place)
        disk.mount()
        try:
            yield disk
        finally:
            eventually_unmount(place)
            shutil.rmtree(place)


def eventually_unmount(place: Path) -> None:
    """Unmount ``place`` as soon as no process that was just killed is in it."""
    deadline = time.monotonic() + 20
    while subprocess.run(["umount", place], check=False, capture_output=True).returncode:
        if time.monotonic() > deadline:
            _run("umount", place)
        time.sleep(0.05)


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def cut_power(world: World, disk: Disk) -> None:
    """Lose all processes and what was not on the disk, and boot again."""
    everybody = [process for role in ROLES for process in world.find(role)]
    for process in everybody:
        process.kill(signal.SIGSTOP)
    survives = disk.copy()
    # Those that were stopped between fork and exec are found by their role no more.
    while victims := [
        process
        for process in {*everybody, *(p for role in ROLES for p in world.find(role))}
        if find_process(process.pid) == process
    ]:
        for process in victims:
            process.kill(signal.SIGKILL)
        for client in world.clients:
            client.poll()  # reaped
        wait_for_end(victims)
    world.all_died_at = time.time()
    world.clients.clear()
    disk.replace(survives)
    boot(world)
    for _ in range(NEW_CLIENTS):
        world.add_client()


def boot(world: World) -> None:
    """Make of the machine what a boot makes of it."""
    bundles = world.paths.home / "bundle"
    if bundles.exists():  # its name has the boot's id in it, which does not change here
        subprocess.run(["rm", "-rf", bundles], check=True)
    if world.random.random() < 0.5:  # where the folder of sockets is in memory
        shutil.rmtree(world.paths.run, ignore_errors=True)
        deadline = time.monotonic() + 10
        while left := cgroups_of_containers() - world._known_cgroups:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"control groups that nobody is in cannot be removed: {left}"
                )
            for path in (path for name in left for path in CGROUPS.rglob(name)):
                with contextlib.suppress(OSError):
                    path.rmdir()


def wait_for_end(processes: list[Process]) -> None:
    """Return when all have ended."""
    deadline = time.monotonic() + 20
    while any(find_process(process.pid) == process for process in processes):
        if time.monotonic() > deadline:
            raise AssertionError("killed processes are still there")
        time.sleep(0.01)


@fault(
    "power cut: what was not on the disk is lost", ci=1, soak=50, needs_root=True, whole=True
)
def cut_again_and_again(trial: Trial) -> None:
    disks: list[Disk] = []
    with trial.world(disk=keeping(disks)) as world:
        for _ in trial.rounds():
            wait_for_work(world)
            world.rest(0.2, 1.5)
            cut_power(world, disks[0])
            world.rest(0.5, 2.0)


def keeping(disks: list[Disk]) -> Callable[[Path], contextlib.AbstractContextManager[Disk]]:
    """Return what makes an image, and notes it in ``disks``."""

    @contextlib.contextmanager
    def make(place: Path) -> Iterator[Disk]:
        with ext4_image(place) as disk:
            disks.append(disk)
            yield disk

    return make
