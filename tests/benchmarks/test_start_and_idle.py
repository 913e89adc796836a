"""Starting: a container, the whole service; and what it costs to be idle."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from measuring import PERF, bare_python_seconds, cpu_seconds, family, median, pss_bytes
from service_under_test import ServiceUnderTest, kinds_of_this_machine

from picloud_jupyter import cloud

pytestmark = pytest.mark.benchmark

FIRST_RESULT = (
    "from picloud_jupyter import cloud; assert cloud.result(cloud.call(lambda: 7)) == 7"
)


@pytest.fixture
def fresh(tmp_path_factory):
    made = ServiceUnderTest(tmp_path_factory.mktemp("bench-fresh"), kinds_of_this_machine()[0])
    yield made
    made.end()


def up_to_first_result(made):
    t = PERF()
    subprocess.run(
        [sys.executable, "-m", "picloud_jupyter.cli", "up"],
        env={**os.environ, **made.environment},
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [sys.executable, "-c", FIRST_RESULT], env={**os.environ, **made.environment}, check=True
    )
    return PERF() - t


def test_up_to_first_result(fresh, table):
    warm = []
    for _ in range(4):
        warm.append(up_to_first_result(fresh))
        fresh.cli("down")
    table.add(
        "`picloud up` to first result, warm caches",
        min(warm[1:]),
        1.0,
        "s",
        f"median {median(warm[1:]):.2f} s; two client interpreters included",
    )
    if os.geteuid() == 0:
        subprocess.run(["sync"], check=True)
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
        table.add(
            "`picloud up` to first result, dropped caches", up_to_first_result(fresh), 2.0, "s"
        )
        fresh.cli("down")


def test_idle_cost(fresh, table):
    fresh.start()
    cloud.result(cloud.map(lambda x: x, range(100)))
    cloud.close()
    time.sleep(62)
    status = fresh.status()
    processes = family([status["pid"], status["agent_pid"]], str(fresh.home))
    before = cpu_seconds(processes)
    time.sleep(20)
    used = (cpu_seconds(processes) - before) / 20
    table.add(
        "idle: memory of everything kept",
        pss_bytes(processes) / 2**20,
        100,
        "MiB PSS",
        ", ".join(
            f"{p.name()}:{p.memory_full_info().pss // 2**20}"
            for p in processes
            if p.is_running()
        ),
    )
    table.add("idle: share of a core", used * 100, 0.5, "%")


def test_fresh_container(bench_service, table):
    """Asks for single-use containers; the service reports when each runner's first line ran."""
    from container_start import first_instruction_seconds

    bare, ours = [], []
    for _ in range(15):
        bare.append(bare_python_seconds())
        ours.append(first_instruction_seconds(bench_service.kind))
    table.add(
        "fresh container to first Python instruction",
        median(ours) / median(bare),
        2.3,
        "x bare",
        f"{median(ours) * 1e3:.1f} ms; bare {median(bare) * 1e3:.1f} ms",
    )


def test_warm_runner(bench_service, table):
    def when():
        import time

        return time.time()

    cloud.result(cloud.call(when))
    gaps = []
    for _ in range(60):
        jid = cloud.call(when)
        started = cloud.result(jid)
        gaps.append(started - cloud.info(jid, "created")[jid]["created"].timestamp())
    table.add("warm runner: created to first instruction", median(gaps) * 1e3, 1.0, "ms")


def test_sampling_a_hundred_containers(table):
    from container_sampling import sampling_share

    share = sampling_share(containers=100, ticks=20)
    table.add("sampling 100 containers at 1 Hz", share * 100, 0.2, "% of core")


def test_processes_are_gone(fresh):
    fresh.start()
    status = fresh.status()
    fresh.cli("down")
    assert not psutil.pid_exists(status["pid"])
