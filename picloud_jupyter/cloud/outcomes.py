"""How jobs ended: fetched from the control plane, turned into values or exceptions.

Bytes of users are loaded here and nowhere else in the client, and only when a value is asked for.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import (
    CloudException,
    InternalError,
    JobError,
    JobFailed,
    JobKilled,
    JobStalled,
    NotFound,
)
from picloud_jupyter.protocol.frames import Buffer, FrameError, split_frame
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import MAX_RESULT_COUNT
from picloud_jupyter.serialize.failure import Failure, load_failure, read_failure
from picloud_jupyter.serialize.payload import load
from picloud_jupyter.transport.client import Canceller, Exchange

LIMIT_BYTES = 64 * 1024 * 1024  # of one answer with many results
_ERRORS: dict[str, type[JobError]] = {
    "error": JobFailed,
    "killed": JobKilled,
    "stalled": JobStalled,
}


@dataclass(slots=True)
class Outcome:
    """How one job ended; ``body`` holds the bytes of its result, still unread."""

    jid: int
    status: str
    reason: str | None
    message: str
    body: Buffer | None
    path: str | None = None

    def fetch(self) -> None:
        """Have the bytes here, where only their place is known.

        Raises:
            CloudException, OSError: they cannot be had now.
        """
        if self.body is None:
            self.body = self._bytes()

    def value(self) -> Any:  # noqa: ANN401  # whatever the job returned
        """Return what the job returned.

        Raises:
            JobError: it did not end as done; see `error`.
            NotFound: its result is not kept any more.
            CloudException: its result cannot be loaded here; ``__cause__`` says why.
        """
        if self.status != "done":
            raise self.error()
        body = self.body if self.body is not None else self._bytes()
        if not len(body):  # a payload has at least its version
            raise NotFound(self.message or "its result is not kept any more", self.jid)
        try:
            return load(body)
        except Exception as exc:
            raise CloudException(
                f"the job is done, but its result cannot be loaded here: {type(exc).__name__}: {exc}",
                self.jid,
                hint="import what the result is made of, in the version that the job had, and ask again",
            ) from exc

    def error(self, *, load_cause: bool = True) -> JobError:
        """Return the exception that tells how the job failed.

        With ``load_cause`` its ``__cause__`` is the original, where that can be loaded here.
        """
        cls = _ERRORS.get(self.status, JobError)
        body = self.body if self.body is not None else self._bytes()
        if not body:
            return cls(self.message or self.status.capitalize(), self.jid, reason=self.reason)
        failure = load_failure(body) if load_cause else read_failure(body)
        error = cls(_with_message(failure, self.message), self.jid, reason=self.reason)
        error.__cause__ = failure.exception
        return error

    def _bytes(self) -> Buffer:
        """The body, from the file it is in or from the control plane."""
        if self.path is not None:
            return _map_file(self.path)
        return (
            session().client.exchange("GET", routes.RESULT.format(jid=self.jid)).answer().body
        )


def _with_message(failure: Failure, message: str) -> str:
    """The remote traceback, and the control plane's words where they say more."""
    text = (failure.traceback or failure.message).rstrip()
    return text if not message or message in text else f"{text}\n{message}"


def _map_file(path: str) -> Buffer:
    """The file's bytes without reading them: arrays point into the map, writes stay private."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_size == 0:
            return b""
        return memoryview(
            mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        )
    finally:
        os.close(file)


class PendingOutcomes:
    """An answer that is under way."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def take(self) -> tuple[list[Outcome], bool]:
        """Return (outcomes of those that are finished, whether the answer was cut short)."""
        try:
            header, body = split_frame(self._exchange.answer().body)
        except FrameError as exc:
            raise InternalError(f"the control plane's results are no frame: {exc}") from exc
        return read_outcomes(header, body), bool(header.get("more"))


def start_fetch(
    ranges: Sequence[JidRange],
    *,
    wait_seconds: float = 0.0,
    canceller: Canceller | None = None,
) -> PendingOutcomes:
    """Ask for the results of at most 2,000 jobs, sorted, and return without waiting.

    With ``wait_seconds`` the answer comes when one has finished, or empty after that time.
    """
    current = session()
    # by hand: every call asks so, and encoding costs more than the rest of sending
    request = b'{"jids":[%b],"limit_bytes":%d,"local":%b,"wait_seconds":%a}' % (
        b",".join([b"[%d,%d]" % pair for pair in ranges]),
        LIMIT_BYTES,
        b"true" if current.local else b"false",
        wait_seconds,
    )
    return PendingOutcomes(
        current.client.start_post(
            routes.RESULTS, request, wait_seconds=wait_seconds, canceller=canceller
        )
    )


def fetch(
    ranges: Sequence[JidRange], *, wait_seconds: float = 0.0
) -> tuple[list[Outcome], bool]:
    """Return (outcomes of those of ``ranges`` that are finished, whether it was cut short)."""
    return start_fetch(ranges, wait_seconds=wait_seconds).take()


def read_outcomes(header: dict[str, Any], body: memoryview) -> list[Outcome]:
    """Return the outcomes in an answer to `results_request`.

    Raises:
        InternalError: the sizes do not fit.
    """
    found = []
    at = 0
    whole = bytes(body)
    for item in header["items"]:
        get = item.get
        part: Buffer | None = None
        path = get("file")
        if path is None and not get("blob"):
            end = at + (get("size") or 0)
            part = whole[at:end]
            at = end
        found.append(
            Outcome(
                item["jid"], item["status"], get("reason"), get("message") or "", part, path
            )
        )
    if at != len(body):
        raise InternalError(f"the results should have {at} bytes, and have {len(body)}")
    return found


def slices(
    ranges: Sequence[JidRange], count: int = MAX_RESULT_COUNT
) -> Iterator[list[JidRange]]:
    """Yield ``ranges`` in order, ``count`` jids at a time."""
    taken: list[JidRange] = []
    room = count
    for first, last in ranges:
        while first <= last:
            stop = min(last, first + room - 1)
            taken.append((first, stop))
            room -= stop - first + 1
            first = stop + 1  # noqa: PLW2901  # the rest of this range
            if not room:
                yield taken
                taken, room = [], count
    if taken:
        yield taken
