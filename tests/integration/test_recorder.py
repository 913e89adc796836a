"""In which order reports get into the store, and large results while the disk refuses."""

import asyncio
import contextlib
import errno
import random
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from picloud_services.base.clock import SystemClock
from picloud_services.base.database import Database, open_database
from picloud_services.base.sql import Transaction
from picloud_services.blobs.store import BlobRef
from picloud_services.dispatch.engine import Chunk, EngineEvent
from picloud_services.dispatch.recorder import Recorded, Recorder
from picloud_services.jobs.lifecycle import Terms
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.outcomes import Outcome, Report, Rules, RulesOf, record
from picloud_services.jobs.returns import end_all
from tests.tools.fake_engine import Does
from tests.tools.job_system import USER, MemoryBlobs, running_system


def returns_a_file(_chunk, _position, _argument) -> Does:
    return Does(extra={"file": "0123456789abcdef", "size": 5, "digest": ""})


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), OSError(errno.EMFILE, "descriptors"), TypeError()]
)
async def test_record_when_a_result_cannot_be_adopted_then_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("picloud_services.dispatch.recorder.RETRY_SECONDS", 0.01)
    async with running_system(tmp_path, behaviour=returns_a_file) as system:
        adopt, failures = system.blobs.adopt, [error]

        async def fail_once(blob: str, *, size_bytes: int, digest: str = "") -> BlobRef:
            if failures:
                raise failures.pop()
            return await adopt(blob, size_bytes=size_bytes, digest=digest)

        monkeypatch.setattr(system.blobs, "adopt", fail_once)
        jid = await system.call()
        await system.join(jid, seconds=5)
        assert await system.status(jid) == "done"
        assert system.blobs.adopted == ["0123456789abcdef"]


async def test_record_when_the_machine_is_unwell_for_long_then_no_result_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("picloud_services.dispatch.recorder.RETRY_SECONDS", 0.01)
    async with running_system(tmp_path, behaviour=returns_a_file) as system:
        write, failures = system.database.write, [OSError(errno.EIO, "input/output")] * 10

        def fail_long(work, *rest, **options):
            if system.blobs.adopted and failures:
                raise failures.pop()
            return write(work, *rest, **options)

        monkeypatch.setattr(system.database, "write", fail_long)
        jid = await system.call()
        await system.join(jid, seconds=5)
        assert await system.status(jid) == "done"


def writes_files(_chunk, _position, _argument) -> Does:
    files = {"file": "fedcba9876543210", "size": 5, "count": 1, "left": 0}
    return Does(extra={"file": "0123456789abcdef", "size": 5, "digest": "", "files": files})


async def test_record_when_an_element_wrote_files_then_both_blobs_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("picloud_services.dispatch.recorder.RETRY_SECONDS", 0.01)
    async with running_system(tmp_path, behaviour=writes_files) as system:
        write, failures = system.database.write, [OSError(errno.ENOSPC, "full")]

        def fail_once(work, *rest, **options):
            if system.blobs.adopted and failures:
                raise failures.pop()  # the blobs are there by then; they are not adopted again
            return write(work, *rest, **options)

        monkeypatch.setattr(system.database, "write", fail_once)
        jid = await system.call()
        await system.join(jid, seconds=5)
        assert system.blobs.adopted == ["fedcba9876543210", "0123456789abcdef"]
        assert not failures
        assert system.blobs.used == [
            "0123456789abcdef",
            "fedcba9876543210",
        ]  # while they waited


