"""Numbered frames that are kept until the other side has acknowledged them. Pure."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from picloud_jupyter.protocol.frames import Buffer, pack_frame


class Spool:
    """Gives each frame the next number and keeps it until `acknowledge` names that number."""

    def __init__(self) -> None:
        self._frames: deque[tuple[int, bytes, str | None]] = deque()  # number, frame, lease
        self._last = 0
        self.size_bytes = 0

    def add(self, name: str, fields: dict[str, Any], *bodies: Buffer) -> bytes:
        """Keep the frame ``name`` with ``fields`` (in their order) and ``bodies``; return it."""
        self._last += 1
        frame = pack_frame({"t": name, "n": self._last, **fields}, *bodies)
        self._frames.append((self._last, frame, fields.get("lease")))
        self.size_bytes += len(frame)
        return frame

    def acknowledge(self, number: int) -> None:
        """Forget the frames up to and including ``number``."""
        frames = self._frames
        while frames and frames[0][0] <= number:
            self.size_bytes -= len(frames.popleft()[1])

    def __iter__(self) -> Iterator[bytes]:
        """Yield the frames that were not acknowledged, oldest first."""
        return (frame for _, frame, _ in self._frames)

    def leases(self) -> list[str]:
        """Return the leases that the frames which were not acknowledged tell of."""
        return list(dict.fromkeys(lease for _, _, lease in self._frames if lease))

    def __len__(self) -> int:
        return len(self._frames)
