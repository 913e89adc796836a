"""Looking at a submitter's paths: a disk that does not answer stops one submit, and not the service."""

import asyncio
import threading

import pytest

from picloud_jupyter.protocol.errors import InvalidRequest, Unavailable
from picloud_jupyter.protocol.jobs import HostPython
from picloud_services.base.clock import SystemClock
from picloud_services.environments import readable
from picloud_services.environments.service import EnvironmentService

PYTHON = HostPython("/bin/sh", "/usr", "/usr", "3.11.2", paths=("/usr",))


async def test_check_when_a_disk_does_not_answer_then_others_are_served_and_it_is_named(
    monkeypatch,
):
    dead, free = threading.Event(), EnvironmentService(SystemClock())

    def allows(path: str, _mode: int) -> bool:
        if path == "/dead":
            dead.wait(20)
        return True

    monkeypatch.setattr(readable, "_allows", allows)
    monkeypatch.setattr(readable, "LOOK_SECONDS", 0.5)
    hanging = asyncio.create_task(free.check(0, PYTHON, "/dead"))
    await asyncio.sleep(0)
    async with asyncio.timeout(0.4):
        assert await free.check(0, PYTHON, "/usr")
    with pytest.raises(Unavailable, match="/dead"):
        await hanging
    dead.set()


async def test_check_when_asked_again_soon_then_the_disk_is_not(monkeypatch):
    asked: list[str] = []

    def allows(path: str, _mode: int) -> bool:
        asked.append(path)
        return True

    monkeypatch.setattr(readable, "_allows", allows)
    service = EnvironmentService(SystemClock())
    first = await service.check(0, PYTHON, "/usr")
    count = len(asked)
    assert await service.check(0, PYTHON, "/usr") == first
    assert len(asked) == count
    await service.check(0, PYTHON, "/bin")
    assert "/bin" in asked


async def test_check_when_a_folder_is_not_there_then_refused_each_time():
    service = EnvironmentService(SystemClock())
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="/no/such"):
            await service.check(0, PYTHON, "/no/such")
