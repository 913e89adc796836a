"""The words about shell commands: what `cloud.shell` sends and the runner runs."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.frames import Buffer

MAX_COMMAND_BYTES = 128 * 1024 - 1  # what Linux takes as one argument of a program
ADDED_DIGITS = 8  # to the name of an uploaded file where a file has that name already


@dataclass(frozen=True, slots=True)
class Parameter:
    """A place in a command that a value fills."""

    name: str


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A local file that travels with the command; its name where it runs becomes the value."""

    name: str
    data: Buffer

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, pickle.PickleBuffer(self.data))


Value = str | UploadedFile


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """A command of /bin/bash; its job's one argument is a dict {name: `Value`}.

    ``text`` is the command as written, ``pieces`` the same with its parameters found; ``common`` are
    values that all jobs of a map share. ``return_file`` and ``cwd`` are paths where it runs.
    """

    text: str
    pieces: tuple[str | Parameter, ...]
    common: tuple[tuple[str, Value], ...] = ()
    return_file: str | None = None
    ignore_exit_status: bool = False
    cwd: str | None = None

    @property
    def name(self) -> str:
        """The command as it is shown: bytes that are no UTF-8 are written as escapes."""
        raw = self.text.encode("utf-8", "surrogateescape")
        return raw.decode("utf-8", "backslashreplace")

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the command with a value in each of its places.

        Raises:
            KeyError: one has no value.
        """
        return "".join(
            values[piece.name] if isinstance(piece, Parameter) else piece
            for piece in self.pieces
        )


class CommandFailed(Exception):
    """Raised in a job whose command ended with a code other than 0.

    A command that a signal ended has the code 128 + its number, as shells say it. ``stderr`` is the end
    of what it wrote there.
    """

    def __init__(self, message: str, exit_code: int, stderr: bytes) -> None:
        super().__init__(message, exit_code, stderr)
        self.exit_code = exit_code
        self.stderr = stderr

    def __str__(self) -> str:
        return str(self.args[0])
