"""Reads the log files of a service back: the lines of a span of time that somebody wants."""

import calendar
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picloud_services.base.logs import KEPT_FILES

NAMES = ("service.log", "agent.log")
MAX_LINES = 500  # of one log; of more, the newest
_BEGIN = '{"at": "'
_AT_CHARACTERS = len("2026-01-01T00:00:00.000Z")
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """Lines in order of time. ``oldest_at``: what was said before is gone (0: nothing is)."""

    lines: list[Line]
    oldest_at: float = 0.0


def read_lines(
    home: Path, since_at: float, until_at: float, wanted: Callable[[Line], bool]
) -> Found:
    """Return the lines of the logs in ``home`` between two times that ``wanted`` says yes to."""
    since, until = _text(since_at), _text(until_at)
    found: list[Line] = []
    oldest = ""
    for name in NAMES:
        kept: deque[Line] = deque(maxlen=MAX_LINES)
        files = _files(home, name)
        if len(files) > KEPT_FILES and (first := next(_lines(files[0]), "")):
            oldest = max(oldest, _at(first))
        for path in files:
            kept.extend(_wanted_in(path, since, until, wanted, since_at))
        found += kept
    lines = sorted(found, key=lambda line: str(line["at"]))
    return Found(lines, _seconds(oldest) if oldest else 0.0)


def at_of(line: Line) -> float:
    """Return when ``line`` was written, in UTC seconds."""
    return _seconds(str(line["at"]))


def _wanted_in(
    path: Path, since: str, until: str, wanted: Callable[[Line], bool], since_at: float
) -> Iterator[Line]:
    try:
        if path.stat().st_mtime < since_at:
            return
    except FileNotFoundError:  # a new file was begun just now
        return
    for text in _lines(path):
        if not since <= _at(text) <= until:  # most lines are not decoded
            continue
        try:
            line = json.loads(text)
        except ValueError:  # cut by a full disk, or printed by something else than a logger
            continue
        if wanted(line):
            yield line


def _files(home: Path, name: str) -> list[Path]:
    """Return the files of one log that are there, the oldest first."""
    numbered = [home / f"{name}.{number}" for number in range(KEPT_FILES, 0, -1)]
    return [path for path in (*numbered, home / name) if path.exists()]


def _lines(path: Path) -> Iterator[str]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    with open(file, encoding="utf-8", errors="replace") as opened:
        for text in opened:
            if text.startswith(_BEGIN):
                yield text


def _at(text: str) -> str:
    return text[len(_BEGIN) : len(_BEGIN) + _AT_CHARACTERS]


def _text(at: float) -> str:
    """Return a time as lines have it, so that both compare as text."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(max(at, 0.0)))
    return f"{moment}.{int(max(at, 0.0) % 1 * 1000):03d}Z"


def _seconds(text: str) -> float:
    try:
        whole = time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")
        return calendar.timegm(whole) + float(f"0{text[19:23]}")
    except ValueError:
        return 0.0
