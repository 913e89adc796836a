"""`picloud join`."""

import argparse

from picloud_jupyter.cli.command import Command, add_jids, add_timeout
from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.jid_ranges import JidRanges


def _configure(parser: argparse.ArgumentParser) -> None:
    add_jids(parser)
    add_timeout(parser)


def _run(arguments: argparse.Namespace) -> None:
    results.join(JidRanges.of_pairs(arguments.jids), arguments.timeout)


COMMAND = Command(
    "join",
    "wait until jobs are finished; a failed one ends the wait with exit code 3",
    ("picloud join 17          wait for one job", "picloud join 1-100 -t 60 at most a minute"),
    _run,
    _configure,
)
