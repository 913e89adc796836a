r"""Displays within a job's standard output: pictures, tables, HTML, in place and in order.

Each is one APC escape sequence, which terminals ignore:
ESC ``_picloud;`` + base64 of JSON {type, data, metadata, transient, execution_count, wait} + ESC ``\``.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from picloud_jupyter.protocol.frames import Buffer

START = b"\x1b_picloud;"
END = b"\x1b\\"
MAX_SEQUENCE_BYTES = 32 * 1024 * 1024  # of base64
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]")
_DROPPED_MARK = re.compile(rb"\n\[picloud: [0-9]+ bytes were dropped here\]\n")
_MARK_BYTES = 64  # none is longer
_IMAGE = "image/"
_TEXT = "text/plain"


class DisplayType(StrEnum):
    """Jupyter's message types that a display may have."""

    DISPLAY_DATA = "display_data"
    UPDATE = "update_display_data"
    RESULT = "execute_result"
    CLEAR = "clear_output"


@dataclass(frozen=True, slots=True)
class Display:
    """One display message of Jupyter's protocol; ``data`` maps MIME types to content."""

    type: DisplayType
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    transient: dict[str, Any] = field(default_factory=dict)
    execution_count: int | None = None  # of an execute_result
    wait: bool = False  # of a clear_output


Pieces = list[bytes | Display]


class DisplayTooLargeError(ValueError):
    """Raised when a display does not fit into a sequence; its text says how large it is."""


def encode(display: Display) -> bytes:
    """Return ``display`` as one escape sequence. Content that JSON does not know becomes text.

    Raises:
        DisplayTooLargeError: it has more than MAX_SEQUENCE_BYTES.
    """
    value = {
        "type": display.type.value,
        "data": display.data,
        "metadata": display.metadata,
        "transient": display.transient,
        "execution_count": display.execution_count,
        "wait": display.wait,
    }
    payload = base64.b64encode(json.dumps(value, default=_jsonable).encode())
    if len(payload) > MAX_SEQUENCE_BYTES:
        raise DisplayTooLargeError(
            f"the display has {len(payload):,} bytes, more than the {MAX_SEQUENCE_BYTES:,} that output carries; "
            "show less, or write it to a file"
        )
    return b"".join((START, payload, END))


def decode(payload: bytes | bytearray) -> Display | None:
    """Return the display in the base64 ``payload``, None where there is none."""
    try:
        value = json.loads(base64.b64decode(payload, validate=True))
        data, metadata, transient = value["data"], value["metadata"], value["transient"]
        count = value["execution_count"]
        if not all(isinstance(part, dict) for part in (data, metadata, transient)):
            return None
        if not (count is None or isinstance(count, int)):
            return None
        kind = DisplayType(value["type"])
        return Display(kind, data, metadata, transient, count, value["wait"] is True)
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        return None


