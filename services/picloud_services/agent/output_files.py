"""What jobs printed, in files: written by the supervisor, read through the engine.

See docs/internals.md 6 for the format. Nothing here raises because a disk is full: what cannot
be kept is dropped and counted.
"""

import contextlib
import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from picloud_services.agent.output_ring import OutputRing

HEAD_BYTES = 128 * 1024 * 1024
LOOK_BYTES = 4 * 1024 * 1024
RECORD = struct.Struct(">IQQ")
STREAMS = ("stdout", "stderr")
_ENDED = 1 << 31
_STDERR = 1 << 30
_SUFFIXES = ("out", "err")
_LEASE = re.compile(r"[0-9a-f]{16}\Z")
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class OutputPart:
    """A part of what an element printed.

    ``data`` are the bytes from the offset asked for, ``next_offset`` where to go on,
    ``total_bytes`` what is kept so far. ``finished`` tells that no more will come; it is false
    for an element that printed nothing, whose status alone tells.
    """

    data: bytes
    next_offset: int
    total_bytes: int
    finished: bool


class OutputWriter:
    """Writes what the elements of one lease print. A lease that prints nothing costs no file.

    ``positions`` are the elements that stdout and stderr are at. A disk with less than
    ``keep_free_bytes`` free is full.
    """

    def __init__(
        self,
        logs: str,
        lease: str,
        positions: Sequence[int] = (0, 0),
        *,
        keep_free_bytes: int = 0,
    ) -> None:
        stem = _stem(logs, lease)
        self._index = _IndexWriter(stem + ".idx")
        room = _Room(logs, keep_free_bytes)
        self._streams = [
            _StreamWriter(stem, stream, self._index, position, room)
            for stream, position in enumerate(positions)
        ]

    def feed(self, stream: int, pieces: Sequence[bytes]) -> None:
        """Take output of stream 0 or 1; between each two ``pieces`` an element ended."""
        self._streams[stream].feed(pieces)

    def sizes(self, stream: int) -> tuple[int, int]:
        """Return (position, bytes it printed so far) of the element that ``stream`` is at."""
        writer = self._streams[stream]
        return writer.position, writer.printed_bytes

    @property
    def kept_bytes(self) -> int:
        """How many bytes the files hold, with what is about to be written."""
        return sum(writer.file_bytes for writer in self._streams)

    @property
    def dropped_bytes(self) -> int:
        """How many bytes a full disk has cost so far."""
        return sum(writer.lost_bytes for writer in self._streams)

    def close(self) -> None:
        """End the element that still prints, if there is one, and close the files."""
        for writer in self._streams:
            writer.close()
        self._index.close()


