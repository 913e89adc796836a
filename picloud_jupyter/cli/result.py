"""`picloud result`."""

import argparse
from collections.abc import Sequence
from typing import Any

from picloud_jupyter.cli.command import Command, add_jids, add_timeout
from picloud_jupyter.cli.output import NotPrintableError, Raw, to_json
from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.jid_ranges import JidRanges
from picloud_jupyter.protocol.errors import CloudException


def _configure(parser: argparse.ArgumentParser) -> None:
    add_jids(parser)
    add_timeout(parser)
    parser.add_argument(
        "-i",
        "--ignore-errors",
        action="store_true",
        help="print the errors of failed jobs instead",
    )


def _run(arguments: argparse.Namespace) -> Raw:
    jids = JidRanges.of_pairs(arguments.jids)
    values = results.result(jids, arguments.timeout, arguments.ignore_errors)
    return present(jids, values, arguments.output)


def present(jids: Sequence[int], values: Sequence[Any], style: str) -> Raw:
    """Return results as they are printed: one alone as it is, several in blocks or one JSON object.

    Raises:
        NotPrintableError: one has no such form.
    """
    by_jid = {str(int(jid)): _shown(value) for jid, value in zip(jids, values, strict=True)}
    if style == "json":
        return Raw(b"", by_jid)
    if len(jids) == 1:
        return Raw(as_bytes(values[0]), None)
    blocks = [
        b"Result for jid %d:\n%s\n" % (jid, as_bytes(value))
        for jid, value in zip(jids, values, strict=True)
    ]
    return Raw(b"\n".join(blocks), None)


def _shown(value: Any) -> Any:  # noqa: ANN401
    return str(value) if isinstance(value, CloudException) else value


def as_bytes(value: Any) -> bytes:  # noqa: ANN401  # whatever a job returned
    """Return a result as it is printed: bytes and text as they are, other values as JSON.

    Raises:
        NotPrintableError: it has no such form.
    """
    if value is None:
        return b""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        return _text_bytes(value)
    text = str(value) if isinstance(value, CloudException) else f"{to_json(value)}\n"
    return text.encode("utf-8", "backslashreplace")


def _text_bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise NotPrintableError(
            f"the result is no text that can be written: {exc.reason}; read it in Python with cloud.result"
        ) from exc


COMMAND = Command(
    "result",
    "print what jobs returned, waiting for them first",
    (
        "picloud result 17               the value: text and bytes exactly, other values as JSON",
        "picloud result 17 > image.png   binary safe",
        "picloud result 1-4 -i           a failed job prints its error",
        "picloud -o json result 1-4      one JSON object, keyed by jid",
    ),
    _run,
    _configure,
)
