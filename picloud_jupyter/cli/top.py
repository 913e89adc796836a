"""`picloud top`: what runs now, renewed until Ctrl-C."""

import argparse
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

from picloud_jupyter.cli.command import Command, seconds_type
from picloud_jupyter.cli.output import Table, Text, format_bytes, format_table
from picloud_jupyter.cli.service import isolation_words
from picloud_jupyter.cloud.progress import format_seconds
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import NotFound
from picloud_jupyter.transport.client import Client

COLUMNS = ("jid", "time", "cpu", "memory", "type", "label", "function")
_CLEAR = "\x1b[H\x1b[J"
_SAMPLE_SECONDS = 5.0


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print one table and end")
    parser.add_argument(
        "-d",
        "--delay",
        metavar="SECONDS",
        type=seconds_type,
        default=1.0,
        help="between tables; default 1",
    )


def _run(arguments: argparse.Namespace) -> Text | None:
    if arguments.once or arguments.output == "json" or not sys.stdout.isatty():
        return _look()
    while True:
        columns, lines = shutil.get_terminal_size()
        sys.stdout.write(_CLEAR + fit(_look().text, columns, lines - 1) + "\n")
        sys.stdout.flush()
        time.sleep(max(0.2, arguments.delay))


def _look() -> Text:
    client = session().client
    now = time.time()
    service = client.get(routes.SERVICE)
    jobs = client.get(routes.JOBS, {"limit": 40, "status": "processing"})["jobs"]
    for job in jobs:
        job["samples"] = _samples(client, job["jid"], now - _SAMPLE_SECONDS)
    value = {"counts": service.get("counts"), "capacity": service.get("capacity"), "jobs": jobs}
    return Text(render(service, jobs, now), value)


def _samples(client: Client, jid: int, since: float) -> list[dict[str, Any]]:
    """The last two samples of a job; none of one that was deleted since it was listed."""
    try:
        found = client.get(routes.SAMPLES.format(jid=jid), {"since": since})
    except NotFound:
        return []
    return list(found["samples"][-2:])


def fit(text: str, columns: int, lines: int) -> str:
    r"""Return ``text`` cut to a screen, so that none of it is scrolled away.

    >>> fit("jobs: 3\n17    a long name\n18\n19", 10, 3).splitlines()
    ['jobs: 3', '17    a lo', '... 2 more']
    """
    every = text.splitlines()
    shown = every if len(every) <= lines else every[: max(0, lines - 1)]
    rest = [f"... {len(every) - len(shown)} more"] if len(shown) < len(every) else []
    return "\n".join(line[:columns] for line in [*shown, *rest])


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
