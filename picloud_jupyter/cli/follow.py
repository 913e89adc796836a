"""The output of many jobs, line by line, each line after the number of its job."""

import time
from collections.abc import Callable, Iterator

from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.displays import Splitter, to_terminal
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, Status

SLICE_BYTES = 1024 * 1024
PAUSE_SECONDS = 0.25  # between two looks at what runs
Place = tuple[int, str]  # offset, and the attempt in whose output that is


class Lines:
    r"""Cuts what jobs print into whole lines, each with the job's number before it. Pure.

    With ``as_words`` the displays of cells become words.

    >>> lines = Lines(as_words=False)
    >>> list(lines.feed(7, b"one\ntw")), list(lines.feed(7, b"o", ended=True))
    ([b'7: one\n'], [b'7: two\n'])
    """

    def __init__(self, *, as_words: bool) -> None:
        self._as_words = as_words
        self._splitters: dict[int, Splitter] = {}
        self._begun: dict[int, bytes] = {}

    def feed(self, jid: int, data: bytes, *, ended: bool = False) -> Iterator[bytes]:
        """Yield the lines that ``data`` completes; with ``ended`` also one without its end."""
        if self._as_words:
            data = self._with_words(jid, data, ended=ended)
        *whole, rest = (self._begun.pop(jid, b"") + data).split(b"\n")
        if ended and rest:
            whole.append(rest)
        elif rest:
            self._begun[jid] = rest
        for line in whole:
            yield b"%d: %s\n" % (jid, line)

    def _with_words(self, jid: int, data: bytes, *, ended: bool) -> bytes:
        splitter = self._splitters.pop(jid, None) or Splitter()
        found = to_terminal(splitter.feed(data)) if data else b""
        if ended:
            return found + to_terminal(splitter.finish())
        self._splitters[jid] = splitter
        return found


def show_many(
    jids: list[JidRange],
    stream: str,
    *,
    follow: bool,
    as_words: bool,
    write: Callable[[bytes], None],
) -> None:
    """Write what the jobs printed to ``stream``, by jid; with ``follow`` as it comes, until all have ended."""
    lines = Lines(as_words=as_words)
    places: dict[int, Place] = {}
    left = list(jids)
    while left:
        still: list[JidRange] = []
        answer = session().client.post(routes.STATUS, {"jids": left})
        for first, last, status in answer["statuses"]:
            ended = status in FINISHED_STATUSES
            if ended or status == Status.PROCESSING:
                for jid in range(first, last + 1):
                    for data in _new_output(jid, stream, places):
                        _write_all(lines.feed(jid, data), write)
                    _write_all(lines.feed(jid, b"", ended=ended or not follow), write)
            if not ended:
                still.append((first, last))
        left = still if follow else []
        if left:
            time.sleep(PAUSE_SECONDS)


def _write_all(lines: Iterator[bytes], write: Callable[[bytes], None]) -> None:
    for line in lines:
        write(line)


def _new_output(jid: int, stream: str, places: dict[int, Place]) -> Iterator[bytes]:
    """Yield what ``jid`` has printed since it was last looked at."""
    route = routes.LOG.format(jid=jid, stream=stream)
    while True:
        offset, before = places.get(jid, (0, ""))
        query = {"offset": offset, "limit": SLICE_BYTES}
        answer = session().client.exchange("GET", route, query=query).answer()
        attempt = answer.headers.get("x-picloud-attempt", "")
        total = int(answer.headers["x-picloud-total"])
        if offset and (total < offset or attempt != before):
            places[jid] = 0, attempt  # it was started again, and its output begins anew
            continue
        if not len(answer.body):
            return
        places[jid] = int(answer.headers["x-picloud-next"]), attempt
        yield bytes(answer.body)
