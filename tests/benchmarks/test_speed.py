"""Latency, throughput and bulk figures beside Ray and Dask. Everything of ours is durable."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest

from picloud_jupyter import cloud
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from tests.benchmarks import work
from tests.benchmarks.measuring import PERF, median, percentile, two_bare_processes_seconds

pytestmark = pytest.mark.benchmark
CALLER = str(Path(__file__).with_name("caller.py"))


def local(function):
    """Return ``function`` as one defined in a notebook would be: it travels by value."""
    import types

    copy = types.FunctionType(
        function.__code__, {"SPIN": work.SPIN}, function.__name__, function.__defaults__
    )
    copy.__module__ = "__main__"
    return copy


def newest(limit):
    """Return the newest jobs, as `picloud list` asks for them."""
    return session().client.get(routes.JOBS, {"limit": limit})["jobs"]


noop, echo = local(work.noop), local(work.echo)


def timed_calls(count):
    seconds = []
    for i in range(count):
        t = PERF()
        assert cloud.result(cloud.call(noop, i)) == i
        seconds.append(PERF() - t)
    return seconds


def test_call_and_wait(bench_service, peers, table):
    timed_calls(30)
    ours = median(timed_calls(400)) * 1e3
    table.add(
        "call and wait, median / Ray's",
        ours / peers["ray"]["latency_ms"],
        1.25,
        "x Ray",
        f"{ours:.2f} ms; Ray {peers['ray']['latency_ms']:.2f}, Dask {peers['dask']['latency_ms']:.2f}",
    )
    table.add(
        "call and wait, median / Dask's", ours / peers["dask"]["latency_ms"], 0.2, "x Dask"
    )


def test_map_of_ten_thousand(bench_service, peers, table):
    cloud.result(cloud.map(noop, range(2_000)))
    rates = []
    for _ in range(3):
        t = PERF()
        assert cloud.result(cloud.map(noop, range(10_000))) == list(range(10_000))
        rates.append(10_000 / (PERF() - t))
    rate = median(rates)
    detail = f"{rate:,.0f} jobs/s; Ray {peers['ray']['map_jobs_per_second']:,.0f}, Dask {peers['dask']['map_jobs_per_second']:,.0f}"
    table.add(
        "map of 10,000 no-ops / Ray's",
        rate / peers["ray"]["map_jobs_per_second"],
        10,
        "x Ray",
        detail,
        at_least=True,
    )
    table.add(
        "map of 10,000 no-ops / Dask's",
        rate / peers["dask"]["map_jobs_per_second"],
        30,
        "x Dask",
        at_least=True,
    )


def test_ten_thousand_jobs_of_a_millisecond(bench_service, table):
    job = local(work.one_millisecond)
    cloud.result(cloud.map(job, range(500)))
    floor = two_bare_processes_seconds(10_000)
    t = PERF()
    assert cloud.result(cloud.map(job, range(10_000))) == list(range(10_000))
    ours = PERF() - t
    floor = (floor + two_bare_processes_seconds(10_000)) / 2
    table.add(
        "10,000 jobs of 1 ms, share of ideal",
        floor / ours,
        0.9,
        "of ideal",
        f"{ours:.2f} s; two bare processes {floor:.2f} s",
        at_least=True,
    )


def test_hundred_megabytes_there_and_back(bench_service, peers, table):
    import numpy

    control = psutil.Process(bench_service.status()["pid"])
    before = control.memory_info().rss
    seconds = []
    for k in range(4):
        array = numpy.random.default_rng(k).random(12_500_000)
        t = PERF()
        back = cloud.result(cloud.call(echo, array))
        seconds.append(PERF() - t)
        assert back.nbytes == array.nbytes
        assert back[-1] == array[-1]
        del back
    ours = median(seconds[1:])
    table.add(
        "100 MB in and out / Dask's",
        ours / peers["dask"]["bulk_seconds"],
        2,
        "x Dask",
        f"{ours:.2f} s; Dask {peers['dask']['bulk_seconds']:.2f}, Ray {peers['ray']['bulk_seconds']:.2f}",
    )
    table.add(
        "control plane's growth over 400 MB moved",
        (control.memory_info().rss - before) / 2**20,
        50,
        "MiB",
    )


def test_map_of_a_million(bench_service, table):
    t = PERF()
    cloud.result(cloud.map(noop, range(10_000)))
    small_rate = 10_000 / (PERF() - t)
    control = psutil.Process(bench_service.status()["pid"])
    before = control.memory_info().rss
    peak, stop = [before], threading.Event()

    def watch():
        while not stop.is_set():
            peak.append(control.memory_info().rss)
            time.sleep(0.25)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with subprocess.Popen(
        [sys.executable, CALLER], stdin=PIPE, stdout=PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "ready\n"
        t = PERF()
        jids = cloud.map(noop, range(1_000_000))
        submitted = PERF() - t
        said, _ = caller.communicate("")
    waits = json.loads(said)
    cloud.join(jids)
    finished = PERF() - t
    stop.set()
    watcher.join()
    total = 0
    for k, value in enumerate(cloud.iresult(jids, num_in_parallel=1024)):
        total += value == k
        if k == 20_000:
            break
    assert total == 20_001
    assert set(cloud.status(jids[::50_000])) == {"done"}
    rate = 1_000_000 / finished
    table.add(
        "map of 1,000,000: jobs/s / the 10,000 figure",
        rate / small_rate,
        0.8,
        "x",
        f"{finished:.0f} s, submitted in {submitted:.0f} s; {rate:,.0f} against {small_rate:,.0f} jobs/s",
        at_least=True,
    )
    table.add(
        "map of 1,000,000: control plane's growth", (max(peak) - before) / 2**20, 200, "MiB"
    )
    table.add(
        "call and wait beside its submission, p99",
        percentile(waits, 99) * 1e3,
        10,
        "ms",
        f"median {median(waits) * 1e3:.1f} ms, n={len(waits)}, another process",
    )


def test_store_of_a_million_jobs(bench_service, table, tmp_path_factory):
    """Runs after the million: compares this store with a nearly empty one."""
    from tests.benchmarks.measuring import PERF as clock
    from tests.tools.service_under_test import ServiceUnderTest

    def figures():
        submit, listing = [], []
        for _ in range(60):
            t = clock()
            cloud.call(noop, 1)
            submit.append(clock() - t)
        for _ in range(60):
            t = clock()
            assert len(newest(50)) == 50
            listing.append(clock() - t)
        return median(submit), median(listing)

    rounds = []
    empty = ServiceUnderTest(tmp_path_factory.mktemp("bench-empty"), bench_service.kind)
    try:
        for _ in range(3):
            bench_service.start()
            full = figures()
            empty.start()
            cloud.result(cloud.map(noop, range(1_000)))
            rounds.append((full, figures()))
    finally:
        empty.end()
        bench_service.start()
    table.add(
        "store of 1,000,000: submit / with 1,000",
        median([f[0] / e[0] for f, e in rounds]),
        1.1,
        "x",
        f"{rounds[-1][0][0] * 1e3:.2f} ms",
    )
    table.add(
        "store of 1,000,000: newest 50 / with 1,000",
        median([f[1] / e[1] for f, e in rounds]),
        1.1,
        "x",
        f"{rounds[-1][0][1] * 1e3:.2f} ms",
    )
