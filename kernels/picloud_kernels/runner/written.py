"""What an element wrote in its folder: kept as one file, then taken away before the next element.

``layer`` shows what the overlay on the folder keeps apart from the user's own files, read-only. It is
empty until something is written, so that an element that writes nothing costs one look at it.
"""

import os
import stat
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.frames import PREFIX, encode_json
from picloud_jupyter.protocol.written_files import (
    MAX_FILES,
    MAX_FILES_BYTES,
    MAX_LEFT,
    MAX_LISTING_BYTES,
    MAX_PATH_BYTES,
    WrittenFile,
    listing_header,
)

LAYER_NAME = "written"  # in run_dir; docs/internals.md 7
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINK = "it is a symbolic link, which is not followed"
_SPECIAL = "it is a device, a pipe or a socket"
_CLOSED = "it is a folder that cannot be looked into"
_LISTED_BYTES = (
    MAX_LISTING_BYTES // 2
)  # for the files that are kept; the others are named with the rest
_ENTRY_BYTES = 64  # of one in the list, beside its path
_SHOWN_CHARACTERS = 500  # of the path of one that is not kept


@dataclass(slots=True)
class _Found:
    """What is in the layer: ``files`` and ``others`` to remove, ``folders`` from the outer ones in."""

    files: list[str]
    folders: list[str]
    others: list[tuple[str, str]]  # path, why it is not kept
    hides: bool = False  # something of the user's own folder was removed or replaced


