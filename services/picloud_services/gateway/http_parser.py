"""HTTP/1.1 requests out of bytes, by httptools (llhttp). Pure: no socket, no clock.

llhttp refuses most of what can be read in two ways: a second Content-Length or one beside
Transfer-Encoding, lines that end in a bare LF or CR, folded headers, control characters, broken
chunks. What it lets pass is refused here: heads of any size, HTTP/0.9 and 2.0, a change of the
protocol (it would skip the body), codings beside chunked, trailers, headers that must stand once.
"""

from collections import deque

from httptools import HttpParserCallbackError, HttpParserError, HttpRequestParser

from picloud_jupyter.protocol.errors import CloudException, InvalidRequest, PayloadTooLarge
from picloud_services.gateway.words import Head

MAX_HEAD_BYTES = 64 * 1024
ONCE = frozenset(
    ("host", "content-type", "authorization", "range", "x-picloud-wire", "transfer-encoding")
)


class IncomingRequest:
    """One request: its head, and of its body what has come and was not taken yet."""

    __slots__ = ("head", "keep_alive", "pieces", "version", "whole")

    def __init__(self, head: Head, version: str, *, keep_alive: bool) -> None:
        self.head = head
        self.version = version
        self.keep_alive = keep_alive
        self.pieces: list[bytes] = []
        self.whole = False  # the last byte of the body has come

    @property
    def awaits_continue(self) -> bool:
        """Whether its client sends the body only when told to."""
        return (
            not self.whole
            and self.version == "1.1"
            and self.head.headers.get("expect", "").lower() == "100-continue"
        )

    def take(self) -> bytes:
        """Return what has come of the body since the last time."""
        pieces, self.pieces = self.pieces, []
        return b"".join(pieces)


class RequestParser:
    """Takes the bytes of one connection; what it finds stands in ``requests``.

    ``error`` is what is wrong with the bytes that follow the last of them; nothing comes after it.
    ``head_open``: a head has begun and has not ended.
    """

    def __init__(self) -> None:
        self.requests: deque[IncomingRequest] = deque()
        self.error: CloudException | None = None
        self.head_open = False
        self._parser = HttpRequestParser(self)
        self._request: IncomingRequest | None = None  # its body is coming
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._silent_bytes = 0  # fed since a head, a piece of a body or a request ended

    def feed(self, data: memoryview) -> None:
        """Take what has arrived."""
        if self.error is not None:
            return
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError as exc:
            if not isinstance(exc.__context__, CloudException):
                raise
            self.error = exc.__context__
        except HttpParserError as exc:
            self.error = InvalidRequest(f"this is no HTTP/1.1 request: {exc}")
        # A name or value gathers in the parser until it ends: nobody else sees how long it is.
        if self._silent_bytes > MAX_HEAD_BYTES:
            self.refuse(_too_long())

    def refuse(self, error: CloudException) -> None:
        """Take nothing more, because of ``error``."""
        if self.error is None:
            self.error = error

    # ------------------------------------------------------------------- called by httptools
    def on_message_begin(self) -> None:
        """A head begins."""
        self.head_open = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._count(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header.

        Raises:
            InvalidRequest: it may not stand there.
        """
        if self._request is not None:
            raise InvalidRequest("trailers after a chunked body are not taken: leave them out")
        self._count(len(name) + len(value) + 4)
        key = name.decode("latin-1").lower()
        if key in ONCE and key in self._headers:
            raise InvalidRequest(f"the header {key!r} stands twice: send it once")
        self._headers[key] = value.decode("latin-1").rstrip(" \t")

    def on_headers_complete(self) -> None:
        """Make a request of the head.

        Raises:
            InvalidRequest: it is none that is served here.
        """
        headers, parser = self._headers, self._parser
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise InvalidRequest(f"HTTP/1.1 is spoken here, not HTTP/{version}", status=505)
        if parser.should_upgrade():
            raise InvalidRequest(
                "nothing but HTTP/1.1 is spoken here: leave out CONNECT and Upgrade"
            )
        coding = headers.get("transfer-encoding")
        if coding is not None and (coding.lower() != "chunked" or version == "1.0"):
            raise InvalidRequest(
                f"a body is plain, or chunked by HTTP/1.1; got Transfer-Encoding {coding[:40]!r}"
            )
        path, _, query = self._url.decode("latin-1").partition("?")
        length = None if coding is not None else int(headers.get("content-length", "0"))
        head = Head(parser.get_method().decode("latin-1"), path, query, headers, length)
        self._request = IncomingRequest(head, version, keep_alive=parser.should_keep_alive())
        self.requests.append(self._request)
        self._url, self._headers = b"", {}
        self._silent_bytes = 0
        self.head_open = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        assert self._request is not None
        self._request.pieces.append(body)
        self._silent_bytes = 0

    def on_message_complete(self) -> None:
        """The request is whole."""
        assert self._request is not None
        self._request.whole = True
        self._request = None
        self._silent_bytes = 0

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _too_long()


def _too_long() -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the head of a request has at most {MAX_HEAD_BYTES} bytes", status=431
    )
