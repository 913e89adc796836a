"""Open files travel as what they hold: a file in memory at the same position."""

import io
import os
import pickle
import stat
from typing import IO, Any


class TextFile(io.StringIO):
    """A text file in memory; ``name`` is the path it was read from."""

    name: str
    mode = "r"


class BytesFile(io.BytesIO):
    """A binary file in memory; ``name`` is the path it was read from."""

    name: str
    mode = "rb"


def make_text_file(name: str, text: str, position: int, *, closed: bool = False) -> TextFile:
    """Return a text file that holds ``text``, at character ``position``."""
    made = TextFile(text, newline="")
    made.name = name
    made.seek(position)
    if closed:
        made.close()
    return made


def make_bytes_file(
    name: str, data: bytes, position: int, *, closed: bool = False
) -> BytesFile:
    """Return a binary file that holds ``data``, at byte ``position``."""
    made = BytesFile(data)
    made.name = name
    made.seek(position)
    if closed:
        made.close()
    return made


def _closed_text_file(name: str) -> TextFile:
    return make_text_file(name, "", 0, closed=True)


def _closed_bytes_file(name: str) -> BytesFile:
    return make_bytes_file(name, b"", 0, closed=True)


def reduce_file(file: IO[Any], limit_bytes: int) -> tuple[Any, tuple[Any, ...]]:
    """Return how to rebuild ``file``, open for reading, in memory at the same position.

    Raises:
        pickle.PicklingError: it is a terminal, a pipe, open for writing only, or too large.
    """
    name = str(getattr(file, "name", "file"))
    is_text = isinstance(file, io.TextIOBase)
    if file.closed:
        return (_closed_text_file if is_text else _closed_bytes_file), (name,)
    if not file.readable():
        raise pickle.PicklingError(
            f"the file {name} is open for writing only; send its path, or open it in the function"
        )
    size = _size_of_regular(file, name)
    if size > limit_bytes:
        raise pickle.PicklingError(
            f"the open file {name} has {size:,} bytes, more than the {limit_bytes:,} that may travel; "
            "send its path instead"
        )
    try:
        content, position = _content_and_position(file)
    except (OSError, ValueError) as exc:
        raise pickle.PicklingError(f"the open file {name} cannot be read: {exc}") from exc
    return (make_text_file if is_text else make_bytes_file), (name, content, position)


def _size_of_regular(file: IO[Any], name: str) -> int:
    refusal = f"{name} is not a regular file; only those can be sent. Open it in the function"
    try:
        found = os.fstat(file.fileno())
    except (OSError, ValueError) as exc:
        raise pickle.PicklingError(refusal) from exc
    if not stat.S_ISREG(found.st_mode) or os.path.realpath(name).startswith(
        ("/proc/", "/sys/")
    ):
        raise pickle.PicklingError(refusal)
    return found.st_size


def _content_and_position(file: IO[Any]) -> tuple[Any, int]:
    """Return all of the file, and where it stands in characters or bytes; it is left as it was."""
    here = file.tell()
    try:
        rest = file.read()
        file.seek(0)
        content = file.read()
    finally:
        file.seek(here)
    return content, len(content) - len(rest)
