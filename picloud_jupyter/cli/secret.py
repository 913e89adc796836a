"""`picloud secret`."""

import argparse
import sys
import time

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.output import Table
from picloud_jupyter.cloud import secret

COLUMNS = ("name", "version", "set")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("set", "list", "delete"), help="what to do")
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the secret; not with list")


def _run(arguments: argparse.Namespace) -> Table | None:
    name = arguments.name
    if arguments.action == "list":
        if name is not None:
            arguments.parser.error("secret list takes no name")
        return Table(COLUMNS, [(s.name, s.version, _local(s.set_at)) for s in secret.list()])
    if name is None:
        arguments.parser.error(f"secret {arguments.action} needs the secret's name")
    try:
        if arguments.action == "set":
            secret.set(name, value=None if sys.stdin.isatty() else _read_value())
        else:
            secret.delete(name)
    except (ValueError, EOFError) as exc:
        arguments.parser.error(str(exc))
    return None


def _read_value() -> str:
    """Standard input, without the end of its last line, which `echo` adds."""
    data = sys.stdin.buffer.read()
    return data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def _local(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


COMMAND = Command(
    "secret",
    "keep secrets, which jobs get as environment variables (_secrets=[...])",
    (
        "picloud secret set TOKEN                asks for the value and does not show it",
        "picloud secret set TOKEN < token.txt    reads it from standard input",
        "picloud secret list                     names, never values",
        "picloud secret delete TOKEN",
    ),
    _run,
    _configure,
)
