"""Reads what a runner sends. User code shares its process, so nothing of it is believed. Pure.

Only values of the right type and size come out of here, and results in the order of elements;
anything else raises `BrokenProtocol`.
"""

import re
from dataclasses import dataclass, field
from json import JSONDecoder
from typing import Any

from picloud_jupyter.protocol.frames import PREFIX
from picloud_jupyter.protocol.jobs import INLINE_BYTES, EndReason

MAX_HEADER_BYTES = 2 * 1024 * 1024
MAX_NOTE_CHARACTERS = 4096
MAX_PROFILE_CHARACTERS = 1024 * 1024
MAX_EXTRA_BYTES = 8 * 1024 * 1024  # of a chunk: they go into headers, which are limited, too
_PLAIN_RESULT_FIELDS = 7  # t p r at s u y
_MOST_SECONDS = 1e11

REASONS = frozenset(
    reason.value
    for reason in (
        EndReason.DONE,
        EndReason.ERROR,
        EndReason.EXIT_CODE,
        EndReason.DISK_FULL,
        EndReason.ENV_MISSING,
        EndReason.INPUT_UNDESERIALIZABLE,
        EndReason.RESULT_UNSERIALIZABLE,
        EndReason.RESULT_TOO_LARGE,
        EndReason.INCOMPATIBLE,
    )
)
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\Z")
_DIGEST = re.compile(r"(?:[0-9a-f]{64})?\Z")
_decode = JSONDecoder().raw_decode  # decode() would look for blanks around the value


class BrokenProtocol(Exception):  # what the runner did, not what we did
    """Raised when a runner does what none of ours does; the text completes "the runner ...".

    ``said``: what it had said before, in the same bytes, which is as good as ever.
    """

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.said: list[Said] = []


