"""Log lines of the control plane and the agent: one JSON object a line, rotated by size.

Fields of ``extra`` (jid, lease, node ...) become fields of the line. What looks like a key is
never written: messages name jids and leases, not credentials, and `scrub` catches the rest.
"""

import contextlib
import json
import logging
import re
import sys
import time
from pathlib import Path

_KEPT_FILES = 3
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_SECRET = re.compile(r"pcj_[\w.]+|(?i:bearer)\s+\S+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def scrub(text: str) -> str:
    """Return ``text`` without keys of jobs, bearer tokens and passwords in URLs.

    >>> scrub("opened postgresql://ann:secret@db/jobs")
    'opened postgresql://***@db/jobs'
    """
    return _SECRET.sub("***", text)


class LineFormatter(logging.Formatter):
    """Makes one JSON object of a record: at, level, source, message, extra fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "at": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "source": record.name.removeprefix("picloud_services."),
            "message": scrub(record.getMessage()),
        }
        line.update(
            (key, value if isinstance(value, int | float | bool) else scrub(str(value)))
            for key, value in record.__dict__.items()
            if key not in _STANDARD
        )
        if record.exc_info:
            line["traceback"] = scrub(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class LogFile(logging.FileHandler):
    """A file private to its owner, rotated by size. Its own failure (a full disk) hurts nobody.

    Not the standard library's rotating handler: that one brings ten modules into every process.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
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
        for number in range(_KEPT_FILES - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        path.replace(path.with_name(f"{path.name}.1"))
        path.touch(mode=0o600)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name there
        """Write the line to standard error instead, where a supervising system may keep it."""
        with contextlib.suppress(
            OSError
        ):  # the same disk is full: there is nowhere left to say it
            sys.stderr.write(self.format(record) + "\n")


def start_logging(path: Path, *, level: str, max_bytes: int) -> None:
    """Write the log of this process to ``path`` from now on.

    Raises:
        ValueError: ``level`` is no level.
    """
    if level.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"log_level must be DEBUG, INFO, WARNING or ERROR, got {level!r}")
    handler = LogFile(path, max_bytes=max_bytes)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
