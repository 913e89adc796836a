"""One line that tells how far many jobs are: in a terminal, a notebook, and nbconvert.

No widget: a terminal gets a line that is written over, a notebook a text that is updated in place
(so that a saved notebook holds its last state).
"""

import importlib
import sys
import time
from collections.abc import Mapping
from typing import Any

from picloud_jupyter.cloud.settings import config
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, Status

SILENT_SECONDS = 1.0  # shorter waits are not worth a line
UPDATE_SECONDS = 0.5
_FAILED = (Status.ERROR, Status.KILLED, Status.STALLED)
_BAR_CHARACTERS = 20


class Progress:
    """Shows how far ``total`` jobs are, after a second, where somebody can see it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._started_at = time.monotonic()
        self._first_finished: int | None = None
        self._line = _line_for(total)
        self._shown = ""

    def next_update_seconds(self) -> float:
        """Return when the next `update` is due; a minute where nothing is shown."""
        if self._line is None:
            return 60.0
        age = time.monotonic() - self._started_at
        return max(0.05, SILENT_SECONDS - age) if age < SILENT_SECONDS else UPDATE_SECONDS

    def update(self, counts: Mapping[str, int]) -> None:
        """Show ``counts`` (status -> number of jobs)."""
        finished = sum(counts.get(status, 0) for status in FINISHED_STATUSES)
        if self._first_finished is None:
            self._first_finished = finished
        seconds = time.monotonic() - self._started_at
        if self._line is None or (seconds < SILENT_SECONDS and not self._shown):
            return
        eta = remaining_seconds(
            self._total - finished, finished - self._first_finished, seconds
        )
        text = describe(counts, self._total, seconds, eta)
        if text != self._shown:
            self._line.show(text)
            self._shown = text

    def finish(self) -> None:
        """End the line."""
        if self._line is not None and self._shown:
            self._line.end()


def remaining_seconds(left: int, finished: int, seconds: float) -> float | None:
    """Return how long ``left`` jobs will take at the rate seen; None before the first finished.

    >>> remaining_seconds(30, 10, 5.0)
    15.0
    """
    return left * seconds / finished if finished > 0 else None


def describe(
    counts: Mapping[str, int], total: int, seconds: float, eta_seconds: float | None
) -> str:
    """Return the line.

    >>> describe({"done": 5, "processing": 2, "queued": 3}, 10, 4.0, 4.0)
    '[##########..........] 5/10 done, 2 running, 3 queued, about 4 s left'
    """
    finished = sum(counts.get(status, 0) for status in FINISHED_STATUSES)
    failed = sum(counts.get(status, 0) for status in _FAILED)
    filled = _BAR_CHARACTERS * finished // total if total else _BAR_CHARACTERS
    parts = [f"{counts.get(Status.DONE, 0):,}/{total:,} done"]
    for number, word in (
        (failed, "failed"),
        (counts.get(Status.PROCESSING, 0), "running"),
        (counts.get(Status.QUEUED, 0), "queued"),
        (counts.get(Status.WAITING, 0), "waiting"),
    ):
        if number:
            parts.append(f"{number:,} {word}")
    if finished >= total:
        parts.append(f"in {format_seconds(seconds)}")
    elif eta_seconds is not None:
        parts.append(f"about {format_seconds(eta_seconds)} left")
    return f"[{'#' * filled}{'.' * (_BAR_CHARACTERS - filled)}] {', '.join(parts)}"


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it.

    >>> format_seconds(0.4), format_seconds(75), format_seconds(7300)
    ('0.4 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class _TerminalLine:
    """A line on stderr that is written over."""

    def __init__(self) -> None:
        self._width = 0

    def show(self, text: str) -> None:
        sys.stderr.write(f"\r{text.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(text)

    def end(self) -> None:
        sys.stderr.write("\n")
        sys.stderr.flush()


class _NotebookLine:
    """A text output that is updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        display = importlib.import_module("IPython.display").display
        bundle = {"text/plain": text}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def end(self) -> None:
        """Nothing: the last state stays."""


def _line_for(total: int) -> "_TerminalLine | _NotebookLine | None":
    mode = config.progress
    if mode == "off" or (mode == "auto" and total < 2):
        return None
    if in_notebook():
        return _NotebookLine()
    if mode == "on" or (sys.stderr is not None and sys.stderr.isatty()):
        return _TerminalLine()
    return None


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this code; IPython is never imported for the answer."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    shell = ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None