@dataclass(slots=True)
class Results:
    """Consecutive results: ``items`` as they go into a batch, and their bodies."""

    items: list[list[Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    cpu_seconds: float = 0.0
    longest_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunnerHello:
    """The runner is ready. ``wire`` and ``oldest`` are the versions it speaks."""

    wire: int
    oldest: int
    pid: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class ChunkEnd:
    """The runner has no more to run of ``lease``; what it still holds.

    ``spent``: it cannot serve another element, and this many of the chunk were not begun; else None.
    """

    lease: str
    rss_bytes: int
    threads: int
    children: int
    spent: int | None = None


Said = Results | RunnerHello | ChunkEnd


class RunnerFrames:
    """Turns the bytes of one runner into what they say."""

    def __init__(self) -> None:
        self._buffer = b""
        self._expected = 0
        self._extra_bytes = 0

    def feed(self, data: bytes) -> list[Said]:
        """Return what the frames completed by ``data`` say, results in a row as one `Results`.

        Raises:
            BrokenProtocol: something is not as it must be; the runner cannot be believed any more.
        """
        said = list[Said]()
        try:
            self._read(data, said)
        except BrokenProtocol as exc:
            exc.said = said
            raise
        return said

    def _read(self, data: bytes, said: list[Said]) -> None:
        buffer = self._buffer + data if self._buffer else data
        size, start = len(buffer), 0
        run: Results | None = None
        while size - start >= PREFIX.size:
            header_bytes, body_bytes = PREFIX.unpack_from(buffer, start)
            if header_bytes > MAX_HEADER_BYTES or body_bytes > INLINE_BYTES:
                raise BrokenProtocol(f"sent a frame of {header_bytes} + {body_bytes} bytes")
            middle = start + PREFIX.size + header_bytes
            end = middle + body_bytes
            if end > size:
                break
            header = _read_header(buffer[start + PREFIX.size : middle])
            start = end
            if header.get("t") == "result":
                if run is None:
                    run = Results()
                    said.append(run)
                self._add_result(run, header, header_bytes, buffer[middle:end])
            else:
                run = None
                said.append(self._read_other(header))
        self._buffer = buffer[start:] if start else buffer

    def _add_result(
        self, run: Results, header: dict[str, Any], header_bytes: int, body: bytes
    ) -> None:
        try:
            reason = header["r"]
            at, runtime = header["at"] + 0.0, header["s"] + 0.0
            user, system = header["u"] + 0.0, header["y"] + 0.0
            if not (
                header["p"] == self._expected
                and reason in REASONS
                and 0 <= at < _MOST_SECONDS
                and 0 <= runtime < _MOST_SECONDS
                and 0 <= user < _MOST_SECONDS
                and 0 <= system < _MOST_SECONDS
            ):
                raise BrokenProtocol(f"sent a bad result for element {self._expected}")
        except (KeyError, TypeError, ArithmeticError):
            raise BrokenProtocol(f"sent a bad result for element {self._expected}") from None
        extra = None
        if len(header) != _PLAIN_RESULT_FIELDS:
            self._extra_bytes += header_bytes
            if self._extra_bytes > MAX_EXTRA_BYTES:
                raise BrokenProtocol(f"sent more than {MAX_EXTRA_BYTES} bytes beside results")
            extra = _read_extra(header, body)
        run.items.append(
            [self._expected, reason, at, runtime, user, system, len(body), extra or None]
        )
        run.bodies.append(body)
        run.size_bytes += len(body)
        run.cpu_seconds += user + system
        run.longest_seconds = max(run.longest_seconds, runtime)
        self._expected += 1

    def _read_other(self, header: dict[str, Any]) -> Said:
        match header.get("t"):
            case "hello":
                return RunnerHello(
                    _count(header, "wire"),
                    _count(header, "oldest"),
                    _count(header, "pid"),
                    _count(header, "rss_bytes"),
                )
            case "end":
                self._expected = self._extra_bytes = 0
                return ChunkEnd(
                    _text(header, "lease", 64),
                    _count(header, "rss_bytes"),
                    _count(header, "threads"),
                    _count(header, "children"),
                    None if header.get("spent") is None else _count(header, "spent"),
                )
        raise BrokenProtocol("sent a frame of an unknown kind")


def _read_header(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8", "surrogatepass")
        header, end = _decode(text)
    except (ValueError, RecursionError):
        raise BrokenProtocol("sent a frame whose header is not JSON") from None
    if not isinstance(header, dict) or end != len(text):
        raise BrokenProtocol("sent a frame whose header is not a JSON object")
    return header


def _read_extra(header: dict[str, Any], body: bytes) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if header.get("file") is not None:
        name, digest = _text(header, "file", 100), _text(header, "digest", 64)
        if body or not _FILE_NAME.match(name) or not _DIGEST.match(digest):
            raise BrokenProtocol("named a result file wrongly")
        extra.update(file=name, size=_count(header, "size"), digest=digest)
    if header.get("files") is not None:
        extra["files"] = _read_files(header["files"])
    if header.get("profile") is not None:
        extra["profile"] = _text(header, "profile", MAX_PROFILE_CHARACTERS)
    if header.get("note") is not None:
        extra["note"] = _text(header, "note", MAX_NOTE_CHARACTERS)
    code = header.get("exit")
    if code is not None:
        if type(code) is not int or not -(2**31) <= code < 2**32:
            raise BrokenProtocol("sent an exit code that is none")
        extra["exit"] = code
    return extra


def _read_files(files: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    if not isinstance(files, dict) or not _FILE_NAME.match(_text(files, "file", 100)):
        raise BrokenProtocol("named its written files wrongly")
    return {
        "file": files["file"],
        **{name: _count(files, name) for name in ("size", "count", "left")},
    }


def _count(header: dict[str, Any], name: str) -> int:
    value = header.get(name)
    if type(value) is not int or not 0 <= value < 2**53:
        raise BrokenProtocol(f"sent {name} that is no count")
    return value


def _text(header: dict[str, Any], name: str, limit: int) -> str:
    value = header.get(name)
    if not isinstance(value, str) or len(value) > limit:
        raise BrokenProtocol(f"sent {name} that is no text of at most {limit} characters")
    return value.encode("utf-8", "replace").decode()  # a lone surrogate is no text
