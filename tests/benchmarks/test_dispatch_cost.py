"""What service, dispatcher and store cost by themselves: a fake engine, SQLite with full durability.

Figures are of this process's CPU, the fake engine's own part included; latency has the disk in it.
"""

import resource
import time

import pytest

from tests.benchmarks.measuring import PERF, median, percentile
from tests.tools.fake_engine import FakeEngine
from tests.tools.job_system import USER, System, running_system

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]


async def run_map(system: System, count: int) -> dict[str, float]:
    """Run a map of no-ops and fetch its results; return figures per element and the peak memory."""
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started, cpu = PERF(), time.process_time()
    jids = await system.map([b"1"] * count)
    while not (await system.service.wait(USER, jids, timeout_seconds=60)).finished:
        pass
    ended, done_cpu = PERF(), time.process_time()
    first, fetched = jids[0][0], 0
    while fetched < count:
        rest = [(first + fetched, first + count - 1)]
        fetched += len((await system.service.results(USER, rest, limit_bytes=10**8)).items)
    all_cpu = time.process_time()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "jobs_per_second": count / (ended - started),
        "done_us": (done_cpu - cpu) / count * 1e6,
        "all_us": (all_cpu - cpu) / count * 1e6,
        "more_bytes": peak_bytes - before_bytes,
    }


async def call_and_wait(system: System, count: int) -> tuple[list[float], float]:
    """Return the seconds of each of ``count`` calls, and the CPU seconds of one."""
    seconds = []
    cpu = time.process_time()
    for _ in range(count):
        started = PERF()
        jid = await system.call(b"x")
        answer = await system.service.results(
            USER, [(jid, jid)], limit_bytes=1000, wait_seconds=30
        )
        assert answer.items
        seconds.append(PERF() - started)
    return seconds, (time.process_time() - cpu) / count


async def test_map_and_calls_through_service_and_store(tmp_path, table):
    async with running_system(tmp_path, engine=FakeEngine(keep=False)) as system:
        await run_map(system, 2000)
        small = await run_map(system, 10_000)
        await call_and_wait(system, 100)
        few, cpu_few = await call_and_wait(system, 300)
        started = PERF()
        await system.service.list_jobs(USER, limit=50)
        list_few = PERF() - started
        large = await run_map(system, 1_000_000)
        many, _ = await call_and_wait(system, 300)
        started = PERF()
        await system.service.list_jobs(USER, limit=50)
        list_many = PERF() - started
    table.add(
        "control plane: CPU of a no-op in a map, results fetched", small["all_us"], 20, "us"
    )
    table.add(
        "control plane: map of 10,000",
        small["jobs_per_second"],
        25_000,
        "jobs/s",
        at_least=True,
    )
    table.add(
        "control plane: map of 1,000,000 beside 10,000",
        large["jobs_per_second"] / small["jobs_per_second"],
        0.8,
        "x",
        at_least=True,
    )
    table.add("control plane: memory of 1,000,000", large["more_bytes"] / 2**20, 200, "MiB")
    table.add("control plane: CPU of a call", cpu_few * 1e6, 250, "us", "two commits of it")
    detail = f"p99 {percentile(few, 99) * 1e3:.1f} ms"
    table.add("control plane: call and wait", median(few) * 1e3, 1.0, "ms", detail)
    table.add(
        "control plane: call with 1,000,000 jobs beside 10,000",
        median(many) / median(few),
        1.1,
        "x",
    )
    table.add(
        "control plane: newest 50 of 1,000,000 beside 10,000", list_many / list_few, 1.5, "x"
    )
