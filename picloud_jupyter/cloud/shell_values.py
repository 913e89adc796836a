"""Values of a command's parameters: texts, and local files that are found at once and read late."""

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from picloud_jupyter.cloud.settings import config
from picloud_jupyter.cloud.shell_templates import Pieces, check_length
from picloud_jupyter.protocol.errors import PayloadTooLarge
from picloud_jupyter.protocol.shell import ADDED_DIGITS, UploadedFile, Value

_ESCAPE = r"write '\@...' for a text that begins with @"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to send, which could be read when it was looked for."""

    path: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return os.path.basename(self.path)


Bound = dict[str, str | LocalFile]


def bind(values: Mapping[str, str]) -> Bound:
    """Return ``values`` with the files that they name; see `bind_value`."""
    return {name: bind_value(text) for name, text in values.items()}


def bind_value(text: str) -> str | LocalFile:
    r"""Return the file that ``@path`` names, the text ``@...`` for ``\@...``, others as they are.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file.
        PayloadTooLarge: it is larger than what may travel.
    """
    if text.startswith(r"\@"):
        return text[1:]
    return _find(text[1:]) if text.startswith("@") else text


def check_filled(pieces: Pieces, values: Bound) -> None:
    """Return if the command is not too long with ``values`` in it.

    Raises:
        ValueError: it is.
    """
    longest = {
        name: value.name + "-" + "0" * ADDED_DIGITS if isinstance(value, LocalFile) else value
        for name, value in values.items()
    }
    check_length(pieces, longest)


def load(values: Bound) -> dict[str, Value]:
    """Return ``values`` with the files read.

    Raises:
        OSError: one cannot be read any more.
    """
    return {
        name: _read(value) if isinstance(value, LocalFile) else value
        for name, value in values.items()
    }


def _find(text: str) -> LocalFile:
    if not text:
        raise ValueError(f"a value '@' names no file; {_ESCAPE}")
    path = os.path.expanduser(text)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, f"there is no such file to send ({_ESCAPE})", path
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(
            f"{path} is not a regular file; only those can be sent. Pack a folder with tar first"
        )
    limit = config.max_transmit_data
    if found.st_size > limit:
        raise PayloadTooLarge(
            f"the file {path} has {found.st_size:,} bytes, more than the {limit:,} of cloud.config.max_transmit_data",
            hint="raise cloud.config.max_transmit_data, or let the job read it: _vol='/folder:/folder'",
        )
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, "the file to send may not be read", path)
    return LocalFile(path)


def _read(file: LocalFile) -> UploadedFile:
    with open(file.path, "rb") as opened:
        return UploadedFile(file.name, opened.read())
