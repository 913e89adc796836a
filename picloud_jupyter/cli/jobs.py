"""`picloud list`: the newest jobs."""

import argparse

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Table
from picloud_jupyter.cloud.job_table import COLUMNS, jobs, row
from picloud_jupyter.protocol.jobs import Status


def _limit_type(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of jobs from 0 up")
    return int(text)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--limit", type=_limit_type, default=20, help="how many; default 20"
    )
    parser.add_argument("-l", "--label", help="only those with this label")
    parser.add_argument("-s", "--status", choices=[s.value for s in Status], help="only those")
    parser.add_argument("-m", "--map", type=int, help="only those of this map (see info)")
    parser.add_argument("-b", "--before", metavar="JID", type=int, help="older than this job")


def _run(arguments: argparse.Namespace) -> Table:
    found = jobs(
        arguments.limit,
        label=arguments.label,
        status=arguments.status,
        map=arguments.map,
        before=arguments.before,
    )
    return Table(COLUMNS, [row(job) for job in found])


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
