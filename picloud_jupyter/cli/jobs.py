"""`picloud list`: the newest jobs."""

import argparse
import datetime
from typing import Any

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Table
from picloud_jupyter.cloud.progress import format_seconds
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.jobs import Status

COLUMNS = ("jid", "status", "reason", "created", "runtime", "label", "function")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--limit", type=int, default=20, help="how many; default 20")
    parser.add_argument("-l", "--label", help="only those with this label")
    parser.add_argument("-s", "--status", choices=[s.value for s in Status], help="only those")
    parser.add_argument("-m", "--map", type=int, help="only those of this map (see info)")
    parser.add_argument("-b", "--before", metavar="JID", type=int, help="older than this job")


def _run(arguments: argparse.Namespace) -> Table:
    return Table(COLUMNS, [row(line) for line in newest(arguments.limit, arguments)])


def newest(limit: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return at most ``limit`` jobs, newest first."""
    names = ("label", "status", "before", "map")
    query = {
        name: value for name in names if (value := getattr(arguments, name, None)) is not None
    }
    jobs: list[dict[str, Any]] = session().client.get(routes.JOBS, {"limit": limit, **query})[
        "jobs"
    ]
    return jobs


def row(job: dict[str, Any]) -> tuple[object, ...]:
    """Return one line of the table."""
    started, finished = job.get("started_at"), job.get("finished_at")
    runtime = format_seconds(finished - started) if started and finished else ""
    return (
        job["jid"],
        job["status"],
        job.get("why") or job.get("reason") or "",
        _local(job.get("created_at")),
        runtime,
        job.get("label") or "",
        job.get("function") or "",
    )


def _local(at: float | None) -> str:
    if at is None:
        return ""
    return (
        datetime.datetime.fromtimestamp(at, tz=datetime.UTC)
        .astimezone()
        .strftime("%Y-%m-%d %H:%M:%S")
    )


COMMAND = Command(
    "list",
    "list the newest jobs",
    (
        "picloud list                  the newest twenty",
        "picloud list -s error -n 100  failed ones",
        "picloud list -l primer-pi     those with a label",
    ),
    _run,
    _configure,
    aliases=("ls",),
)
