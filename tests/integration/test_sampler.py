"""Samples of real processes without a control group; tests/linux has those with one."""

import asyncio
import os
import subprocess
import sys

import pytest

from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_services.agent.sampler import SampledContainer, Sampler

HOLD = "x = bytearray(100_000_000); print('+', flush=True); input()"


class RecordingSampler(Sampler):
    """A sampler that keeps what it delivers and reports."""

    def __init__(self) -> None:
        self.delivered: list[ResourceSample] = []
        self.over: list[tuple[str, int, int]] = []
        super().__init__(self.delivered.extend, lambda *found: self.over.append(found))


@pytest.fixture
def holder():
    """A process that stands for a supervisor's child and holds 100 MB."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.communicate(b"\n")


@pytest.fixture
async def sampler():
    sampler = RecordingSampler()
    yield sampler
    await sampler.stop()


def container(**fields) -> SampledContainer:
    return SampledContainer("a", os.getpid(), os.getpid(), **fields)


async def test_sample_when_a_job_runs_then_has_its_figures(sampler, holder):
    sampler.add(container())
    sampler.set_running("a", 7)
    [sample] = sampler.sample()
    assert sample.jid == 7
    assert sample.memory_bytes > 100_000_000
    assert sample.processes >= 1
    assert sample.approximate


async def test_sample_when_idle_or_removed_then_nothing_is_read(sampler):
    sampler.add(container())
    assert sampler.sample() == []
    sampler.set_running("a", 7)
    sampler.set_running("a", None)
    assert sampler.sample() == []
    sampler.set_running("a", 7)
    sampler.remove("a")
    sampler.set_running("a", 8)
    assert sampler.sample() == []


async def test_sample_when_the_proxy_counts_traffic_then_that_is_taken(sampler):
    sampler.add(container(traffic=lambda: (70, 50)))
    sampler.set_running("a", 7)
    [sample] = sampler.sample()
    assert (sample.network_received_bytes, sample.network_sent_bytes) == (70, 50)


async def test_sample_when_the_container_is_gone_then_others_are_still_read(sampler):
    sampler.add(SampledContainer("gone", 2**22 + 5, 2**22 + 5))
    sampler.add(container())
    sampler.set_running("gone", 1)
    sampler.set_running("a", 2)
    assert [s.jid for s in sampler.sample()] == [2]


async def test_start_when_a_job_runs_then_delivers_each_second(sampler):
    sampler.add(container())
    sampler.set_running("a", 7)
    sampler.start()
    async with asyncio.timeout(5):
        while len(sampler.delivered) < 2:
            await asyncio.sleep(0.01)
    first, second = sampler.delivered[:2]
    assert 0.8 < second.at - first.at < 1.5
    assert second.cpu_seconds >= first.cpu_seconds


async def test_check_when_memory_is_over_the_limit_then_reported_once_per_job(sampler, holder):
    sampler.add(container(memory_limit_bytes=90_000_000))
    sampler.set_running("a", 7)
    sampler.check_limits()
    sampler.check_limits()
    [(name, used, limit)] = sampler.over
    assert (name, limit) == ("a", 90_000_000)
    assert used > 100_000_000
    sampler.set_running("a", 8)
    sampler.check_limits()
    assert len(sampler.over) == 2


async def test_check_when_memory_is_within_the_limit_then_nothing_is_said(sampler, holder):
    sampler.add(container(memory_limit_bytes=2_000_000_000))
    sampler.set_running("a", 7)
    sampler.check_limits()
    assert sampler.over == []


async def test_start_when_a_watched_job_grows_then_it_is_told_in_time(sampler, holder):
    sampler.add(container(memory_limit_bytes=50_000_000))
    sampler.set_running("a", 7)
    async with asyncio.timeout(2):
        while not sampler.over:
            await asyncio.sleep(0.01)
