"""The last bytes of an endless output, in a file of bounded size."""

import contextlib
import os
from collections.abc import Iterator

RING_BYTES = 16 * 1024 * 1024
_PART_BYTES = 1024 * 1024


class OutputRing:
    """Keeps the last `RING_BYTES` of what is written; a full disk drops what does not fit."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._total_bytes = 0
        self._start = 0  # bytes before this one were overwritten or never written

    @property
    def kept_bytes(self) -> int:
        """How many bytes are kept."""
        return self._total_bytes - self.dropped_bytes

    @property
    def dropped_bytes(self) -> int:
        """How many bytes before the kept ones are gone."""
        return max(self._start, self._total_bytes - RING_BYTES)

    def write(self, data: bytes) -> None:
        """Take ``data`` as the newest bytes."""
        view = memoryview(data)
        if len(view) > RING_BYTES:
            self._total_bytes += len(view) - RING_BYTES
            view = view[-RING_BYTES:]
        while view:
            at = self._total_bytes % RING_BYTES
            part = view[: RING_BYTES - at]
            done = self._put(part, at)
            self._total_bytes += len(part)
            if done < len(part):
                self._start = self._total_bytes
            view = view[len(part) :]

    def _put(self, part: memoryview, at: int) -> int:
        try:
            if self._fd < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            return os.pwrite(self._fd, part, at)
        except OSError:
            return 0  # full or failing: the ring starts anew behind the gap

    def read(self) -> Iterator[bytes]:
        """Yield the kept bytes, oldest first, in parts of at most 1 MiB."""
        position = self.dropped_bytes
        while position < self._total_bytes:
            at = position % RING_BYTES
            count = min(_PART_BYTES, RING_BYTES - at, self._total_bytes - position)
            part = os.pread(self._fd, count, at)
            if not part:
                return
            position += len(part)
            yield part

    def remove(self) -> None:
        """Remove the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                os.unlink(self._path)
