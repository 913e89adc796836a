"""Keeps what a job wrote whose container ended before its runner could: killed, crashed, out of memory. Sync.

Nothing runs in the container any more, but what it left is not believed: links are not followed, and
every folder is entered through its parent's descriptor.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.frames import PREFIX, encode_json
from picloud_jupyter.protocol.written_files import (
    MAX_FILES,
    MAX_FILES_BYTES,
    WrittenFile,
    is_plain_path,
    listing_header,
)
from picloud_services.base.filesystem import sync_folder

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TOO_MUCH = f"at most {MAX_FILES:,} files and {MAX_FILES_BYTES >> 20:,} MiB of a job are kept; write more to a volume"


def has_files(folder: Path) -> bool:
    """Return whether there is anything in ``folder``."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False


def keep_files(folder: Path, target: Path) -> dict[str, Any] | None:
    """Copy the files below ``folder`` into the new file ``target``, durable; None if there are none.

    Returns what a runner says of written files; see docs/internals.md 3.

    Raises:
        OSError: the disk refused.
    """
    kept: list[WrittenFile] = []
    left: list[tuple[str, str]] = []
    contents = target.with_name(f"{target.name}.contents")
    try:
        with open(contents, "w+b") as body:
            for path, file in _plain_files(folder, left):
                with open(file, "rb") as source:
                    size_bytes = os.fstat(file).st_size
                    if len(kept) == MAX_FILES or body.tell() + size_bytes > MAX_FILES_BYTES:
                        left.append((path, _TOO_MUCH))
                        continue
                    begin = body.tell()
                    while piece := source.read(1024 * 1024):
                        body.write(piece)
                    kept.append(WrittenFile(path, body.tell() - begin, os.fstat(file).st_mtime))
            if not kept and not left:
                return None
            size = _write(target, encode_json(listing_header(kept, left[:MAX_FILES])), body)
    finally:
        contents.unlink(missing_ok=True)
    return {"file": target.name, "size": size, "count": len(kept), "left": len(left)}


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


def _plain_files(folder: Path, left: list[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    """Yield (path, open descriptor, the reader's to close) of each file; name the others in ``left``."""
    for place, folders, names, opened in os.fwalk(folder, follow_symlinks=False):
        folders.sort()  # links to folders are among them; they are not entered
        for name in (*folders, *sorted(names)):
            path = os.path.relpath(f"{place}/{name}", folder)
            found = os.stat(name, dir_fd=opened, follow_symlinks=False)
            is_whiteout = (
                stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
            )  # of what was removed
            if stat.S_ISDIR(found.st_mode) or is_whiteout:
                continue
            if not stat.S_ISREG(found.st_mode) or not is_plain_path(path):
                text = path.encode("utf-8", "replace").decode()
                left.append((text, "it is no plain file with a plain name"))
                continue
            yield path, os.open(name, _OPEN, dir_fd=opened)
