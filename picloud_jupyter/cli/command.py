"""What a subcommand is, and the kinds of arguments that several share."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.ids import JidRange, parse_jids


class WrongUsageError(ValueError):
    """Raised when the words of a command line fit the parser, and still not together."""


@dataclass(frozen=True, slots=True)
class Command:
    """One word of `picloud`. ``run`` gets the parsed arguments and returns what is printed."""

    name: str
    help: str
    examples: Sequence[str]
    run: Callable[[argparse.Namespace], Any]
    configure: Callable[[argparse.ArgumentParser], None] = lambda _parser: None
    aliases: Sequence[str] = ()


def jids_type(text: str) -> list[JidRange]:
    """Return the job ids written as 5, 1,4,9 or 1-4 (both ends included)."""
    try:
        return parse_jids(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def jid_type(text: str) -> int:
    """Return one job id."""
    ranges = jids_type(text)
    if len(ranges) != 1 or ranges[0][0] != ranges[0][1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not one job id")
    return ranges[0][0]


def seconds_type(text: str) -> float:
    """Return a number of seconds.

    >>> seconds_type("2.5")
    2.5
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return seconds


def add_jids(parser: argparse._ActionsContainer, *, optional: bool = False) -> None:
    """Add the positional JIDS."""
    text = "job ids: 5, or 1,4,9, or 1-4 (both ends included), or 1-4,7"
    if optional:
        parser.add_argument("jids", metavar="JIDS", type=jids_type, nargs="?", help=text)
    else:
        parser.add_argument("jids", metavar="JIDS", type=jids_type, help=text)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add -t/--timeout."""
    parser.add_argument(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=seconds_type,
        help="give up after so many seconds",
    )
