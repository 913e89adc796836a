"""`picloud info`."""

import argparse
from typing import Any

from picloud_jupyter.cli.command import Command, add_jids
from picloud_jupyter.cli.output import Text
from picloud_jupyter.cloud.information import info
from picloud_jupyter.cloud.jid_ranges import JidRanges

_ON_OWN_LINES = ("stdout", "stderr", "exception", "profile", "logging", "pilog")


def _configure(parser: argparse.ArgumentParser) -> None:
    add_jids(parser)
    parser.add_argument(
        "-o",
        "--output",
        dest="fields",
        metavar="FIELDS",
        help="comma-separated, or all; default status,stdout,stderr,runtime",
    )


def _run(arguments: argparse.Namespace) -> Text:
    fields = arguments.fields.split(",") if arguments.fields else None
    found = info(JidRanges.of_pairs(arguments.jids), fields)
    return Text(
        "\n\n".join(describe(jid, values) for jid, values in found.items()),
        {
            str(jid): {name: _plain(name, value) for name, value in values.items()}
            for jid, values in found.items()
        },
    )


def _plain(name: str, value: object) -> object:
    return repr(value) if name in ("func_object", "args", "kwargs") else value


def describe(jid: int, values: dict[str, Any]) -> str:
    """Return the fields of one job, long texts below their names."""
    lines = [f"Info for jid {jid}"]
    for name, value in values.items():
        if name in _ON_OWN_LINES and value:
            lines += [f"{name}:", str(value).rstrip("\n")]
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines)


COMMAND = Command(
    "info",
    "show what is known of jobs: output, times, resources, why they ended",
    (
        "picloud info 17                            status, output, runtime",
        "picloud info 17 -o all                     everything",
        "picloud info 1-4 -o runtime,memory,reason  some fields",
    ),
    _run,
    _configure,
)
