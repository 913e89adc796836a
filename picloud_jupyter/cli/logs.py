"""`picloud logs`."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator

from picloud_jupyter.cli.command import Command, add_jids
from picloud_jupyter.cli.follow import show_many
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.displays import Splitter, to_terminal
from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.ids import count_ranges
from picloud_jupyter.protocol.terminal import TerminalFilter

FOLLOW_SECONDS = 30.0  # of one long poll
SLICE_BYTES = 1024 * 1024


def _configure(parser: argparse.ArgumentParser) -> None:
    add_jids(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.add_argument("--stderr", action="store_true", help="what it wrote to stderr")
    parser.add_argument(
        "-n", "--tail", metavar="BYTES", type=int, help="only the last so many bytes"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="as it was written: displays of a cell, and what steers a terminal",
    )


def _run(arguments: argparse.Namespace) -> None:
    stream = "stderr" if arguments.stderr else "stdout"
    as_words = stream == "stdout" and not arguments.raw
    write = _write if arguments.raw else _writer()
    if count_ranges(arguments.jids) > 1:
        if arguments.tail is not None:
            raise InvalidRequest("-n/--tail is for the output of one job")
        follow = arguments.follow
        show_many(arguments.jids, stream, follow=follow, as_words=as_words, write=write)
        return
    jid = arguments.jids[0][0]
    logged = read_log(jid, stream, follow=arguments.follow, tail_bytes=arguments.tail)
    if as_words:
        logged = with_words(logged, begins_within=arguments.tail is not None)
    for data in logged:
        write(data)


def _writer() -> Callable[[bytes], None]:
    """Return what prints: on a terminal without what would steer it."""
    if not sys.stdout.isatty():
        return _write
    shown = TerminalFilter()  # what it holds back at the end is no whole character
    return lambda data: _write(shown.feed(data))


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def with_words(logged: Iterable[bytes], *, begins_within: bool = False) -> Iterator[bytes]:
    """Yield ``logged``, what a job wrote to stdout, with its displays as words."""
    splitter = Splitter(begins_within=begins_within)
    for data in logged:
        yield to_terminal(splitter.feed(data))
    yield to_terminal(splitter.finish())


def read_log(
    jid: int, stream: str, *, follow: bool = False, tail_bytes: int | None = None
) -> Iterator[bytes]:
    """Yield what the job printed, as bytes; with ``follow`` until it has ended."""
    offset, attempt = 0, ""
    query: dict[str, object] = {} if tail_bytes is None else {"tail_bytes": tail_bytes}
    while True:
        wait_seconds = FOLLOW_SECONDS if follow else 0
        query |= {"limit": SLICE_BYTES, "wait_seconds": wait_seconds}
        if "tail_bytes" not in query:
            query["offset"] = offset
        answer = (
            session()
            .client.exchange(
                "GET",
                routes.LOG.format(jid=jid, stream=stream),
                query=query,
                wait_seconds=wait_seconds,
            )
            .answer()
        )
        query = {}
        total = int(answer.headers["x-picloud-total"])
        before, attempt = attempt, answer.headers.get("x-picloud-attempt", "")
        if offset and (total < offset or attempt != before):  # it was started again
            offset = 0
            continue
        if len(answer.body):
            yield bytes(answer.body)
        offset = int(answer.headers["x-picloud-next"])
        complete = offset >= total
        if complete and (not follow or answer.headers.get("x-picloud-finished") == "1"):
            return


COMMAND = Command(
    "logs",
    "print what a job wrote to stdout or stderr, also while it runs",
    (
        "picloud logs 17           what it printed so far",
        "picloud logs -f 17        go on until it ends",
        "picloud logs --stderr 17  the other stream",
        "picloud logs -f 1-100     of a map: each line after its job's number",
        "picloud logs --raw 17     with the displays of a cell as they were sent",
    ),
    _run,
    _configure,
)
