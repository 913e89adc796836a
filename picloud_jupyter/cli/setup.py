"""`picloud setup`: what PiCloud asked for, and what is needed now."""

import argparse
import os
import sys

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Text
from picloud_jupyter.cli.service import isolation_words, read_service
from picloud_jupyter.cloud.session import session


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-e", "--email", nargs="?", const="", help=argparse.SUPPRESS)
    add("-p", "--password", nargs="?", const="", help=argparse.SUPPRESS)
    # without a default, which would take the place of the key in `picloud -a KEY setup`
    hidden = argparse.SUPPRESS
    add("-a", "--api-key", nargs="?", const="", default=hidden, help=hidden)


def _run(arguments: argparse.Namespace) -> Text:
    if any(value is not None for value in (arguments.email, arguments.password)):
        print("picloud: there is no account to log in to; nothing was sent", file=sys.stderr)
    client = session().client
    service = read_service(client)
    if not client.endpoint.local:
        where = (
            f"Jobs run in the service at {os.environ.get('PICLOUD_URL') or 'the URL given'}."
        )
    else:
        where = (
            f"Jobs run on this machine, as uid {os.getuid()}. No account and no key is needed."
        )
    text = (
        f"{where}\nContainers: {isolation_words(service)}. `picloud doctor` says why, and what would be better.\n"
        "For a service on another machine, set PICLOUD_URL and PICLOUD_API_KEY (or use -u and -a)."
    )
    kind = service.get("container_kind")
    return Text(text, {"embedded": client.endpoint.local, "container_kind": kind})


COMMAND = Command(
    "setup",
    "say what is set up: on this machine no account and no key is needed",
    ("picloud setup            what is used, and how to use another service",),
    _run,
    _configure,
)
