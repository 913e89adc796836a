"""A job's output as one display that can be redrawn: HTML for notebooks, text for the rest. Pure."""

import codecs
import html
import re
from collections import deque

from picloud_jupyter.protocol.displays import Display, DisplayType, Splitter, as_words
from picloud_jupyter.protocol.frames import Buffer

MAX_TEXT_CHARACTERS = 64 * 1024  # of the end of the output
MAX_HTML_BYTES = 4 * 1024 * 1024  # of the last displays
_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_DECODER = codecs.getincrementaldecoder("utf-8")
_IMAGES = ("image/png", "image/jpeg")


class Transcript:
    """Collects what a job writes; the last part of it is shown."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._decoders = {stream: _DECODER("replace") for stream in ("stdout", "stderr")}
        self._parts: deque[tuple[str, str]] = deque()  # (as text, as HTML)
        self._size = 0
        self._html_size = 0
        self._left_out = False

    def add(self, stream: str, data: Buffer) -> None:
        """Take note of ``data`` that was written to ``stream``."""
        if stream == "stdout":
            for piece in self._splitter.feed(data):
                self._add_piece(piece)
        else:
            text = self._decoders[stream].decode(bytes(data))
            self._append(text, f'<span style="opacity:.7">{_escape(text)}</span>')

    def _add_piece(self, piece: bytes | Display) -> None:
        if isinstance(piece, bytes):
            text = self._decoders["stdout"].decode(piece)
            self._append(text, _escape(text))
        elif piece.type is DisplayType.CLEAR:
            self._parts.clear()
            self._size = self._html_size = 0
        else:
            self._append(as_words(piece), _display_html(piece))

    def _append(self, text: str, as_html: str) -> None:
        self._parts.append((text, as_html))
        self._size += len(text)
        self._html_size += len(as_html)
        self._left_out |= len(text) > MAX_TEXT_CHARACTERS
        while len(self._parts) > 1 and (
            self._size > MAX_TEXT_CHARACTERS or self._html_size > MAX_HTML_BYTES
        ):
            first_text, first_html = self._parts.popleft()
            self._size -= len(first_text)
            self._html_size -= len(first_html)
            self._left_out = True

    def text(self) -> str:
        """Return the end of the output as text."""
        return "".join(text for text, _ in self._parts)[-MAX_TEXT_CHARACTERS:]

    def bundle(self, title: str, jid: int) -> dict[str, str]:
        """Return a MIME bundle that shows ``title`` and the output."""
        cut = f"[earlier output: picloud logs {jid}]\n" if self._left_out else ""
        body = "".join(as_html for _, as_html in self._parts)
        return {
            "text/plain": f"{title}\n{cut}{_ANSI.sub('', self.text())}",
            "text/html": (
                f"<div><b>{html.escape(title)}</b>"
                f'<pre style="max-height:24em;overflow:auto">{html.escape(cut)}{body}</pre></div>'
            ),
        }


def _escape(text: str) -> str:
    return html.escape(_ANSI.sub("", text[-MAX_TEXT_CHARACTERS:]))


def _display_html(display: Display) -> str:
    for kind in _IMAGES:
        content = display.data.get(kind)
        if isinstance(content, str):
            return f'<img src="data:{kind};base64,{html.escape("".join(content.split()))}">\n'
    content = display.data.get("text/html")
    if isinstance(content, str):
        return f'<div style="white-space:normal">{content}</div>'
    return _escape(as_words(display))
