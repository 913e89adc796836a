"""The end of a control plane, as it is asked for."""

import asyncio
from pathlib import Path
from typing import Any

from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.app.control_plane import ControlPlane
from picloud_services.config import Settings


async def test_stop_when_the_intent_cannot_be_written_then_it_stops_all_the_same(
    tmp_path: Path, caplog
):
    nobody: Any = None
    paths = ServicePaths(tmp_path / "home", tmp_path / "gone")
    plane = ControlPlane(Settings(paths), nobody, nobody)
    plane.stop(kill_jobs=True)
    async with asyncio.timeout(20):
        await plane._stopping.wait()
    assert plane._kill_jobs
    assert "cannot be written" in caplog.text