@dataclass
class Recording:
    """A recorder on a true store, and what came of what it took, in order."""

    database: Database
    folder: Path
    committed: list[EngineEvent] = field(default_factory=list)
    acknowledged_n: int = 0
    taken: int = 0

    def __post_init__(self) -> None:
        self.recorder = Recorder(
            self.database,
            MemoryBlobs(self.folder),  # type: ignore[arg-type]  # what the recorder needs of it
            LiveJobs(),
            SystemClock(),
            lambda _lease, _batch: Rules(Terms()),
            self._committed,
            self._acknowledge,
        )

    def take(self, lease: int, count: int) -> None:
        """Report ``count`` ends of a lease that nobody holds: they change nothing."""
        self.taken += 1
        items = [[k, "done", 1.0, 0.0, 0, 0, 0, None] for k in range(count)]
        fields = {"items": items, "end": False}
        self.recorder.take(EngineEvent("n1", "batch", self.taken, f"{lease:016x}", fields))

    async def all_committed(self) -> list[int]:
        """Return the numbers of the reports in the order of their commits."""
        async with asyncio.timeout(20):
            while len(self.committed) < self.taken:
                await asyncio.sleep(0.001)
        return [event.n for event in self.committed]

    def _committed(self, recorded: Recorded) -> None:
        self.committed += [event for event, _ in recorded]

    def _acknowledge(self, _node: str, n: int) -> None:
        assert {event.n for event in self.committed} >= set(range(1, n + 1))
        self.acknowledged_n = max(self.acknowledged_n, n)


@contextlib.asynccontextmanager
async def recording_on(folder: Path) -> AsyncIterator[Recording]:
    database = open_database(folder / "store.db")
    await database.open()
    try:
        yield Recording(database, folder)
    finally:
        await database.close()


@contextlib.contextmanager
def held(database: Database) -> Iterator[None]:
    """While inside: the store is busy with something long."""
    gate = threading.Event()
    database.write(lambda _tx: gate.wait(20))
    try:
        yield
    finally:
        gate.set()


async def test_single_result_when_long_chunks_report_then_it_passes_them(
    tmp_path: Path,
) -> None:
    async with recording_on(tmp_path) as recording:
        with held(recording.database):
            recording.take(lease=1, count=400)
            recording.take(lease=2, count=400)
            recording.take(lease=3, count=1)
            await asyncio.sleep(0)
        assert await recording.all_committed() == [3, 1, 2]
        assert recording.acknowledged_n == 3


async def test_last_result_of_a_long_chunk_when_it_is_short_then_it_keeps_its_place(
    tmp_path: Path,
) -> None:
    async with recording_on(tmp_path) as recording:
        with held(recording.database):
            recording.take(lease=1, count=400)
            recording.take(lease=1, count=1)
            recording.take(lease=2, count=1)
            await asyncio.sleep(0)
        assert await recording.all_committed() == [3, 1, 2]


@pytest.mark.parametrize("seed", range(8))
async def test_reports_whatever_their_sizes_then_each_lease_keeps_its_order(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    async with recording_on(tmp_path) as recording:
        for _ in range(120):
            recording.take(chance.randrange(6), chance.choice([1, 1, 1, 3, 40, 300]))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice([0, 0.001]))
        await recording.all_committed()
        assert recording.acknowledged_n == 120
        for lease in {event.lease for event in recording.committed}:
            numbers = [event.n for event in recording.committed if event.lease == lease]
            assert numbers == sorted(numbers)


@pytest.mark.parametrize("also_its_end", [False, True])
async def test_report_that_cannot_be_entered_ends_its_lease_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also_its_end: bool
) -> None:
    monkeypatch.setattr("picloud_services.dispatch.recorder.RETRY_SECONDS", 0.01)
    refused: set[str] = set()

    def enter(tx: Transaction, report: Report, rules_of: RulesOf) -> Outcome:
        if report.lease in refused:
            raise KeyError("position")
        return record(tx, report, rules_of)

    def end(tx: Transaction, lease: str, *rest: Any, began: bool) -> Outcome:
        if also_its_end:
            raise KeyError("lease")
        return end_all(tx, lease, *rest, began=began)

    def behave(chunk: Chunk, _position: int, argument: bytes) -> Does:
        if argument == b"bad":
            refused.add(chunk.lease)
        return Does()

    monkeypatch.setattr("picloud_services.dispatch.recorder.record", enter)
    monkeypatch.setattr("picloud_services.dispatch.recorder.end_all", end)
    async with running_system(tmp_path, behaviour=behave) as system:
        bad = await system.call(b"bad")
        good = [await system.call() for _ in range(5)]
        for jid in good:
            assert await system.join(jid, seconds=5) == {"done": 1}
        if not also_its_end:
            assert await system.join(bad, seconds=5) == {"error": 1}
            item = await system.service.result(USER, bad)
            assert item.reason == "incompatible"
            assert "KeyError" in item.message