class Splitter:
    """Splits what a job wrote into text and displays, however its bytes are cut.

    What begins like a display and is none becomes words, as does one that was cut; all other bytes
    pass unchanged. ``begins_within`` says that the first bytes may be the rest of a display, as
    those of a log's tail are.
    """

    def __init__(self, *, begins_within: bool = False) -> None:
        self._held = bytearray()
        self._searched = 0  # so many held bytes are known to be base64
        self._passed = b""  # the end of the text before, in which a mark may have begun
        self._read: Callable[[Pieces], bool] = (
            self._read_rest if begins_within else self._read_text
        )

    def feed(self, data: Buffer) -> Pieces:
        """Return what ``data`` completes; the beginning of a display is held back."""
        self._held += data
        pieces: Pieces = []
        while self._held and self._read(pieces):
            pass
        return pieces

    def finish(self) -> Pieces:
        """Return what was held back, as words and text: nothing more comes."""
        held, self._held = bytes(self._held), bytearray()
        within = self._read == self._read_payload
        self._enter(self._read_text)
        if within:
            return [_broken(len(held))]
        return [held] if held else []

    def _enter(self, read: Callable[[Pieces], bool]) -> None:
        self._read = read
        self._searched = 0
        self._passed = b""

    def _take(self, size: int) -> bytes:
        taken = bytes(memoryview(self._held)[:size])
        del self._held[:size]
        return taken

    def _read_text(self, pieces: Pieces) -> bool:
        """Pass text up to the next display, or up to where output was dropped."""
        start = self._held.find(START)
        mark = self._find_mark_end(start if start >= 0 else len(self._held))
        if mark:
            pieces.append(self._take(mark))
            self._enter(self._read_rest)
            return True
        size = start if start >= 0 else len(self._held) - _held_back(self._held)
        if size:
            pieces.append(self._take(size))
        if start < 0:
            if size:
                self._passed = (self._passed + pieces[-1][-_MARK_BYTES:])[-_MARK_BYTES:]  # type: ignore[index]  # text
            return False
        del self._held[: len(START)]
        self._enter(self._read_payload)
        return True

    def _find_mark_end(self, end: int) -> int:
        """Return where the first mark of dropped output ends, 0 where there is none."""
        if self._passed:
            begun = self._passed + self._held[: min(end, _MARK_BYTES)]
            if found := _DROPPED_MARK.search(begun):
                return found.end() - len(self._passed)
        found = _DROPPED_MARK.search(self._held, 0, end)
        return found.end() if found else 0

    def _read_payload(self, pieces: Pieces) -> bool:
        size = self._base64_size()
        if size is None:
            return False
        display = None
        if self._held.startswith(END, size):
            display = decode(self._held[:size])
            size += len(END)
        del self._held[:size]
        pieces.append(_broken(size) if display is None else display)
        self._enter(self._read_text if size <= MAX_SEQUENCE_BYTES else self._read_rest)
        return True

    def _read_rest(self, pieces: Pieces) -> bool:
        """Drop the rest of a display that was cut; what else stands there is text."""
        size = self._base64_size()
        if size is None:
            return False
        if self._held.startswith(END, size):
            size += len(END)
            del self._held[:size]
            pieces.append(_broken(size))
        elif size:
            pieces.append(self._take(size))
        self._enter(self._read_text)
        return True

    def _base64_size(self) -> int | None:
        """Return how many held bytes are base64, None while it may become a display yet."""
        found = _NOT_BASE64.search(self._held, self._searched)
        self._searched = found.start() if found else len(self._held)
        if self._searched > MAX_SEQUENCE_BYTES:
            return MAX_SEQUENCE_BYTES + 1
        is_last = self._searched == len(self._held) - 1
        if found is None or (is_last and self._held.endswith(END[:1])):
            return None
        return self._searched


def as_words(display: Display) -> str:
    r"""Return ``display`` for a terminal: its text, or what it is and how large; ends its line.

    >>> as_words(Display(DisplayType.DISPLAY_DATA, {"text/plain": "<Figure>", "image/png": "A" * 32000}))
    '[figure image/png 24 kB]\n'
    """
    if not display.data:
        return ""
    for kind, content in display.data.items():
        if kind.startswith(_IMAGE):
            return f"[figure {kind} {_size_words(kind, content)}]\n"
    text = display.data.get(_TEXT)
    if isinstance(text, str):
        return f"{text}\n"
    kind, content = next(iter(display.data.items()))
    return f"[{kind} {_size_words(kind, content)}]\n"


def to_terminal(pieces: Pieces) -> bytes:
    """Return what `Splitter` gave as bytes for a terminal, displays as words."""
    return b"".join(
        piece
        if isinstance(piece, bytes)
        else as_words(piece).encode("utf-8", "backslashreplace")
        for piece in pieces
    )


def text_for_terminal(text: str, *, begins_within: bool = False) -> str:
    """Return ``text``, a job's output as text, with its displays as words."""
    splitter = Splitter(begins_within=begins_within)
    data = text.encode("utf-8", "surrogatepass")
    shown = to_terminal([*splitter.feed(data), *splitter.finish()])
    return shown.decode("utf-8", "surrogatepass")


def _size_words(kind: str, content: object) -> str:
    size = len(content if isinstance(content, str) else json.dumps(content))
    if kind.startswith(_IMAGE) and not kind.endswith("+xml"):
        size = size * 3 // 4  # base64
    return f"{size} B" if size < 1000 else f"{size / 1000:.0f} kB"


def _broken(size: int) -> bytes:
    return b"[picloud: a display of %d bytes was cut or damaged here]\n" % size


def _held_back(data: bytearray) -> int:
    """Return how many bytes at the end of ``data`` may be the beginning of a display."""
    for size in range(min(len(START) - 1, len(data)), 0, -1):
        if data.endswith(START[:size]):
            return size
    return 0


def _jsonable(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    return str(value)