class _IndexWriter:
    """Appends whole records; one that did not fit on the disk is written again with the next."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._written_bytes = 0
        self._pending = b""

    def add(self, records: bytes) -> None:
        self._pending += records
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, _NEW_FILE, 0o600)
            done = os.pwrite(self._fd, self._pending, self._written_bytes)
        except OSError:
            return
        done -= done % RECORD.size
        self._written_bytes += done
        self._pending = self._pending[done:]

    def close(self) -> None:
        if self._pending:
            self.add(b"")
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Room:
    """Whether the disk has room for output: asked again when `LOOK_BYTES` more were written."""

    def __init__(self, folder: str, keep_free_bytes: int) -> None:
        self._folder = folder
        self._keep_free_bytes = keep_free_bytes
        self._known_bytes = 0  # may be written before it is asked again

    def has(self, count: int) -> bool:
        """Take ``count`` bytes of the room; return whether they are there."""
        if not self._keep_free_bytes or count <= self._known_bytes:
            self._known_bytes -= count
            return True
        try:
            found = os.statvfs(self._folder)
        except OSError:  # the write will say what is wrong
            return True
        left_bytes = found.f_bavail * found.f_frsize - self._keep_free_bytes - count
        self._known_bytes = min(LOOK_BYTES, left_bytes)
        return left_bytes >= 0


class _StreamWriter:
    """One stream of one lease: the elements' bytes one after another in one file."""

    def __init__(
        self, stem: str, stream: int, index: _IndexWriter, position: int, room: "_Room"
    ) -> None:
        self.position = position
        self.printed_bytes = 0  # by this element
        self.lost_bytes = 0  # to a full disk, over all elements
        self._stem = stem
        self._stream = stream
        self._index = index
        self._room = room
        self._fd = -1
        self._size_bytes = 0
        self._begin: int | None = None  # where this element's output begins; None: nothing yet
        self._begin_noted = False
        self._kept_bytes = 0
        self._dropped_bytes = 0
        self._ring: OutputRing | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._ends: list[
            tuple[int, int, int]
        ] = []  # position, begin, end: not yet in the index

    @property
    def file_bytes(self) -> int:
        """How many bytes its file holds, with what is about to be written and the last bytes of a long output."""
        tail_bytes = self._ring.kept_bytes if self._ring else 0
        return self._size_bytes + self._pending_bytes + tail_bytes

    def feed(self, pieces: Sequence[bytes]) -> None:
        if self._begin is None and not any(pieces):
            self.position += len(pieces) - 1
            return
        for i, piece in enumerate(pieces):
            if i:
                self._end_element()
            if piece:
                self._take(piece)
        self._flush()

    def close(self) -> None:
        if self._begin is not None:
            self._end_element()
            self._flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self, piece: bytes) -> None:
        if self._begin is None:
            self._begin = self._size_bytes + self._pending_bytes
        self.printed_bytes += len(piece)
        room = HEAD_BYTES - self._kept_bytes
        if room > 0:
            self._take_head(piece[:room])
        if len(piece) > room:
            if self._ring is None:
                self._flush()  # its folder is there then, and the head is on disk before the tail
                name = f"{self._stem}.{self.position}.{STREAMS[self._stream]}.tail"
                self._ring = OutputRing(name)
            self._ring.write(piece[max(room, 0) :])

    def _take_head(self, head: bytes) -> None:
        if self._room.has(len(head)):
            self._pending.append(head)
            self._pending_bytes += len(head)
            self._kept_bytes += len(head)
        else:
            self._dropped_bytes += len(head)
            self.lost_bytes += len(head)

    def _end_element(self) -> None:
        if self._begin is not None:
            if self._ring or self._dropped_bytes:
                self._flush()
                self._append_tail()
            end = self._size_bytes + self._pending_bytes
            self._ends.append((self.position, self._begin, end))
        self.position += 1
        self.printed_bytes = self._kept_bytes = self._dropped_bytes = 0
        self._begin, self._begin_noted = None, False

    def _append_tail(self) -> None:
        ring, self._ring = self._ring, None
        dropped = self._dropped_bytes + (ring.dropped_bytes if ring else 0)
        if dropped:
            self._write(b"\n[picloud: %d bytes were dropped here]\n" % dropped)
        if ring:
            for part in ring.read():
                self.lost_bytes += len(part) - self._write(part)
            ring.remove()

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if data:
            lost = len(data) - self._write(data)
            self.lost_bytes += lost
            if lost and self._begin is not None:
                self._dropped_bytes += min(lost, self._kept_bytes)
                self._begin = min(self._begin, self._size_bytes)
        self._note()

    def _note(self) -> None:
        size, bit = self._size_bytes, _STDERR if self._stream else 0
        records = [
            RECORD.pack(position | bit | _ENDED, min(begin, size), min(end, size))
            for position, begin, end in self._ends
        ]
        self._ends.clear()
        if self._begin is not None and not self._begin_noted:
            records.append(RECORD.pack(self.position | bit, self._begin, self._begin))
            self._begin_noted = True
        if records:
            self._index.add(b"".join(records))

    def _write(self, data: bytes) -> int:
        """Return how many of ``data`` were written; fewer than all when the disk is full."""
        written = 0
        try:
            if self._fd < 0:
                os.makedirs(os.path.dirname(self._stem), mode=0o700, exist_ok=True)
                self._fd = os.open(f"{self._stem}.{_SUFFIXES[self._stream]}", _NEW_FILE, 0o600)
            while written < len(data):
                part = data[written:] if written else data
                written += os.pwrite(self._fd, part, self._size_bytes + written)
        except OSError:
            pass  # full, over quota or failing: the caller counts what is missing
        self._size_bytes += written
        return written


