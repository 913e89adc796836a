"""Events on their way to the control plane: numbered, kept until acknowledged. Pure."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.frames import decode_header, encode_json, pack_raw

ITEMS = b',"items":'
FILE = b'"file":'


@dataclass(frozen=True, slots=True)
class _Entry:
    n: int
    frame: bytes
    container: str
    container_n: int


class Outbox:
    """What the control plane has not acknowledged, in order, and whose supervisor waits for it.

    A supervisor is told of an acknowledgement only when the control plane gave it: an event
    survives the loss of the agent, because its supervisor still has it.
    """

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._last_n = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self,
        header: dict[str, Any],
        body: bytes = b"",
        *,
        container: str = "",
        container_n: int = 0,
        items: bytes = b"",
    ) -> bytes:
        """Number an event and keep it; returns its frame.

        ``items`` is the undecoded end of a batch's header, as `split_items` gave it.
        """
        self._last_n += 1
        head = encode_json({**header, "n": self._last_n})
        frame = pack_raw(head[:-1] + items if items else head, body)
        self._entries.append(_Entry(self._last_n, frame, container, container_n))
        self.size_bytes += len(frame)
        return frame

    def add_silent(self, container: str, container_n: int) -> bool:
        """Keep what only the supervisor waits for; False if nothing is before it: tell it now."""
        if not self._entries:
            return False
        self._entries.append(_Entry(self._entries[-1].n, b"", container, container_n))
        return True

    def acknowledge(self, n: int) -> dict[str, int]:
        """Forget events up to ``n``; returns the highest number by container to pass on."""
        passed_on: dict[str, int] = {}
        while self._entries and self._entries[0].n <= n:
            entry = self._entries.popleft()
            self.size_bytes -= len(entry.frame)
            if entry.container:
                passed_on[entry.container] = entry.container_n
        return passed_on

    def frames(self) -> Iterator[bytes]:
        """Yield the frame of each event that is not acknowledged, oldest first."""
        return (entry.frame for entry in self._entries if entry.frame)


def split_items(header: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a batch's header without ``items``, and the undecoded rest from ``items`` on.

    A thousand items are not decoded and encoded again only to be passed on. The key cannot be
    found inside a text by mistake: there its quotes would be escaped. When ``items`` is not the last
    key, the rest is "" and the header whole.

    >>> split_items(b'{"t":"batch","n":3,"items":[[0,"done"]]}')
    ({'t': 'batch', 'n': 3}, b',"items":[[0,"done"]]}')
    """
    cut = header.find(ITEMS)
    if cut < 0 or not header.endswith(b"]}"):
        return decode_header(header), b""
    return decode_header(header[:cut] + b"}"), header[cut:]
