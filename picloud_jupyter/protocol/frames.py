"""Bytes between our own processes: frames (one message) and packs (many records in one value).

A frame is ``>IQ`` (header bytes, body bytes), a JSON header, then the raw body; on a link that
counts, the upper half of the Q is the frame's number there. A pack is ``>I`` (record count), that
many ``>I`` sizes, then the records one after another. Neither knows what is inside a body: user
bytes pass through unread.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

WIRE_VERSION = 1  # ours; sent in the first frame of each link
OLDEST_WIRE_VERSION = 1  # the oldest we still speak with
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_BODY_BYTES = 1024 * 1024 * 1024  # larger payloads travel as files
PREFIX = struct.Struct(">IQ")
CONTENT_TYPE = "application/x-picloud-frame"
_NUMBERS = 2**32  # 0 is that of frames that are not counted

Buffer = bytes | bytearray | memoryview


class FrameError(ValueError):
    """Raised when bytes are not a frame or a pack; the link that sent them must be closed."""


_decode = json.JSONDecoder().decode
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def encode_json(value: object) -> bytes:
    """Return compact JSON for plain values (dict, list, str, int, float, bool, None)."""
    return _encode(value).encode("utf-8", "surrogatepass")


def pack_frame(header: dict[str, Any], *parts: Buffer) -> bytes:
    """Return one frame; ``parts`` are joined to its body without being looked at."""
    return pack_raw(encode_json(header), *parts)


def pack_raw(header: bytes, *parts: Buffer) -> bytes:
    """Return one frame whose header is JSON already."""
    size = sum(map(len, parts))
    return b"".join((PREFIX.pack(len(header), size), header, *parts))


def split_frame(data: Buffer) -> tuple[dict[str, Any], memoryview]:
    """Return (header, body) of ``data``, which must be exactly one frame.

    Raises:
        FrameError: sizes do not fit, or the header is not a JSON object.
    """
    view = memoryview(data)
    if len(view) < PREFIX.size:
        raise FrameError(f"a frame has at least {PREFIX.size} bytes, got {len(view)}")
    header_bytes, body_bytes = PREFIX.unpack_from(view)
    if PREFIX.size + header_bytes + body_bytes != len(view):
        raise FrameError("the sizes in the frame's prefix do not match its length")
    end = PREFIX.size + header_bytes
    return decode_header(bytes(view[PREFIX.size : end])), view[end:]


def decode_header(data: bytes) -> dict[str, Any]:
    """Return the header whose JSON ``data`` is.

    Raises:
        FrameError: it is not a JSON object.
    """
    try:
        header = _decode(str(data, "utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as exc:
        raise FrameError("the frame's header is not JSON") from exc
    if not isinstance(header, dict):
        raise FrameError("the frame's header is not a JSON object")
    return header


class FrameCounter:
    """Numbers the frames that go out on one connection: 1, 2 ... and after 2^32 - 1 again 1."""

    def __init__(self) -> None:
        self._last = 0

    def number(self, frame: Buffer) -> bytes:
        """Return ``frame`` with the next number, for a `FrameReader` that counts."""
        self._last = _after(self._last)
        header_bytes, body_bytes = PREFIX.unpack_from(frame)
        prefix = PREFIX.pack(header_bytes, self._last * _NUMBERS + body_bytes)
        return b"".join((prefix, memoryview(frame)[PREFIX.size :]))


def _after(number: int) -> int:
    return number % (_NUMBERS - 1) + 1


class FrameReader:
    """Turns a stream of bytes into frames; keeps what is incomplete for the next `feed`.

    Never holds more than one incomplete frame. Sizes above the limits raise `FrameError` as soon
    as the prefix is read, so that a lying peer cannot make us allocate. One that is ``counted``
    takes frames that have no number until the first that has one, and then no other than the next.
    """

    def __init__(self, *, max_body_bytes: int = MAX_BODY_BYTES, counted: bool = False) -> None:
        self._buffer = bytearray()
        self._max_body_bytes = max_body_bytes
        self._counted = counted
        self._last = 0

    def feed(self, data: Buffer) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield each (header, body) completed by ``data``.

        Raises:
            FrameError: the stream is not frames; close the link.
        """
        for header, body in self.feed_raw(data):
            yield decode_header(header), body

    def feed_raw(self, data: Buffer) -> Iterator[tuple[bytes, bytes]]:
        """Yield each (header as its JSON bytes, body): for a relay that does not need the header.

        Raises:
            FrameError: the stream is not frames; close the link.
        """
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= PREFIX.size:
                header_bytes, body_bytes = PREFIX.unpack_from(buffer, position)
                number = 0
                if self._counted:
                    number, body_bytes = divmod(body_bytes, _NUMBERS)
                    self._check_number(number)
                if header_bytes > MAX_HEADER_BYTES or body_bytes > self._max_body_bytes:
                    raise FrameError(
                        f"frame of {header_bytes} + {body_bytes} bytes is over the limit of "
                        f"{MAX_HEADER_BYTES} + {self._max_body_bytes}"
                    )
                start = position + PREFIX.size
                middle = start + header_bytes
                end = middle + body_bytes
                if end > len(buffer):
                    break
                with memoryview(buffer) as view:
                    header = bytes(view[start:middle])
                    body = bytes(view[middle:end])
                position = end
                self._last = number
                yield header, body
        finally:
            del buffer[:position]

    def _check_number(self, number: int) -> None:
        due = _after(self._last)
        if number != due and (number or self._last):
            raise FrameError(
                f"frame {number} came where {due} was due: one was lost, doubled or overtaken"
            )

    @property
    def pending_bytes(self) -> int:
        """Bytes of the incomplete frame held so far; 0 between frames."""
        return len(self._buffer)


_COUNT = struct.Struct(">I")


def pack_records(records: Sequence[Buffer]) -> bytes:
    """Return ``records`` as one pack.

    >>> list(Pack(pack_records([b"a", b"", b"bcd"])))
    [b'a', b'', b'bcd']
    """
    sizes = struct.pack(f">{len(records) + 1}I", len(records), *map(len, records))
    return b"".join((sizes, *records))


class Pack(Sequence[bytes]):
    """A pack, read in place: ``pack[i]`` is record i, ``len(pack)`` their count.

    Say ``most`` of one that a stranger sent: counting its records takes ten times its own memory.
    """

    def __init__(self, data: Buffer, *, most: int | None = None) -> None:
        view = memoryview(data)
        if len(view) < 4:
            raise FrameError("a pack has at least 4 bytes")
        (count,) = _COUNT.unpack_from(view)
        if most is not None and count > most:
            raise FrameError(f"the pack has {count} records, at most {most} are taken")
        start = 4 + 4 * count
        if start > len(view):
            raise FrameError(f"a pack of {count} records cannot be {len(view)} bytes")
        self._view = view
        self._ends = list(accumulate(struct.unpack_from(f">{count}I", view, 4), initial=start))
        if self._ends[-1] != len(view):
            raise FrameError("the sizes in the pack do not add up to its length")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # slices: `cut`
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bytes(self._view[self._ends[index] : self._ends[index + 1]])

    def cut(self, first: int, stop: int) -> bytes:
        """Return records ``first`` up to, not including, ``stop`` as a pack of their own."""
        ends = self._ends
        sizes = [ends[i + 1] - ends[i] for i in range(first, stop)]
        return b"".join(
            (
                struct.pack(f">{len(sizes) + 1}I", len(sizes), *sizes),
                self._view[ends[first] : ends[stop]],
            )
        )