def read(
    logs: str, lease: str, position: int, stream: str, offset: int, limit: int
) -> OutputPart:
    """Return at most ``limit`` bytes of what the element printed to ``stream``, from ``offset``.

    Raises:
        ValueError: the lease is not one, or the stream is not "stdout" or "stderr".
        OSError: a file is there and cannot be read.
    """
    number = STREAMS.index(stream)
    stem = _stem(logs, lease)
    try:
        with open(stem + ".idx", "rb") as index:
            found = _find(index.read(), position | (_STDERR if number else 0))
        if found is None:
            return OutputPart(b"", offset, 0, finished=False)
        begin, end, finished = found
        with open(f"{stem}.{_SUFFIXES[number]}", "rb", buffering=0) as file:
            if not finished:
                end = max(begin, os.fstat(file.fileno()).st_size)
            count = max(0, min(limit, end - begin - offset))
            data = os.pread(file.fileno(), count, begin + offset) if count else b""
    except FileNotFoundError:
        return OutputPart(b"", offset, 0, finished=False)
    return OutputPart(data, offset + len(data), end - begin, finished)


def _find(records: bytes, key: int) -> tuple[int, int, bool] | None:
    """Return (begin, end, finished) of the element ``key``; a torn last record is ignored."""
    whole = len(records) - len(records) % RECORD.size
    found = None
    for position, begin, end in RECORD.iter_unpack(memoryview(records)[:whole]):
        if position == key:
            found = begin, end, False
        elif position == key | _ENDED:
            return begin, end, True
    return found


def delete(logs: str, leases: Iterable[str]) -> None:
    """Remove the output of ``leases``; those without any are no error.

    The names are known, for a service has all its leases of years in one folder. Only where a disk was
    too full for the index a tail may stay; `delete_older` finds it.

    Raises:
        ValueError: one of them is not a lease.
    """
    for lease in leases:
        stem = _stem(logs, lease)
        for path in (*_tails(stem), *(f"{stem}.{name}" for name in (*_SUFFIXES, "idx"))):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _tails(stem: str) -> set[str]:
    """Return the tails that a supervisor may have left that was killed: of elements that did not end."""
    try:
        with open(stem + ".idx", "rb") as index:
            records = index.read()
    except FileNotFoundError:
        return set()
    whole = len(records) - len(records) % RECORD.size
    keys = {key for key, _, _ in RECORD.iter_unpack(memoryview(records)[:whole])}
    open_keys = {key for key in keys if not key & _ENDED and key | _ENDED not in keys}
    return {f"{stem}.{key & ~_STDERR}.{STREAMS[bool(key & _STDERR)]}.tail" for key in open_keys}


def list_leases(logs: str) -> list[str]:
    """Return the leases of which there is any output."""
    return sorted({lease for lease, _ in _entries(logs)})


def delete_older(logs: str, leases: Collection[str], before_at: float) -> int:
    """Remove the files of ``leases`` that were last written to before ``before_at``; return their count."""
    count = 0
    for lease, entry in _entries(logs):
        if lease in leases:
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < before_at:
                    os.unlink(entry.path)
                    count += 1
    return count


def _entries(logs: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield (lease, file) of all output."""
    try:
        with os.scandir(logs) as found:
            folders = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:  # the agent makes it
        return
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                lease = entry.name.partition(".")[0]
                if _LEASE.match(lease):
                    yield lease, entry


def _stem(logs: str, lease: str) -> str:
    if not _LEASE.match(lease):
        raise ValueError(f"{lease!r} is not a lease: 16 hex digits")
    return f"{logs}/{lease[:2]}/{lease}"
