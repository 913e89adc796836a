"""One HTTP/1.1 connection: requests go out in one system call, answers are parsed by hand.

The standard library's client costs four times as much per request; a call is two requests.
"""

import contextlib
import functools
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from picloud_jupyter.protocol.errors import InvalidRequest, NotAllowed
from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.transport.endpoint import Endpoint
from picloud_jupyter.transport.peers import peer_uid

if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 10.0
MAX_HEAD_BYTES = 64 * 1024
_BUFFERS_AT_ONCE = 512  # the kernel takes at most 1,024 in one call
_RECEIVE_BYTES = 64 * 1024  # above 128 KiB each receive would map fresh memory
_LONGEST_NUMBER = 16  # digits of a size: more than any answer has
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,%d}" % _LONGEST_NUMBER)


class ConnectionLostError(OSError):
    """Raised when the peer closed before its answer was complete."""


class BadAnswerError(Exception):
    """Raised when what came back is not HTTP; the connection must be closed."""


@dataclass(slots=True)
class Response:
    """One answer: ``headers`` with lower-case names, ``body`` whole."""

    status: int
    headers: Mapping[str, str]
    body: Buffer


@dataclass(frozen=True, slots=True)
class _Head:
    """What the head of an answer says; ``body_bytes`` None = until the connection closes."""

    status: int
    headers: Mapping[str, str]
    body_bytes: int | None
    chunked: bool
    closes: bool


