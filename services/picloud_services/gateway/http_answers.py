"""`Reply` into the bytes of HTTP/1.1. Pure."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus

from picloud_jupyter.protocol.frames import Buffer
from picloud_services.blobs.store import PIECE_BYTES
from picloud_services.gateway.words import Reply

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}


def head_of(reply: Reply, version: str, *, keep_alive: bool) -> bytes:
    """Return the head of the answer to a request of HTTP ``version``."""
    connection = ""  # what 1.1 takes for granted is not said
    if not keep_alive:
        connection = "Connection: close\r\n"
    elif version == "1.0":
        connection = "Connection: keep-alive\r\n"
    line = _LINES.get(reply.status) or f"HTTP/1.1 {reply.status} Unknown\r\n"
    more = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    size_bytes = sum(map(len, reply.parts)) + reply.stream_bytes
    return (
        f"{line}Content-Type: {reply.content_type}\r\nContent-Length: {size_bytes}\r\n"
        f"{more}{connection}\r\n"
    ).encode("latin-1")


def held_bytes(reply: Reply) -> int:
    """Return how much memory ``reply`` holds while its client reads nothing.

    Beside what is at hand that is one piece which the transport has, and of a stream the next one.
    """
    at_hand_bytes = sum(map(len, reply.parts))
    sent_bytes = min(PIECE_BYTES, at_hand_bytes + reply.stream_bytes)
    return at_hand_bytes + sent_bytes + min(PIECE_BYTES, reply.stream_bytes)


def cut_or_join(parts: Sequence[Buffer]) -> Iterator[Buffer]:
    """Yield the bytes of ``parts``: small ones joined, large ones cut without a copy.

    No piece is larger than PIECE_BYTES.
    """
    if sum(map(len, parts)) <= PIECE_BYTES:  # most answers
        yield b"".join(parts)
        return
    gathered: list[Buffer] = []
    gathered_bytes = 0
    for part in parts:
        if gathered and gathered_bytes + len(part) > PIECE_BYTES:
            yield b"".join(gathered)
            gathered, gathered_bytes = [], 0
        if len(part) > PIECE_BYTES:
            view = memoryview(part)
            for start in range(0, len(view), PIECE_BYTES):
                yield view[start : start + PIECE_BYTES]
        else:
            gathered.append(part)
            gathered_bytes += len(part)
    if gathered:
        yield b"".join(gathered)
