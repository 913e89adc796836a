"""Results that are bytes from elsewhere, never held in memory as a whole when they are large.

The file that the agent takes away is a payload from its first byte: the bytes come behind a prefix of
known length, which is written last.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter
from typing import BinaryIO

from picloud_jupyter.serialize.payload import OUT_OF_BAND_BYTES, bytes_prefix

_folder = ""  # of large results; one for the life of a runner
_PREFIX_BYTES = len(bytes_prefix(0))


def use_folder(folder: str) -> None:
    """Put large results into ``folder`` from now on."""
    global _folder  # noqa: PLW0603  # said once, when the runner starts
    _folder = folder


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file in the folder of large results that holds a payload."""

    path: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Its name in that folder."""
        return os.path.basename(self.path)

    def digest(self) -> str:
        """Return the sha256 in hex of what it holds."""
        import hashlib  # the runner starts faster without it

        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remove(self) -> None:
        """Remove it."""
        os.unlink(self.path)


class Collector:
    """Takes bytes as they come: the first 64 KiB stay in memory, more goes to a file."""

    def __init__(self) -> None:
        self._start = bytearray()
        self._file: BufferedWriter | None = None

    def write(self, data: bytes) -> None:
        """Take ``data``.

        Raises:
            OSError: the disk is full, or not to be written.
        """
        if self._file is None:
            if len(self._start) + len(data) <= OUT_OF_BAND_BYTES:
                self._start += data
                return
            self._file = _new_file()
            self._file.write(self._start)
            self._start.clear()
        self._file.write(data)

    def finish(self) -> bytes | ResultFile:
        """Return all that came.

        Raises:
            OSError: the disk is full; what was written is removed.
        """
        if self._file is None:
            return bytes(self._start)
        finished = _finish(self._file)
        self._file = None
        return finished

    def discard(self) -> None:
        """Remove what came."""
        if self._file is not None:
            _remove(self._file)
            self._file = None
        self._start.clear()


def take_copy(source: BinaryIO) -> bytes | ResultFile:
    """Return what ``source`` holds.

    Raises:
        OSError: it cannot be read, or the disk is full; nothing is left behind then.
    """
    start = source.read(OUT_OF_BAND_BYTES + 1)
    if len(start) <= OUT_OF_BAND_BYTES:
        return start
    file = _new_file()
    try:
        file.write(start)
        shutil.copyfileobj(source, file, 1024 * 1024)
        return _finish(file)
    except OSError:
        _remove(file)
        raise


def _new_file() -> BufferedWriter:
    file = open(os.path.join(_folder, os.urandom(16).hex()), "xb")  # noqa: SIM115  # closed by _finish
    file.seek(_PREFIX_BYTES)
    return file


def _finish(file: BufferedWriter) -> ResultFile:
    size_bytes = file.tell()
    file.seek(0)
    file.write(bytes_prefix(size_bytes - _PREFIX_BYTES))
    file.close()
    return ResultFile(file.name, size_bytes)


def _remove(file: BufferedWriter) -> None:
    with suppress(OSError):  # what it still holds back is not wanted
        file.close()
    os.unlink(file.name)