class WrittenFiles:
    """The files that the elements of this container write. ``layer`` is "" where none is kept apart.

    ``is_spent`` once a file of the user's own folder was changed: only a new container shows it again.
    """

    def __init__(self, folder: str, layer: str, out_dir: str) -> None:
        self._folder = folder
        self._layer = layer if folder and layer and os.path.isdir(layer) else ""
        self._out_dir = out_dir
        self._untouched_ns = self._changed_ns()
        # Overlays give 1 to a folder that is also the user's; some file systems give it to all.
        self._tells_own = bool(self._layer) and os.stat(self._layer).st_nlink > 1
        self.is_spent = False

    def take(self) -> dict[str, Any]:
        """Keep and remove what was written since the last time; return it as fields of a result.

        Files that cannot be kept are named with the reason; a disk that is full is a ``note``.
        """
        if not self._layer or self._changed_ns() == self._untouched_ns:
            return {}
        self._untouched_ns = -1  # from now on each element is looked at
        found = self._find()
        extra: dict[str, Any] = {}
        if found.files or found.others:
            try:
                extra = {"files": self._keep(found)}
            except OSError as exc:
                extra = {"note": f"the files that it wrote could not be kept: {exc.strerror}"}
        self._remove(found)
        return extra

    def _changed_ns(self) -> int:
        return os.stat(self._layer).st_ctime_ns if self._layer else -1

    def _find(self) -> _Found:
        found = _Found([], [], [])
        todo = [""]
        while todo:
            inside = todo.pop()
            try:
                entries = _entries(f"{self._layer}/{inside}")
            except FileNotFoundError:  # removed by a process of the job that goes on
                continue
            except OSError as exc:  # closed by the job even for itself, or too deep
                found.others.append((inside.rstrip("/") or ".", f"{_CLOSED}: {exc.strerror}"))
                continue
            for entry in entries:
                path = f"{inside}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    found.folders.append(path)
                    todo.append(f"{path}/")
                elif entry.is_file(follow_symlinks=False):
                    found.files.append(path)
                elif _is_whiteout(entry):
                    found.hides = True
                else:
                    found.others.append((path, _LINK if entry.is_symlink() else _SPECIAL))
        found.files.sort()
        return found

    def _keep(self, found: _Found) -> dict[str, Any]:
        """Copy the files into one file in the folder for results.

        Raises:
            OSError: the disk refused.
        """
        left = list(found.others)
        kept: list[WrittenFile] = []
        name = os.urandom(16).hex()
        target = os.path.join(self._out_dir, name)
        contents = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            header = self._choose(found.files, kept, left)
            offset = PREFIX.size + len(header)
            total = offset + sum(file.size_bytes for file in kept)
            os.truncate(contents, total)  # a file that shrinks meanwhile ends in zeros
            _write_whole(contents, PREFIX.pack(len(header), total - offset) + header)
            for file in kept:
                self._copy(file, contents, offset)
                offset += file.size_bytes
        except OSError:
            os.unlink(target)
            raise
        finally:
            os.close(contents)
        return {"file": name, "size": total, "count": len(kept), "left": len(left)}

    def _choose(
        self, paths: list[str], kept: list[WrittenFile], left: list[tuple[str, str]]
    ) -> bytes:
        """Sort ``paths`` into ``kept`` and ``left``; return the listing."""
        total = listed = 0
        for path in paths:
            entry_bytes = len(encode_json(path)) + _ENTRY_BYTES
            try:
                status = os.stat(f"{self._layer}/{path}", follow_symlinks=False)
                why = self._why_not(path, status.st_size, total, len(kept))
                if listed + entry_bytes > _LISTED_BYTES:
                    why = (
                        why or "the list of the job's files is too long; write more to a volume"
                    )
            except OSError as exc:
                why = f"it cannot be read: {exc.strerror}"
            if why:
                left.append((path, why))
            else:
                total += status.st_size
                listed += entry_bytes
                kept.append(WrittenFile(path, status.st_size, status.st_mtime))
        named = [(_shown(path), why) for path, why in left]
        if len(named) > MAX_LEFT:
            named[MAX_LEFT:] = [("...", f"{len(named) - MAX_LEFT:,} more were left out")]
        return encode_json(listing_header(kept, named))

    def _why_not(self, path: str, size_bytes: int, total_bytes: int, count: int) -> str:
        if count >= MAX_FILES:
            return f"at most {MAX_FILES:,} files of a job are kept; write more to a volume"
        if total_bytes + size_bytes > MAX_FILES_BYTES:
            return f"at most {MAX_FILES_BYTES >> 20:,} MiB of a job are kept; write more to a volume"
        try:
            if len(path.encode()) > MAX_PATH_BYTES:
                return "its path is too long"
        except UnicodeEncodeError:
            return "its name is not UTF-8"
        os.close(os.open(f"{self._layer}/{path}", _OPEN))
        return ""

    def _copy(self, file: WrittenFile, target: int, offset: int) -> None:
        source = os.open(f"{self._layer}/{file.path}", _OPEN)
        try:
            os.lseek(target, offset, os.SEEK_SET)
            done = 0
            while done < file.size_bytes:
                count = os.sendfile(target, source, done, file.size_bytes - done)
                if not count:
                    break
                done += count
        finally:
            os.close(source)

    # ------------------------------------------------------------------------------- taking away
    def _remove(self, found: _Found) -> None:
        """Remove what was found, through the overlay; see whether the folder is as it was."""
        for path in (*found.files, *(path for path, _ in found.others)):
            self._try(os.unlink, path)
        for path in sorted(found.folders, key=lambda path: -path.count("/")):
            if not self._is_users(path):
                self._try(os.rmdir, path)
        left = self._find()
        # What is left in the layer hides, or stands in for, something of the user's own folder.
        self.is_spent = bool(left.hides or left.files or left.others)

    def _is_users(self, path: str) -> bool:
        """Return whether the folder is surely one of the user's own, into which something was written."""
        try:
            links = os.stat(f"{self._folder}/{path}", follow_symlinks=False).st_nlink
        except OSError:
            return False
        return self._tells_own and links == 1

    def _try(self, remove: Any, path: str) -> None:  # noqa: ANN401  # unlink or rmdir
        try:
            remove(f"{self._folder}/{path}")
        except OSError:
            return  # seen afterwards, by what is left


def _write_whole(file: int, data: bytes) -> None:
    """Write ``data`` at the beginning of ``file``; what a full disk took only a part of raises."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], done)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _shown(path: str) -> str:
    text = path.encode("utf-8", "replace").decode()
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _is_whiteout(entry: os.DirEntry[str]) -> bool:
    """Return whether it is the overlay's mark of something that was removed."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
