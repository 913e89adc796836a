"""What a job wrote, shown in the cell that runs now: text, displays and results in their order."""

import codecs
import sys
from collections.abc import Callable
from typing import Any

from picloud_jupyter.protocol.displays import Display, DisplayType, Pieces, Splitter
from picloud_jupyter.protocol.frames import Buffer

HEAD_BYTES = 512 * 1024  # of each stream; a browser stays usable with it
TAIL_BYTES = 64 * 1024  # shown at the end where the head was not all
STREAMS = ("stdout", "stderr")


class TextWindow:
    """Lets the first bytes of a stream pass, and keeps the last. Pure."""

    def __init__(self, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._room = head_bytes
        self._tail_bytes = tail_bytes
        self._tail = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.left_out_bytes = 0

    def pass_on(self, data: bytes) -> str:
        """Return the text of ``data`` that is shown now; of the rest the last is kept."""
        head = b""
        if self._room and not self._tail:
            head = data[: self._room]
            if len(head) < len(data):  # whole lines, where there are any
                head = head[: head.rfind(b"\n") + 1] or head
                self._room = 0
            else:
                self._room -= len(head)
        rest = memoryview(data)[len(head) :]
        if len(rest):
            self._keep(rest)
        return self._decoder.decode(head)

    def _keep(self, rest: memoryview) -> None:
        self._tail += rest[-2 * self._tail_bytes :]
        self.left_out_bytes += max(0, len(rest) - 2 * self._tail_bytes)
        excess = len(self._tail) - self._tail_bytes
        if excess > self._tail_bytes:
            del self._tail[:excess]
            self.left_out_bytes += excess

    def finish(self, words: Callable[[int], str]) -> str:
        """Return what is left to show: ``words`` of how many bytes are not, and the last ones."""
        text = self._decoder.decode(b"", final=True)
        tail = bytes(self._tail)
        if len(tail) > self._tail_bytes or self.left_out_bytes:
            cut = len(tail) - self._tail_bytes
            # whole lines, where there are any; the last byte ends a line, which is to be seen
            cut = tail.find(b"\n", max(cut, 0), -1) + 1 or max(cut, 0)
            self.left_out_bytes += cut
            text += words(self.left_out_bytes)
            tail = tail[cut:]
        self._tail.clear()
        return text + tail.decode("utf-8", "replace")


class RemoteValue:
    """Shows the value of a cell's last expression, which stayed in its job: to have it, assign it."""

    def __init__(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self._data = data
        self._metadata = metadata

    def __repr__(self) -> str:
        return str(self._data.get("text/plain", "<a value that stayed in its job>"))

    def _repr_mimebundle_(self, **_options: object) -> tuple[dict[str, Any], dict[str, Any]]:
        return self._data, self._metadata


class CellOutput:
    """Writes to the cell that is being executed; used by that thread alone."""

    def __init__(self, shell: Any) -> None:  # noqa: ANN401  # IPython's
        self._shell = shell
        self._splitter = Splitter()
        self._windows = {stream: TextWindow() for stream in STREAMS}
        self.jid: int | None = None

    def write(self, stream: str, data: Buffer, *, now: bool = True) -> None:
        """Show ``data`` of ``stream``; with ``now`` the reader sees it before this returns."""
        pieces: Pieces = self._splitter.feed(data) if stream == "stdout" else [bytes(data)]
        self._show(stream, pieces)
        if now:
            getattr(sys, stream).flush()

    def finish(self) -> None:
        """Show what was held back, and how much is not shown."""
        self._show("stdout", self._splitter.finish())
        for stream in STREAMS:
            self._print(stream, self._windows[stream].finish(self._left_out(stream)))

    def _left_out(self, stream: str) -> Callable[[int], str]:
        option = " --stderr" if stream == "stderr" else ""
        return lambda count: (
            f"\n[picloud: {count:,} bytes are not shown here; `picloud logs{option} {self.jid}` prints all]\n"
        )

    def _show(self, stream: str, pieces: Pieces) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                self._print(stream, self._windows[stream].pass_on(piece))
            else:
                self._display(piece)

    def _print(self, stream: str, text: str) -> None:
        if text:
            getattr(sys, stream).write(text)

    def _display(self, display: Display) -> None:
        sys.stdout.flush()  # what was printed before comes before
        if display.type is DisplayType.CLEAR:
            self._shell.display_pub.clear_output(wait=display.wait)
            self._windows = {stream: TextWindow() for stream in STREAMS}
        elif display.type is DisplayType.RESULT:
            sys.displayhook(RemoteValue(display.data, display.metadata))
        else:
            self._shell.display_pub.publish(
                data=display.data,
                metadata=display.metadata,
                transient=display.transient,
                update=display.type is DisplayType.UPDATE,
            )
