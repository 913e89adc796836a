"""HTTP/1.1 requests out of bytes (RFC 9112). Pure: no socket, no clock.

Small on purpose, and strict: what is ambiguous is refused. It takes a fifth of the time that a
general HTTP server takes, which is most of what a warm `call` waits for.
"""

from dataclasses import dataclass
from functools import lru_cache

from picloud_jupyter.protocol.errors import CloudException, InvalidRequest

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
KEPT_HEADS = 256
MAX_CHUNK_LINE_BYTES = 64
END_OF_HEAD = b"\r\n\r\n"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset("0123456789")
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a request. Names of headers are in lower case.

    ``length_bytes`` is None for a chunked body, 0 where there is none.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    length_bytes: int | None
    keep_alive: bool


@lru_cache(maxsize=KEPT_HEADS)
def parse_head(data: bytes) -> Head:
    """Return the head in ``data``, which ends before the empty line.

    A client's heads are alike to the byte, so they are kept.

    Raises:
        CloudException: it is no HTTP/1.1 request, or one that could be read in two ways.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    method, target, version = _parse_request_line(first)
    if len(lines) > MAX_HEADERS:
        raise CloudException(f"a request has at most {MAX_HEADERS} headers", status=431)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if (
            not colon
            or not name
            or not _TOKEN.issuperset(name)
            or "\n" in value
            or "\0" in value
        ):
            raise InvalidRequest(f"{line[:80]!r} is not a header")
        if name in headers:
            raise InvalidRequest(f"the header {name!r} stands twice")
        headers[name] = value.strip(" \t")
    path, _, query = target.partition("?")
    connection = headers.get("connection", "").lower()
    return Head(
        method,
        path,
        query,
        headers,
        _body_length(headers),
        keep_alive=connection != "close"
        and (version == "HTTP/1.1" or connection == "keep-alive"),
    )


def _parse_request_line(line: str) -> tuple[str, str, str]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] not in _METHODS or not parts[1].startswith("/"):
        raise InvalidRequest(f"{line[:80]!r} is not the first line of an HTTP request")
    if parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise CloudException(f"HTTP/1.1 is spoken here, not {parts[2][:20]!r}", status=505)
    return parts[0], parts[1], parts[2]


def _body_length(headers: dict[str, str]) -> int | None:
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or coding.lower() != "chunked":
            raise InvalidRequest("a body has a Content-Length or Transfer-Encoding: chunked")
        return None
    if length is None:
        return 0
    if not length or len(length) > 18 or not _DIGITS.issuperset(length):
        raise InvalidRequest(f"Content-Length must be a whole number, got {length[:40]!r}")
    return int(length)


class LengthBody:
    """A body whose size was announced."""

    def __init__(self, length_bytes: int) -> None:
        self._left_bytes = length_bytes

    @property
    def done(self) -> bool:
        """Whether the last byte was taken."""
        return self._left_bytes == 0

    def take(self, buffer: bytearray, limit_bytes: int) -> bytes:
        """Remove what there is of the body, at most ``limit_bytes``, from the head of ``buffer``."""
        count = min(self._left_bytes, limit_bytes, len(buffer))
        taken = bytes(buffer[:count])
        del buffer[:count]
        self._left_bytes -= count
        return taken


class ChunkedBody:
    """A body in chunks; extensions are ignored and trailers refused."""

    def __init__(self) -> None:
        self._left_bytes = 0  # of the current chunk
        self._started = False  # the first chunk's size was read
        self.done = False

    def take(self, buffer: bytearray, limit_bytes: int) -> bytes:
        """Remove what there is of the body, at most ``limit_bytes``, from the head of ``buffer``.

        Raises:
            InvalidRequest: it is not chunks.
        """
        pieces: list[bytes] = []
        while not self.done and limit_bytes > 0:
            if not self._left_bytes and not self._read_size(buffer):
                break
            count = min(self._left_bytes, limit_bytes, len(buffer))
            if not count:
                break
            pieces.append(bytes(buffer[:count]))
            del buffer[:count]
            self._left_bytes -= count
            limit_bytes -= count
        return b"".join(pieces)

    def _read_size(self, buffer: bytearray) -> bool:
        """Read the line before a chunk; return whether a chunk follows now."""
        start = 2 if self._started else 0  # the end of the chunk before
        end = buffer.find(b"\r\n", start)
        if end < 0 or (end == 0 and self._started and len(buffer) < 2):
            if len(buffer) > MAX_CHUNK_LINE_BYTES:
                raise InvalidRequest("the size of a chunk is missing")
            return False
        size = bytes(buffer[start:end]).partition(b";")[0].strip()
        bad_end = self._started and buffer[:2] != b"\r\n"
        if bad_end or not size or len(size) > 15 or not _HEX_DIGITS.issuperset(size):
            raise InvalidRequest(f"{size[:40]!r} is not the size of a chunk")
        self._left_bytes = int(size, 16)
        if self._left_bytes:
            del buffer[: end + 2]
            self._started = True
            return True
        if len(buffer) < end + 4:
            return False  # the empty line that ends the body is still to come
        if buffer[end + 2 : end + 4] != b"\r\n":
            raise InvalidRequest("trailers after a chunked body are not taken")
        del buffer[: end + 4]
        self.done = True
        return False


Body = LengthBody | ChunkedBody