class Connection:
    """A connection that carries one request at a time; not for use by two threads at once."""

    def __init__(self, sock: socket.socket, *, tls: bool = False) -> None:
        self._socket = sock
        # a socket of TLS has sendmsg and refuses it
        self._takes_parts = not tls and hasattr(sock, "sendmsg")
        self._timeout = sock.gettimeout()
        self._rest = b""
        self.reusable = True

    @classmethod
    def open(cls, endpoint: Endpoint) -> "Connection":
        """Return a fresh connection to ``endpoint``.

        Raises:
            OSError: nothing listens there, or not in time.
            NotAllowed: somebody else listens where this user's own service would.
            InvalidRequest: $PICLOUD_CA_FILE cannot be used.
        """
        if endpoint.socket_path:
            sock = _open_unix(endpoint.socket_path)
            if endpoint.embedded is not None:
                _refuse_stranger(sock, endpoint)
            return cls(sock)
        wrap = _tls_context().wrap_socket if endpoint.tls else None
        sock = socket.create_connection((endpoint.host, endpoint.port), CONNECT_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if wrap is not None:
            sock = wrap(sock, server_hostname=endpoint.host)
        return cls(sock, tls=endpoint.tls)

    def close(self) -> None:
        """Close at once; harmless when closed."""
        self.reusable = False
        self._socket.close()

    def abort(self) -> None:
        """End a `receive` that another thread is blocked in; it raises `ConnectionLostError`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, parts: Sequence[Buffer], timeout_seconds: float) -> None:
        """Send ``parts`` one after another without joining them.

        Raises:
            OSError: the peer went away, or took nothing for ``timeout_seconds``.
        """
        self._set_timeout(timeout_seconds)
        if not self._takes_parts:
            for part in parts:
                self._socket.sendall(part)
            return
        sent = self._socket.sendmsg(parts[:_BUFFERS_AT_ONCE])
        if sent < sum(map(len, parts)):
            self._send_rest(parts, sent)

    def _send_rest(self, parts: Sequence[Buffer], sent: int) -> None:
        for part in parts:
            size = len(part)
            if sent < size:
                self._socket.sendall(memoryview(part)[sent:])
            sent = max(0, sent - size)

    def receive(self, timeout_seconds: float) -> Response:
        """Return the answer to the request sent before.

        Raises:
            ConnectionLostError: the peer closed before the answer was complete.
            TimeoutError: it said nothing for ``timeout_seconds``.
            BadAnswerError: it is not HTTP.
        """
        self._set_timeout(timeout_seconds)
        head, rest = self._receive_head()
        while head.status < 200:  # 1xx: the true answer follows
            self._rest = rest
            head, rest = self._receive_head()
        if head.closes:
            self.reusable = False
        whole = head.body_bytes == len(rest)
        body = rest if whole else self._receive_body(head, rest)
        if self._rest:  # nobody asked for it: it must not answer the next request
            self.reusable = False
        return Response(head.status, head.headers, body)

    def _set_timeout(self, seconds: float) -> None:
        if seconds != self._timeout:
            self._socket.settimeout(seconds)
            self._timeout = seconds

    def _more(self) -> bytes:
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionLostError("the control plane closed the connection")
        return data

    def _receive_head(self) -> tuple[_Head, bytes]:
        """The next head, and what came with it."""
        data, self._rest = self._rest or self._more(), b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise BadAnswerError("the head of the answer is too long")
            data += self._more()
        return _parse_head(data[:end]), data[end + 4 :]

    def _receive_body(self, head: _Head, rest: bytes) -> Buffer:
        """The body that begins with ``rest``; what follows it is kept."""
        if head.chunked:
            return self._receive_chunked(rest)
        size = head.body_bytes
        if size is None:
            return self._receive_to_end(rest)
        if size <= len(rest):
            self._rest = rest[size:]
            return rest[:size]
        body = bytearray(size)
        body[: len(rest)] = rest
        self._fill(memoryview(body)[len(rest) :])
        return body

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionLostError(
                    "the control plane closed the connection within an answer"
                )
            view = view[count:]

    def _receive_to_end(self, rest: bytes) -> bytes:
        pieces = [rest]
        while data := self._socket.recv(_RECEIVE_BYTES):
            pieces.append(data)
        return b"".join(pieces)

    def _receive_chunked(self, data: bytes) -> bytearray:
        body = bytearray()
        while True:
            while (end := data.find(b"\r\n")) < 0:
                if len(data) > MAX_HEAD_BYTES:
                    raise BadAnswerError("a chunk of the answer has no size")
                data += self._more()
            digits = data[:end].partition(b";")[0].strip()
            if not _CHUNK_SIZE.fullmatch(digits):
                raise BadAnswerError(f"the size of a chunk of the answer is {digits[:60]!r}")
            size = int(digits, 16)
            data = data[end + 2 :]
            while len(data) < size + 2:
                data += self._more()
            body += data[:size]
            data = data[size + 2 :]
            if size == 0:
                self._rest = data
                return body


def _open_unix(path: str) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise ConnectionRefusedError("this system has no unix sockets")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_SECONDS)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _refuse_stranger(sock: socket.socket, endpoint: Endpoint) -> None:
    """Close ``sock`` and raise unless this user or root listens there.

    The folder may be one that anybody could make first, and what answers is believed: its results
    are unpickled here.
    """
    user_id = peer_uid(sock)
    if user_id not in (os.getuid(), 0):
        sock.close()
        raise NotAllowed(
            f"user {user_id} listens at {endpoint.socket_path}, where your own service would; nothing was sent",
            hint="ask that user or root to remove the folder, or set XDG_RUNTIME_DIR or PICLOUD_HOME to another place",
        )


def _tls_context() -> "ssl.SSLContext":
    import ssl  # slow to load, and needed for remote control planes only

    name = os.environ.get("PICLOUD_CA_FILE")
    try:
        return ssl.create_default_context(cafile=name)
    except OSError as exc:
        raise InvalidRequest(
            f"the certificates of $PICLOUD_CA_FILE cannot be read: {name}: {exc}",
            hint="name a readable PEM file, or unset the variable to trust what the system trusts",
        ) from exc


@functools.lru_cache(maxsize=64)  # most answers begin with the same bytes
def _parse_head(data: bytes) -> _Head:
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not code.isdecimal():
        raise BadAnswerError(f"the answer begins with {first[:60]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return _head(int(code), headers)


def _head(status: int, headers: dict[str, str]) -> _Head:
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    length = headers.get("content-length")
    if length is not None and not (length.isdecimal() and len(length) <= _LONGEST_NUMBER):
        raise BadAnswerError(f"Content-Length is {length[:60]!r}")
    size = None if chunked or length is None else int(length)
    if status < 200 or status in (204, 304):
        size, chunked = 0, False
    ends_with_connection = size is None and not chunked
    closes = ends_with_connection or headers.get("connection", "").lower() == "close"
    return _Head(status, MappingProxyType(headers), size, chunked, closes)
