"""Reads the first lines of an HTTP request to a forward proxy. Pure."""

from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_HEAD_BYTES = 64 * 1024
_OWN_HEADERS = (b"connection:", b"proxy-connection:", b"proxy-authorization:", b"keep-alive:")


class HeadError(ValueError):
    """Raised when a request is not one that a proxy understands; the message says why."""


@dataclass(frozen=True, slots=True)
class ProxyHead:
    """Where a request goes. ``forward`` is what the server is sent first; empty for a tunnel."""

    host: str
    port: int
    tunnel: bool
    forward: bytes = b""


def read_head(head: bytes) -> ProxyHead:
    """Return where the request goes that begins with ``head`` (up to its empty line).

    A plain HTTP request is rewritten to the form that a server expects, with ``Connection: close``:
    the next request of this client may be for another server.

    Raises:
        HeadError: neither CONNECT nor a request for a http:// address.
    """
    first, _, rest = head.partition(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise HeadError("the first line is not that of an HTTP/1 request")
    method, target, version = words
    if method == b"CONNECT":
        host, port = _split_host(target.decode("latin-1"), None)
        return ProxyHead(host, port, tunnel=True)
    try:
        url = urlsplit(target.decode("latin-1"))
    except ValueError as error:
        raise HeadError(f"{target!r} is not an address") from error
    if url.scheme != "http" or not url.netloc:
        raise HeadError("only http:// addresses and CONNECT are served here")
    host, port = _split_host(url.netloc.rpartition("@")[2], 80)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    lines = [line for line in rest.split(b"\r\n") if line]
    kept = [line for line in lines if not line.lower().startswith(_OWN_HEADERS)]
    first = b" ".join((method, path.encode("latin-1"), version))
    forward = b"\r\n".join((first, *kept, b"Connection: close", b"", b""))
    return ProxyHead(host, port, tunnel=False, forward=forward)


def _split_host(text: str, default_port: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise HeadError(f"{text!r} is not a host and port") from error
    port = default_port if port is None else port
    if not host or not port:
        raise HeadError(f"{text!r} is not a host and port")
    return host, port
