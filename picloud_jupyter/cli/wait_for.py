"""`picloud wait-for`."""

import argparse

from picloud_jupyter.cli.command import Command, add_timeout, jid_type
from picloud_jupyter.cloud import wait_for
from picloud_jupyter.protocol.jobs import Status


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("status",), help="what of the job")
    parser.add_argument("jid", metavar="JID", type=jid_type, help="a job id")
    parser.add_argument("status", metavar="STATUS", choices=[s.value for s in Status])
    add_timeout(parser)


def _run(arguments: argparse.Namespace) -> str:
    return wait_for.status(arguments.jid, arguments.status, arguments.timeout)


COMMAND = Command(
    "wait-for",
    "wait until a job has a status; exit code 3 when it never will, or in time",
    (
        "picloud wait-for status 17 processing       until it runs",
        "picloud wait-for status 17 done -t 60       at most a minute",
    ),
    _run,
    _configure,
)
