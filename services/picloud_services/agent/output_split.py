"""Splits what a runner's pipe delivers into the output of single elements. Pure."""


class OutputSplitter:
    """Cuts a stream of bytes at each marker; keeps back only what may be the start of one."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of output in ``data``: a marker stood between each two of them.

        The last piece is output of an element that has not ended (often empty), so
        ``len(pieces) - 1`` elements ended.
        """
        marker = self._marker
        size = len(marker)
        if not self._held and len(data) == data.count(marker) * size:
            return [b""] * (len(data) // size + 1)
        pieces = (self._held + data).split(marker)
        last = pieces[-1]
        keep = self._start_of_marker(last)
        self._held = last[len(last) - keep :]
        if keep:
            pieces[-1] = last[:-keep]
        return pieces

    def finish(self) -> bytes:
        """Return what was kept back; nothing more will come."""
        held, self._held = self._held, b""
        return held

    def _start_of_marker(self, data: bytes) -> int:
        """Return how many bytes at the end of ``data`` are the beginning of a marker."""
        marker = self._marker
        tail = data[1 - len(marker) :]
        at = tail.find(marker[:1])
        while at >= 0:
            if marker.startswith(tail[at:]):
                return len(tail) - at
            at = tail.find(marker[:1], at + 1)
        return 0
