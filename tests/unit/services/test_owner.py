"""The process whose end is the end of a service."""

import asyncio
import subprocess
import sys

import pytest

from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.agent.processes import Process, find_process
from picloud_services.app.owner import at_end_of, parse_owner, remove_all


def test_parse():
    assert parse_owner("") is None
    assert parse_owner("12:345") == Process(12, 345)
    for wrong in ("12", "a:b", "12:", ":3", "1:2:3"):
        with pytest.raises(ValueError, match="PID:START_TIME"):
            parse_owner(wrong)


async def test_action_is_called_when_it_ends_or_has_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        owner = find_process(child.pid)
        assert owner is not None
        ended = asyncio.Event()
        at_end_of(owner, ended.set)
        await asyncio.sleep(0.05)
        assert not ended.is_set()
        child.communicate(b"\n")
    async with asyncio.timeout(10):
        await ended.wait()
        gone = asyncio.Event()
        at_end_of(owner, gone.set)
        await gone.wait()


def test_everything_is_removed_also_what_is_read_only(tmp_path):
    paths = ServicePaths(tmp_path / "home", tmp_path / "run")
    (paths.home / "bundle").mkdir(parents=True)
    (paths.home / "bundle" / "x").write_text("x")
    (paths.home / "bundle").chmod(0o500)
    paths.run.mkdir()
    remove_all(paths, 0)
    assert list(tmp_path.iterdir()) == []
