"""What clients and jobs note outside the system, so that what it says can be checked."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Journal:
    """A file of JSON lines that any process may append to; a noted line outlives its writer.

    Each line is one ``write`` on an O_APPEND descriptor: lines of many writers do not mix, and what
    a kill -9 cuts is the last line of one writer at most.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def note(self, **event: Any) -> None:
        """Append one event."""
        os.write(self._fd, json.dumps(event).encode() + b"\n")


def read_journal(path: Path) -> Iterator[Event]:
    """Yield the events of a journal in order; a line that a kill cut short is left out."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue
