"""`picloud kill`."""

import argparse

from picloud_jupyter.cli.command import Command, add_jids
from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.jid_ranges import JidRanges


def _configure(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--all", action="store_true", help="everything of yours that is not finished"
    )
    add_jids(which, optional=True)


def _run(arguments: argparse.Namespace) -> None:
    results.kill(None if arguments.all else JidRanges.of_pairs(arguments.jids))


COMMAND = Command(
    "kill",
    "end jobs and all their processes",
    (
        "picloud kill 17          end one job",
        "picloud kill --all       end everything of yours",
    ),
    _run,
    _configure,
)
