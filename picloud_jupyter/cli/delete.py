"""`picloud delete`."""

import argparse

from picloud_jupyter.cli.command import Command, add_jids
from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.jid_ranges import JidRanges


def _run(arguments: argparse.Namespace) -> None:
    results.delete(JidRanges.of_pairs(arguments.jids))


COMMAND = Command(
    "delete",
    "remove finished jobs with their results and output",
    ("picloud delete 17        remove one job", "picloud delete 1-1000    remove many"),
    _run,
    add_jids,
)
