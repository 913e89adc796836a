"""The end of a control plane, and what it tells of itself."""

import asyncio
from pathlib import Path
from typing import Any

from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.app.control_plane import ControlPlane
from picloud_services.app.facts import size_of
from picloud_services.config import Settings


def test_size_when_a_file_goes_while_it_is_measured_then_that_of_the_others(tmp_path: Path):
    (tmp_path / "store.db").write_bytes(b"x" * 10_000)
    files = [tmp_path / "store.db-wal", tmp_path / "store.db"]
    assert size_of(files) == size_of(files[1:]) >= 10_000


async def test_stop_when_the_intent_cannot_be_written_then_it_stops_all_the_same(
    tmp_path: Path, caplog
):
    nobody: Any = None
    paths = ServicePaths(tmp_path / "home", tmp_path / "gone")
    plane = ControlPlane(Settings(paths), nobody, nobody, nobody)
    plane.stop(kill_jobs=True)
    async with asyncio.timeout(20):
        await plane._stopping.wait()
    assert plane._kill_jobs
    assert "cannot be written" in caplog.text
