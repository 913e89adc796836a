"""What a disk without room costs: an optional file, never a start, and never half of anything."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from picloud_jupyter.cli.exit_codes import REFUSED
from picloud_jupyter.cloud.uploads import upload
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import DiskFull, Unavailable
from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_jupyter.transport.paths import ServicePaths
from picloud_kernels.runner.written import WrittenFiles
from picloud_services.agent.guardian import agent_record, read_agent_process
from picloud_services.agent.node_facts import find_facts
from picloud_services.base.ballast import BALLAST_BYTES
from picloud_services.base.database import open_database
from picloud_services.config import Settings
from picloud_services.metrics.service import MetricsService
from tests.tools.disks import fill, mounted
from tests.tools.running_agent import RunningAgent, make_settings, until

SAMPLE = ResourceSample(1.0, 7, 0, 0, 0, 0, 0, 0, 1)


@pytest.fixture
def disk(tmp_path):
    """A real file system of 16 MiB."""
    with mounted(tmp_path / "disk", "size=16m,mode=755") as folder:
        yield folder


async def test_samples_without_a_file_are_dropped_until_it_can_be_made(tmp_path, caplog):
    metrics = MetricsService(tmp_path / "later" / "metrics.db")
    await metrics.start()
    assert "no resource samples are kept" in caplog.text
    metrics.add([SAMPLE])
    async with asyncio.timeout(10):
        while not metrics.dropped:
            await asyncio.sleep(0.02)
    assert await metrics.samples(7) == []
    assert await metrics.prune(100.0) == 0
    (tmp_path / "later").mkdir()
    metrics.add([SAMPLE])
    await metrics.stop()
    assert metrics.dropped == 1
    assert (tmp_path / "later" / "metrics.db").exists()


async def test_reserve_that_a_kill_cut_short_is_made_whole(tmp_path):
    (tmp_path / "store.db.ballast").write_bytes(b"\0" * 1000)
    database = open_database(tmp_path / "store.db")
    await database.open()
    assert (tmp_path / "store.db.ballast").stat().st_size == BALLAST_BYTES
    await database.close()


@pytest.mark.root
async def test_reserve_does_not_take_the_last_room(disk):
    fill(disk / "filler", leave_bytes=BALLAST_BYTES + BALLAST_BYTES // 2)
    database = open_database(disk / "store.db")
    await database.open()
    assert not (disk / "store.db.ballast").exists()
    await database.close()


@pytest.mark.root
async def test_kinds_are_tried_though_the_outcome_cannot_be_kept(disk, tmp_path, caplog):
    run = disk / "run"
    run.mkdir(mode=0o700)
    (tmp_path / "home").mkdir()
    fill(disk / "filler")
    settings = Settings(ServicePaths(tmp_path / "home", run), container_kind="plain")
    facts = await find_facts(settings)
    assert facts.report.container_kind.value == "plain"
    assert "trials.json cannot be written" in caplog.text


@pytest.mark.root
async def test_agent_starts_on_a_full_run_folder_and_says_who_it_is_once_there_is_room(disk):
    run = disk / "run"
    run.mkdir(mode=0o700)
    agent = RunningAgent(make_settings(disk.parent, run))
    fill(disk / "filler")
    await agent.start()
    try:
        assert read_agent_process(agent_record(run)) is None
        (disk / "filler").unlink()
        await until(lambda: read_agent_process(agent_record(run)) is not None)
    finally:
        await agent.stop(kill=True)


@pytest.mark.root
def test_listing_that_a_full_disk_cut_short_is_not_kept(disk, tmp_path):
    written = tmp_path / "written"
    written.mkdir()
    files = WrittenFiles(str(written), str(written), str(disk))
    for number in range(500):
        (written / f"{'long' * 40}-{number}").touch()
    fill(disk / "filler", leave_bytes=8192)
    extra = files.take()
    assert "No space left" in extra["note"]
    assert os.listdir(disk) == ["filler"]


class Refusing:
    """A session whose service takes no upload to its end."""

    local = True

    def __init__(self, path: Path) -> None:
        self.client = self
        self.path = path

    def post(self, route: str, words: dict[str, object]) -> dict[str, object]:
        if route == routes.UPLOADS:
            return {"upload": "u", "path": str(self.path)}
        assert self.path.exists()
        raise Unavailable("the disk fails")


def test_payload_that_was_refused_leaves_nothing(tmp_path):
    with pytest.raises(Unavailable):
        upload(Refusing(tmp_path / "upload"), [b"x" * 10], 10)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_payload_that_does_not_fit_leaves_nothing_on_the_disk(disk):
    with pytest.raises(DiskFull, match="does not fit"):
        upload(Refusing(disk / "upload"), [b"x" * 2**25], 2**25)  # type: ignore[arg-type]
    assert os.listdir(disk) == []


def test_printing_to_a_full_disk_is_said_in_a_line():
    words = [sys.executable, "-m", "picloud_jupyter.cli", "completion", "bash"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == REFUSED
    [line] = done.stderr.splitlines()
    assert "No space left on device; free some space" in line
