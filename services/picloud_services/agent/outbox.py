"""Events on their way to the control plane: numbered, kept until acknowledged. Pure."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.frames import decode_header, pack_raw

NUMBER = b',"n":'
ITEMS = b',"items":'
FILE = b'"file":'


@dataclass(frozen=True, slots=True)
class _Entry:
    n: int
    frame: bytes
    container: str
    container_n: int
    lease: str


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
        header: bytes,
        body: bytes = b"",
        *,
        lease: str = "",
        container: str = "",
        container_n: int = 0,
    ) -> bytes:
        """Number an event of ``lease`` and keep it; returns its frame. ``header`` is JSON and has an ``n``."""
        self._last_n += 1
        frame = pack_raw(renumber(header, self._last_n), body)
        self._entries.append(_Entry(self._last_n, frame, container, container_n, lease))
        self.size_bytes += len(frame)
        return frame

    def add_silent(self, container: str, container_n: int) -> bool:
        """Keep what only the supervisor waits for; False if nothing is before it: tell it now."""
        if not self._entries:
            return False
        self._entries.append(_Entry(self._entries[-1].n, b"", container, container_n, ""))
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

    def leases(self) -> list[str]:
        """Return the leases that the events which are not acknowledged tell of."""
        return list(dict.fromkeys(entry.lease for entry in self._entries if entry.lease))


def number_of(header: bytes) -> int:
    """Return the number of a frame whose header is JSON, 0 if it has none. Its second key is ``n``.

    >>> number_of(b'{"t":"returned","n":3,"lease":"f0"}'), number_of(b'{"t":"ready","seconds":1}')
    (3, 0)
    """
    name, found, rest = header.partition(NUMBER)
    return int(rest[: rest.index(b",")]) if found and b"," not in name else 0


def renumber(header: bytes, n: int) -> bytes:
    """Return ``header`` with another number. Its second key is ``n``, and not its last one.

    >>> renumber(b'{"t":"returned","n":3,"lease":"f0"}', 17)
    b'{"t":"returned","n":17,"lease":"f0"}'
    """
    begin = header.index(NUMBER) + len(NUMBER)
    return b"%b%d%b" % (header[:begin], n, header[header.index(b",", begin) :])


def without_items(header: bytes) -> dict[str, Any]:
    """Return a batch's header without its ``items``, which are its last key and stay undecoded.

    A thousand items are not decoded only to be passed on. The key cannot be found inside a text by
    mistake: there its quotes would be escaped.

    >>> without_items(b'{"t":"batch","n":3,"items":[[0,"done"]]}')
    {'t': 'batch', 'n': 3}
    """
    return decode_header(header[: header.index(ITEMS)] + b"}")
