"""Finds damage in SQLite's write-ahead log, of which SQLite itself says nothing: it takes the log to end there.

Source: https://sqlite.org/fileformat2.html, 4. A crash leaves an unfinished transaction behind the log's valid
part, or one whose commit failed: at most one commit in an unbroken chain of sums. Each commit waits for the
disk before the next begins, so two commits in one chain were both acknowledged.
"""

import contextlib
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from picloud_jupyter.protocol.errors import Corrupt
from picloud_services.base.connections import PAGE_BYTES

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint, salts, sums
_FRAME = struct.Struct(">6I")  # page, size after a commit, salts, sums
_INDEX = struct.Struct("=14xHI")  # page size, valid frames: sqlite.org/walformat.html 2.1
_SUMMED_BYTES = 24  # of the header
_MASK = 0xFFFFFFFF


def check_log(store: Path) -> None:
    """Return if nothing that was committed stands in the log of ``store`` where it cannot be read.

    Raises:
        Corrupt: the log is damaged before its end.
    """
    log = store.with_name(f"{store.name}-wal")
    if not log.exists() or not log.stat().st_size:
        return
    valid_frames = _valid_frames(store)
    # read by pieces: after a long backup it has gigabytes
    with log.open("rb", buffering=0) as file:
        lost = _lost_commits(file.fileno(), valid_frames)
    if lost > 1 and _valid_frames(store) == valid_frames:  # else a service writes it just now
        raise Corrupt(
            f"The log {log} is damaged: {lost} commits in it cannot be read, whose jobs would be lost.",
            hint="put back a copy of the home (picloud restore), or move that file away to go on without those jobs",
        )


def _valid_frames(store: Path) -> int:
    """Return how many frames of the log SQLite can read. A reader changes neither file."""
    uri = f"file:{quote(str(store))}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as reader:
        reader.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        with open(f"{store}-shm", "rb") as index:
            frames: int = _INDEX.unpack(index.read(_INDEX.size))[1]
    return frames


def _lost_commits(log: int, valid_frames: int) -> int:
    """Return the most commits in one chain behind the valid part of the open file ``log``."""
    head = os.pread(log, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        return 0
    magic, _, page_bytes, _, *rest = _HEADER.unpack(head)
    words = struct.Struct(">II" if magic & 1 else "<II")
    known: list[int] | None = rest[
        :2
    ]  # the salts of this log's frames; others are of an older one
    if _sums(words, head[:_SUMMED_BYTES], (0, 0)) != tuple(rest[2:]):
        known, page_bytes, words = None, PAGE_BYTES, struct.Struct("=II")  # it is worth nothing
    most = commits = 0
    before: tuple[int, int] | None = None
    for frame, page_at in _frames(log, page_bytes, valid_frames):
        _, commit, salt_1, salt_2, *sums = _FRAME.unpack(frame)
        if known not in (None, [salt_1, salt_2]):
            commits, before = 0, None
            continue
        content = frame[:8] + os.pread(log, page_bytes, page_at)
        if before is None or _sums(words, content, before) != (sums[0], sums[1]):
            commits = 0  # a chain begins
        commits += bool(commit)
        most = max(most, commits)
        before = sums[0], sums[1]
    return most


def _frames(log: int, page_bytes: int, first: int) -> Iterator[tuple[bytes, int]]:
    """Yield the header of each frame from number ``first`` on, and where its page begins."""
    step = _FRAME.size + page_bytes
    end = os.fstat(log).st_size - step + 1
    for at in range(_HEADER.size + first * step, end, step):
        yield os.pread(log, _FRAME.size, at), at + _FRAME.size


def _sums(words: struct.Struct, content: bytes, before: tuple[int, int]) -> tuple[int, int]:
    first, second = before
    for one, two in words.iter_unpack(content):
        first = (first + one + second) & _MASK
        second = (second + two + first) & _MASK
    return first, second
