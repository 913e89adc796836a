"""Keeps what a job wrote whose container ended before its runner could: killed, crashed, out of memory. Sync.

Nothing runs in the container any more, but what it left is not believed: links are not followed, and
every folder is entered through its parent's descriptor.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.frames import PREFIX, encode_json
from picloud_jupyter.protocol.written_files import (
    MAX_FILES,
    MAX_FILES_BYTES,
    MAX_LEFT,
    MAX_LISTING_BYTES,
    WrittenFile,
    is_plain_path,
    listing_header,
)
from picloud_services.base.filesystem import sync_folder

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TOO_MUCH = f"at most {MAX_FILES:,} files and {MAX_FILES_BYTES >> 20:,} MiB of a job are kept; write more to a volume"
MAX_DEPTH = 100  # each folder on the way down is an open descriptor and a level of recursion
_TOO_DEEP = f"it lies in more than {MAX_DEPTH} folders"
_NAMED_CHARACTERS = 500  # of the path of a file that is not kept


@dataclass(slots=True)
class _Left:
    """(path, why) of what is not kept: the first ones by name, the others as a count."""

    named: list[tuple[str, str]] = field(default_factory=list)
    count: int = 0

    def add(self, path: str, why: str) -> None:
        self.count += 1
        if self.count <= MAX_LEFT:
            text = path.encode("utf-8", "replace").decode()
            self.named.append((text[:_NAMED_CHARACTERS], why))

    def listed(self) -> list[tuple[str, str]]:
        more = self.count - len(self.named)
        return [*self.named, ("...", f"{more:,} more were left out")] if more else self.named


def has_files(folder: Path) -> bool:
    """Return whether there is anything in ``folder``, as far as the job lets anybody look."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False
    except OSError:  # whoever is to copy them hears why not
        return True


def keep_files(folder: Path, target: Path) -> dict[str, Any] | None:
    """Copy the files below ``folder`` into the new file ``target``, durable; None if there are none.

    Returns what a runner says of written files; see docs/internals.md 3.

    Raises:
        OSError: the disk refused; ``target`` is not there then.
    """
    kept: list[WrittenFile] = []
    left = _Left()
    contents = target.with_name(f"{target.name}.contents")
    room_bytes = MAX_LISTING_BYTES // 2  # for the kept ones; the others have the rest
    try:
        with open(contents, "w+b") as body:
            for path, file in _plain_files(folder, left):
                with open(file, "rb") as source:
                    found = os.fstat(file)
                    begin = body.tell()
                    room_bytes -= len(encode_json([path, found.st_size, found.st_mtime])) + 1
                    if (
                        len(kept) == MAX_FILES
                        or begin + found.st_size > MAX_FILES_BYTES
                        or room_bytes < 0
                    ):
                        left.add(path, _TOO_MUCH)
                        continue
                    while piece := source.read(1024 * 1024):
                        body.write(piece)
                    kept.append(WrittenFile(path, body.tell() - begin, found.st_mtime))
            if not kept and not left.count:
                return None
            size = _write(target, encode_json(listing_header(kept, left.listed())), body)
    except OSError:
        target.unlink(missing_ok=True)
        raise
    finally:
        contents.unlink(missing_ok=True)
    return {"file": target.name, "size": size, "count": len(kept), "left": left.count}


def _write(target: Path, header: bytes, body: Any) -> int:  # noqa: ANN401  # an open file
    body_bytes: int = body.tell()
    body.flush()
    target.unlink(missing_ok=True)
    with open(target, "xb", opener=lambda path, flags: os.open(path, flags, 0o400)) as file:
        file.write(PREFIX.pack(len(header), body_bytes) + header)
        file.flush()
        done = 0
        while done < body_bytes:
            done += os.sendfile(file.fileno(), body.fileno(), done, body_bytes - done)
        os.fsync(file.fileno())
    sync_folder(target.parent)
    return PREFIX.size + len(header) + body_bytes


def _plain_files(folder: Path, left: _Left) -> Iterator[tuple[str, int]]:
    """Yield (path, open descriptor, the reader's to close) of each file; name the others in ``left``."""

    def unreadable(error: OSError, path: str = "") -> None:
        left.add(path or str(error.filename), f"it cannot be read: {error.strerror}")

    walk = os.fwalk(folder, onerror=unreadable, follow_symlinks=False)
    for place, folders, names, opened in walk:
        folders.sort()  # links to folders are among them; they are not entered
        inside = os.path.relpath(place, folder)
        prefix = "" if inside == "." else f"{inside}/"
        is_deepest = prefix.count("/") == MAX_DEPTH
        for name in (*folders, *sorted(names)):
            path = prefix + name
            try:
                found = os.stat(name, dir_fd=opened, follow_symlinks=False)
                if why := _why_not(path, found, is_deepest=is_deepest):
                    left.add(path, why)
                elif stat.S_ISREG(found.st_mode):
                    yield path, os.open(name, _OPEN, dir_fd=opened)
            except PermissionError as exc:
                unreadable(exc, path)
        if is_deepest:
            folders.clear()


def _why_not(path: str, found: os.stat_result, *, is_deepest: bool) -> str:
    """Return why what is at ``path`` is not kept; "" for a plain file, and for what holds nothing."""
    mode = found.st_mode
    if stat.S_ISDIR(mode):
        return _TOO_DEEP if is_deepest else ""
    if stat.S_ISCHR(mode) and found.st_rdev == 0:  # what the overlay puts for a removed file
        return ""
    if not stat.S_ISREG(mode) or not is_plain_path(path):
        return "it is no plain file with a plain name"
    return ""
