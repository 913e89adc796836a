"""Fixtures of the benchmarks: the table, the peers' figures, one service."""

import compileall
import os

import pytest

import picloud_jupyter
import picloud_kernels
import picloud_services
from tests.benchmarks import measuring, work
from tests.tools.service_under_test import ServiceUnderTest, kinds_of_this_machine

collect_ignore = ["peer.py", "run_all.py"]
TABLE = measuring.Table()


@pytest.fixture(scope="session")
def table():
    return TABLE


def pytest_terminal_summary(terminalreporter):
    if TABLE.rows:
        terminalreporter.section("figures (value, goal)")
        for row in TABLE.rows:
            terminalreporter.line(row.line())
        short = [row.what for row in TABLE.rows if not row.reached]
        terminalreporter.line(f"{len(TABLE.rows) - len(short)} of {len(TABLE.rows)} reached")


@pytest.fixture(scope="session", autouse=True)
def compiled():
    """Compile what this checkout runs, as pip does for the peers and for whoever installs this."""
    for root in (picloud_jupyter, picloud_kernels, picloud_services):
        assert compileall.compile_dir(root.__path__[0], quiet=1)


@pytest.fixture(scope="session", autouse=True)
def spin():
    """Calibrate the one-millisecond function for this machine, now."""
    work.SPIN = measuring.calibrate_spin()
    os.environ["BENCH_SPIN"] = str(work.SPIN)


@pytest.fixture(scope="session")
def peers():
    """Figures of Ray and Dask, measured in this run before anything of ours is up."""
    python = os.environ.get("PICLOUD_BENCH_PEERS_PYTHON")
    if not python:
        pytest.skip("no peers: run `make bench`, which installs them")
    return {name: measuring.run_peer(python, name) for name in ("ray", "dask")}


@pytest.fixture(scope="session")
def bench_service(peers, tmp_path_factory):
    """One service for the warm figures; the peers were measured and stopped before."""
    started = ServiceUnderTest(
        tmp_path_factory.mktemp("bench-home"), kinds_of_this_machine()[0]
    )
    started.start()
    yield started
    started.end()
