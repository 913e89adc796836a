import asyncio
import threading
import time
from dataclasses import replace

import pytest

from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_services.metrics.service import MetricsService
from picloud_services.metrics.store import SampleStore


def samples(jid: int, count: int, start_at: float = 1000.0) -> list[ResourceSample]:
    return [
        ResourceSample(start_at + i, jid, i * 0.5, i, i, i, i, i, 1, approximate=i % 2 == 0)
        for i in range(count)
    ]


@pytest.fixture
async def metrics(tmp_path):
    service = MetricsService(tmp_path / "metrics.db", retention_seconds=100.0)
    await service.start()
    yield service
    await service.stop()


async def test_samples_when_just_added_then_are_read_before_they_are_written(metrics):
    metrics.add(samples(7, 3))
    assert await metrics.samples(7) == samples(7, 3)


async def test_samples_when_written_then_come_back_the_same_after_a_restart(tmp_path):
    service = MetricsService(tmp_path / "metrics.db")
    await service.start()
    service.add(samples(7, 50) + samples(8, 2))
    await service.stop()
    again = MetricsService(tmp_path / "metrics.db")
    await again.start()
    assert await again.samples(7) == samples(7, 50)
    assert await again.samples(7, since_at=1047.0) == samples(7, 50)[-2:]
    assert await again.samples(9) == []
    await again.stop()


async def test_samples_when_there_are_many_then_are_thinned(metrics):
    metrics.add(samples(7, 500))
    found = await metrics.samples(7, max_points=50)
    assert len(found) == 50
    assert found[-1].cpu_seconds == samples(7, 500)[-1].cpu_seconds


async def test_series_when_asked_then_gives_rates(metrics):
    metrics.add(samples(7, 10))
    [points] = await metrics.series(7)
    assert {p.cpu_cores for p in points} == {0.5}


async def test_prune_when_old_then_goes_and_the_new_stays(metrics):
    metrics.add(samples(1, 20, start_at=1000.0) + samples(2, 20, start_at=5000.0))
    await metrics._flush()
    assert await metrics.prune(5050.0) == 20
    assert await metrics.samples(1) == []
    assert len(await metrics.samples(2)) == 20


async def test_delete_when_a_job_is_deleted_then_its_samples_go(metrics):
    metrics.add(samples(1, 5) + samples(2, 5))
    await metrics._flush()
    metrics.add(samples(1, 2, start_at=2000.0))  # pending when the job goes
    metrics.forget([1])
    await metrics._flush()
    assert await metrics.samples(1) == []
    assert len(await metrics.samples(2)) == 5


def test_store_when_over_its_size_then_drops_the_oldest(tmp_path):
    store = SampleStore(tmp_path / "metrics.db")
    store.change(samples(1, 20_000))
    limit = store.used_bytes // 2
    while store.prune(0.0, limit):
        pass
    left, _ = store.read(1, 0.0, 20_000)
    assert store.used_bytes <= limit
    assert left == samples(1, 20_000)[-len(left) :]
    assert left
    store.close()


def test_store_when_the_file_is_damaged_then_it_is_put_aside(tmp_path):
    path = tmp_path / "metrics.db"
    path.write_bytes(b"this is not a database, " * 500)
    store = SampleStore(path)
    store.change(samples(1, 1))
    assert store.read(1, 0.0, 10) == (samples(1, 1), 0.0)
    assert (tmp_path / "metrics.db.broken").exists()
    store.close()


async def test_add_when_the_disk_fails_then_counts_what_is_lost(metrics):
    metrics._store._connection.execute("DROP TABLE sample")
    metrics.add(samples(1, 5))
    deadline = time.monotonic() + 5
    while metrics.dropped < 5 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert metrics.dropped == 5


def test_store_when_more_than_asked_for_then_thins_and_keeps_peaks_and_totals(tmp_path):
    store = SampleStore(tmp_path / "metrics.db")
    history = samples(1, 10_000)
    history[4321] = replace(history[4321], memory_bytes=10**9)
    store.change(history)
    found, spacing = store.read(1, 0.0, 100)
    assert 90 <= len(found) <= 101
    assert 90 <= spacing <= 110
    assert max(s.memory_bytes for s in found) == 10**9
    assert found[-1].cpu_seconds == history[-1].cpu_seconds
    store.close()


async def test_series_when_a_long_job_is_thinned_then_it_has_no_false_gap(metrics):
    metrics.add(samples(7, 10_000))
    [points] = await metrics.series(7, max_points=50)
    assert 30 <= len(points) <= 50
    assert all(abs(p.cpu_cores - 0.5) < 1e-9 for p in points)


async def test_series_when_a_thinned_job_was_not_measured_for_long_then_the_gap_stays(metrics):
    metrics.add(samples(7, 5_000))
    later = [replace(s, cpu_seconds=s.cpu_seconds + 5_000) for s in samples(7, 5_000, 20_000.0)]
    metrics.add(later)
    stretches = await metrics.series(7, max_points=50)
    assert len(stretches) == 2


def test_store_when_the_file_is_of_before_gpus_then_it_goes_on(tmp_path):
    store = SampleStore(tmp_path / "metrics.db")
    store.change(samples(7, 3))
    for column in ("gpu_percent", "gpu_memory_bytes"):
        store._connection.execute(f"ALTER TABLE sample DROP COLUMN {column}")
    store.close()
    again = SampleStore(tmp_path / "metrics.db")
    assert again.read(7, 0.0, 10)[0] == samples(7, 3)
    again.close()


def test_read_when_thinned_then_use_of_gpus_is_the_mean_and_their_memory_the_most(tmp_path):
    store = SampleStore(tmp_path / "metrics.db")
    busy = [
        replace(s, gpu_percent=100.0 * (i % 2), gpu_memory_bytes=i)
        for i, s in enumerate(samples(7, 100))
    ]
    store.change(busy)
    assert store.read(7, 0.0, 1000)[0] == busy
    thinned, _ = store.read(7, 0.0, 10)
    assert all(abs(s.gpu_percent - 50.0) < 10 for s in thinned[:-1])
    assert max(s.gpu_memory_bytes for s in thinned) == 99
    store.close()


async def test_add_while_the_disk_hangs_then_what_waits_is_bounded(metrics, monkeypatch):
    monkeypatch.setattr("picloud_services.metrics.service.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("picloud_services.metrics.service.MAX_PENDING", 100)
    hangs = threading.Event()
    waiting = metrics._in_thread(hangs.wait)
    began = asyncio.ensure_future(waiting)
    try:
        for number in range(50):
            metrics.add(samples(number, 10))
            await asyncio.sleep(0.002)
        assert 500 - metrics.dropped <= 100 + 10  # and one batch that is being written
        assert metrics._thread._work_queue.qsize() <= 1
    finally:
        hangs.set()
        await began
