"""Results and payloads that are read while they expire or are deleted: whole, or refused in words."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import NotFound
from picloud_services.base.sql import Statement
from picloud_services.blobs.filesystem import FileBlobStore
from picloud_services.blobs.store import PIECE_BYTES, BlobRef
from picloud_services.jobs.retention import Limits, Retention
from tests.tools.job_system import USER, System, running_system

BODY = b"r" * 3000
LARGE = os.urandom(4 * PIECE_BYTES)


@pytest.fixture
async def system(tmp_path) -> AsyncIterator[System]:
    async with running_system(tmp_path) as found:
        yield found


def retention(system: System) -> Retention:
    return Retention(
        system.database,
        system.engine,
        system.accounts,
        system.dispatcher._clock,
        Limits(retention_seconds=-1.0, unread_seconds=-1.0),
    )


async def test_results_read_while_they_expire_are_whole_or_said_to_be_gone(system):
    jids = await system.map([BODY] * 400, part_count=50)
    await system.join(jids)
    first, last = jids[0]
    seen = {"whole": 0, "gone": 0}

    async def read() -> None:
        for _ in range(20):
            for at in range(first, last, 80):
                system.service._results.forget([(at, at + 79)])
                answer = await system.service.results(
                    USER, [(at, min(at + 79, last))], limit_bytes=10**6
                )
                for item in answer.items:
                    if item.body is None:
                        assert "Its result was removed" in item.message
                        seen["gone"] += 1
                    else:
                        assert item.body == BODY
                        seen["whole"] += 1

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(read()) for _ in range(3)]
        while not seen["whole"]:
            await asyncio.sleep(0)
        await retention(system).prune()
        await asyncio.gather(*readers)
    assert seen["whole"]
    assert seen["gone"]


async def test_results_read_while_they_are_deleted_are_whole_or_unknown(system):
    jids = await system.map([BODY] * 2000, part_count=500)
    await system.join(jids)
    first, last = jids[0]
    seen = {"whole": 0, "unknown": 0}

    async def read() -> None:
        for at in range(last, first, -7):
            try:
                item = await system.service.result(USER, at)
            except NotFound:
                seen["unknown"] += 1
            else:
                assert item.body == BODY
                seen["whole"] += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        group.create_task(system.service.delete(USER, jids))
    with pytest.raises(NotFound):
        await system.service.result(USER, first)
    assert sum(seen.values()) == len(range(last, first, -7))
    left = Statement("SELECT COUNT(*) FROM results")
    assert await system.database.read(lambda tx: tx.value(left)) == 0


async def test_payload_that_is_swept_while_it_is_read_is_whole(tmp_path: Path, monkeypatch):
    blobs = FileBlobStore(tmp_path)
    refs = []
    for number in range(8):
        blob = f"{number:032x}"
        blobs.incoming_path(blob).write_bytes(LARGE)
        refs.append(await blobs.adopt(blob, size_bytes=len(LARGE)))

    async def read(ref: BlobRef) -> bool:
        try:
            return b"".join([piece async for piece in blobs.stream(ref)]) == LARGE
        except NotFound:
            return True

    async def none_named(_blobs: object) -> set[str]:
        return set()

    look, gone = blobs.local_path, asyncio.Event()

    async def then_gone(ref: BlobRef) -> Path:  # as the sweep may come in just then
        path = await look(ref)
        if ref is refs[-1]:
            await gone.wait()
        return path

    monkeypatch.setattr(blobs, "local_path", then_gone)
    readers = [asyncio.ensure_future(read(ref)) for ref in refs]
    await asyncio.sleep(0)
    swept = await blobs.sweep(none_named, now_at=time.time() + 10, grace_seconds=0)
    assert swept == len(refs)
    gone.set()
    assert all(await asyncio.gather(*readers))
