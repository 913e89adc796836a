"""`picloud why`."""

import argparse
import dataclasses

from picloud_jupyter.cli.command import Command, jid_type
from picloud_jupyter.cli.output import Text
from picloud_jupyter.cloud.stories import why


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jid", metavar="JID", type=jid_type, help="one job id")


def _run(arguments: argparse.Namespace) -> Text:
    story = why(arguments.jid)
    return Text(str(story), dataclasses.asdict(story))


COMMAND = Command(
    "why",
    "tell what happened to a job, step by step, and why it stands as it does",
    (
        "picloud why 17           submitted, waited, where it ran, how it ended, what to do next",
        "picloud why 17 -o json   the same for programs",
    ),
    _run,
    _configure,
)
