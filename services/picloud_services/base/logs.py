"""Log lines of control plane, agent and supervisors: one JSON object a line, rotated by size.

Fields of ``extra`` (jids, lease, attempt, container, node ...) become fields of the line: by them
`picloud why` finds what happened to a job. What looks like a key is never written: messages name
jids and leases, not credentials, and `scrub` catches the rest.
"""

import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path

from picloud_jupyter.protocol.scrubbing import scrub

KEPT_FILES = 3
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """Makes one JSON object of a record: at, level, component, source, message, fields, traceback.

    ``component`` is the process: control, agent or supervisor; ``fields`` are on each of its lines.
    """

    def __init__(self, component: str = "", **fields: str) -> None:
        super().__init__()
        self._fields = {"component": component, **fields}

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "at": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            **self._fields,
            "source": record.name.removeprefix("picloud_services."),
            "message": _text(record.getMessage()),
        }
        line.update(
            (key, _plain(value))
            for key, value in record.__dict__.items()
            if key not in _STANDARD
        )
        if record.exc_info:
            line["traceback"] = _text(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def _plain(value: object) -> object:
    """Return ``value`` as it stands in a line; ranges of jids stay lists."""
    if isinstance(value, int | float | bool) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _text(str(value))


def _text(text: str) -> str:
    # a lone surrogate, of a file's name that is no UTF-8, could be neither written nor told by `why`
    return scrub(text).encode("utf-8", "backslashreplace").decode("utf-8")


class LogFile(logging.FileHandler):
    """A file private to its owner, rotated by size. Its own failure (a full disk) hurts nobody.

    Not the standard library's rotating handler: that one brings ten modules into every process.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.dropped = 0  # lines that could not be written
        path.touch(mode=0o600, exist_ok=True)
        super().__init__(path, encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; begin a new file first when this one is full."""
        try:
            if self.stream is not None and self.stream.tell() > self._max_bytes:
                self.close()
                self._rotate()
        except OSError:
            self.handleError(record)
        super().emit(record)

    def _rotate(self) -> None:
        path = Path(self.baseFilename)
        for number in range(KEPT_FILES - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        path.replace(path.with_name(f"{path.name}.1"))
        path.touch(mode=0o600)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name there
        """Write the line to standard error instead, where a supervising system may keep it."""
        self.dropped += 1
        _say_on_stderr(self.format(record))


class AppendedLog(logging.Handler):
    """Adds lines to a file that another process rotates: it is opened anew for each line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, in one piece."""
        line = self.format(record)
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line.encode() + b"\n")
            finally:
                os.close(file)
        except OSError:
            _say_on_stderr(line)


def _say_on_stderr(line: str) -> None:
    with contextlib.suppress(OSError):  # the same disk is full: there is nowhere left to say it
        sys.stderr.write(line + "\n")


def log_beside(path: Path, component: str, **fields: str) -> None:
    """Add the lines of this process to ``path``, which another one keeps; ``fields`` are on each."""
    handler = AppendedLog(path)
    handler.setFormatter(LineFormatter(component, **fields))
    logging.basicConfig(handlers=[handler], level="INFO", force=True)


def start_logging(path: Path, component: str, *, level: str, max_bytes: int) -> LogFile:
    """Write the log of this process to ``path`` from now on; return that file.

    Raises:
        ValueError: ``level`` is no level.
    """
    if level.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"log_level must be DEBUG, INFO, WARNING or ERROR, got {level!r}")
    handler = LogFile(path, max_bytes=max_bytes)
    handler.setFormatter(LineFormatter(component))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
    return handler
