"""`picloud top`: what runs now, renewed until Ctrl-C."""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Table, Text, format_bytes, format_table
from picloud_jupyter.cli.service import isolation_words
from picloud_jupyter.cloud.progress import format_seconds
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes

COLUMNS = ("jid", "time", "cpu", "memory", "type", "label", "function")
_CLEAR = "\x1b[H\x1b[J"
_SAMPLE_SECONDS = 5.0


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print one table and end")
    parser.add_argument(
        "-d",
        "--delay",
        metavar="SECONDS",
        type=float,
        default=1.0,
        help="between tables; default 1",
    )


def _run(arguments: argparse.Namespace) -> Text | None:
    if arguments.once or arguments.output == "json" or not sys.stdout.isatty():
        return _look()
    while True:
        sys.stdout.write(_CLEAR + _look().text + "\n")
        sys.stdout.flush()
        time.sleep(max(0.2, arguments.delay))


def _look() -> Text:
    client = session().client
    now = time.time()
    service = client.get(routes.SERVICE)
    jobs = client.get(routes.JOBS, {"limit": 40, "status": "processing"})["jobs"]
    for job in jobs:
        route = routes.SAMPLES.format(jid=job["jid"])
        job["samples"] = client.get(route, {"since": now - _SAMPLE_SECONDS})["samples"][-2:]
    value = {"counts": service.get("counts"), "capacity": service.get("capacity"), "jobs": jobs}
    return Text(render(service, jobs, now), value)


def render(service: Mapping[str, Any], jobs: list[dict[str, Any]], now: float) -> str:
    """Return the whole picture as text; ``now`` in UTC seconds."""
    counts = service.get("counts") or {}
    words = ", ".join(f"{number:,} {status}" for status, number in counts.items() if number)
    capacity = service.get("capacity") or {}
    head = (
        f"picloud: {capacity.get('cores', 0):g} cores, {format_bytes(capacity.get('memory_bytes', 0))}; "
        f"containers: {isolation_words(dict(service))}\njobs: {words or 'none'}\n\n"
    )
    return head + format_table(Table(COLUMNS, [_row(job, now) for job in jobs]), header=True)


def _row(job: Mapping[str, Any], now: float) -> tuple[object, ...]:
    samples = job.get("samples") or []
    started = job.get("started_at")
    return (
        job["jid"],
        format_seconds(max(0.0, now - started)) if started else "",
        cpu_percent(samples),
        format_bytes(samples[-1].get("memory_bytes")) if samples else "",
        f"{job.get('core_type')} x{job.get('cores')}",
        job.get("label") or "",
        job.get("function") or "",
    )


def cpu_percent(samples: list[dict[str, Any]]) -> str:
    """Return the CPU use between the last two samples: 100 % is one core.

    >>> cpu_percent([{"at": 1.0, "cpu_seconds": 2.0}, {"at": 2.0, "cpu_seconds": 3.5}])
    '150 %'
    """
    if len(samples) < 2:
        return ""
    before, last = samples[-2:]
    seconds = last["at"] - before["at"]
    return (
        f"{100 * (last['cpu_seconds'] - before['cpu_seconds']) / seconds:.0f} %"
        if seconds > 0
        else ""
    )


COMMAND = Command(
    "top",
    "show what runs now: time, CPU, memory; renewed every second",
    (
        "picloud top              live, until Ctrl-C",
        "picloud top --once       one table, also without a terminal",
    ),
    _run,
    _configure,
)
