"""`picloud status`."""

import argparse
import time

from picloud_jupyter.cli.command import Command, add_jids
from picloud_jupyter.cli.output import Table, Text
from picloud_jupyter.cli.service import describe_service, read_service
from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.jid_ranges import JidRanges
from picloud_jupyter.cloud.session import session


def _run(arguments: argparse.Namespace) -> Table | Text:
    if arguments.jids is None:
        service = read_service(session().client)
        return Text(describe_service(service, time.time()), service)
    jids = JidRanges.of_pairs(arguments.jids)
    return Table(("jid", "status"), list(zip(jids, results.status(jids), strict=True)))


COMMAND = Command(
    "status",
    "show the service (kind of isolation, limits, disk use), or the status of jobs",
    (
        "picloud status           the service; it is started if needed",
        "picloud status 17        one job",
        "picloud status 1-4,9     several; ranges include both ends",
        "picloud -o json status   the service as one JSON object",
    ),
    _run,
    lambda parser: add_jids(parser, optional=True),
)
