"""What ``%%picloud`` costs beside the same cell run in the kernel, and how much output it bears."""

import pytest

from tests.benchmarks.measuring import PERF, median
from tests.tools.live_kernel import LiveKernel, last_jid

pytestmark = pytest.mark.benchmark
ROUNDS = 60
OUTPUT_BYTES = 100_000_000
LINE_BYTES = 100


@pytest.fixture(scope="module")
def kernel(bench_service, tmp_path_factory):
    kernel = LiveKernel(tmp_path_factory.mktemp("notebook"))
    kernel.run("%load_ext picloud_jupyter").check()
    kernel.run("%%picloud\nx = 1").check()
    yield kernel
    kernel.end()


def milliseconds(kernel, code):
    found = []
    for _ in range(ROUNDS):
        begun = PERF()
        kernel.run(code).check()
        found.append((PERF() - begun) * 1e3)
    return median(found)


def test_a_trivial_cell(kernel, table):
    here = milliseconds(kernel, "x = 1")
    there = milliseconds(kernel, "%%picloud\nx = 1")
    table.add(
        "%%picloud trivial cell, warm, over the same cell locally, median",
        there - here,
        15.0,
        "ms",
        f"{there:.1f} ms, locally {here:.1f}",
    )


def test_a_hundred_megabytes_of_output(bench_service, kernel, table):
    lines = OUTPUT_BYTES // LINE_BYTES
    code = f"%%picloud\nfor i in range({lines}):\n    print(f'{{i:0{LINE_BYTES - 1}d}}')"
    begun = PERF()
    request = kernel.start(code)
    kernel.listen(request, lambda ran: ran.stdout)
    table.add("first line of 100 MB in the notebook", (PERF() - begun) * 1e3, 100.0, "ms")
    ran = kernel.finish(request, seconds=50).check()
    seconds = PERF() - begun
    table.add(
        "text of 100 MB that the notebook gets",
        len(ran.stdout) / 1e6,
        1.0,
        "MB",
        f"in {seconds:.1f} s",
    )
    log = bench_service.cli("logs", str(last_jid(kernel))).stdout.splitlines()
    assert [int(line) for line in log] == list(range(lines))
