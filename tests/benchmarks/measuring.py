"""Tools of the benchmarks: floors, process figures, rows of the table."""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import psutil

from tests.benchmarks import work

HERE = os.path.dirname(os.path.abspath(__file__))
PERF = time.perf_counter


@dataclass
class Row:
    """One line of the table; ``reached`` compares ``value`` with ``goal`` in the given direction."""

    what: str
    value: float
    goal: float
    unit: str
    detail: str = ""
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def line(self) -> str:
        sign = ">=" if self.at_least else "<="
        mark = "reached" if self.reached else "SHORT"
        return f"{self.what:58} {self.value:10.3g} {sign} {self.goal:<8.4g} {self.unit:10} {mark:8} {self.detail}"


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)

    def add(self, *args, **kwargs) -> Row:
        row = Row(*args, **kwargs)
        self.rows.append(row)
        print("\n" + row.line(), flush=True)
        return row


def median(values):
    return statistics.median(values)


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def calibrate_spin() -> int:
    """Return the loop count of about 1 ms on one core."""

    def spin(n):
        total = 0
        for i in range(n):
            total += i

    best = 9.0
    for _ in range(30):
        t = PERF()
        spin(20_000)
        best = min(best, PERF() - t)
    return int(20_000 * 1e-3 / best)


def two_bare_processes_seconds(count: int) -> float:
    """Return the wall seconds of ``count`` one-millisecond calls in two plain processes."""
    code = f"import sys; sys.path.insert(0, {HERE!r}); import work\nfor i in range({count // 2}): work.one_millisecond(i)"
    t = PERF()
    running = [
        subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", code],
            env=dict(os.environ, BENCH_SPIN=str(work.SPIN)),
        )
        for _ in range(2)
    ]
    for process in running:
        process.wait()
    return PERF() - t


def bare_python_seconds() -> float:
    t = PERF()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return PERF() - t


def run_peer(python: str, name: str) -> dict[str, float]:
    """Return the figures of a peer, measured now in a process of its own."""
    import json

    done = subprocess.run(
        [python, os.path.join(HERE, "peer.py"), name],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line[7:])
    raise RuntimeError(f"{name} gave no figures:\n{done.stdout[-500:]}{done.stderr[-1500:]}")


def family(pids: list[int], marker: str) -> list[psutil.Process]:
    """Return the service's processes: ``pids``, their descendants, and whoever carries ``marker``."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.pid in pids or marker in words:
                found[process.pid] = process
                for child in process.children(recursive=True):
                    found[child.pid] = child
        except psutil.Error:
            continue
    return list(found.values())


def pss_bytes(processes) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def cpu_seconds(processes) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.Error:
            continue
    return total
