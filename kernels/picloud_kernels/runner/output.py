"""Standard output and error of the elements: who printed what is told by markers in the pipes."""

import io
import os
import sys
from typing import TextIO

from picloud_kernels.runner.link import private_duplicate


class Output:
    """Owns file descriptors 1 and 2. The interpreter runs with -u: C's stdio is not buffered."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._out_fd = private_duplicate(1)
        self._err_fd = private_duplicate(2)
        self._open()

    def _open(self) -> None:
        self._out = _line_buffered(1)
        self._err = _line_buffered(2)
        self._in = sys.stdin
        sys.stdout = sys.__stdout__ = self._out  # type: ignore[misc, assignment]  # replaced for good
        sys.stderr = sys.__stderr__ = self._err  # type: ignore[misc, assignment]

    def flush(self) -> None:
        """Write what Python still holds back."""
        try:
            self._out.flush()
            self._err.flush()
        except (OSError, ValueError):  # the element closed a descriptor, or sys.stdout itself
            self._restore_descriptors()
            self._open()

    def end_element(self) -> None:
        """Flush, and undo what the element did to the streams."""
        # What it started shares them: a program that set them to not waiting did so for all.
        os.set_blocking(self._out_fd, True)
        os.set_blocking(self._err_fd, True)
        self.flush()
        if sys.stdout is not self._out or sys.stderr is not self._err:
            _try_flush(sys.stdout)
            _try_flush(sys.stderr)
            sys.stdout = self._out
            sys.stderr = self._err
        sys.stdin = self._in
        self._restore_descriptors()

    def mark_end(self) -> None:
        """Mark the element's end in both pipes."""
        os.write(self._out_fd, self._marker)
        os.write(self._err_fd, self._marker)

    def _restore_descriptors(self) -> None:
        os.dup2(self._out_fd, 1)
        os.dup2(self._err_fd, 2)


def _line_buffered(fd: int) -> TextIO:
    """Return a text stream that shows each line at once and never fails on odd characters."""
    return io.open(  # noqa: UP020  # the builtin may have been replaced
        fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _try_flush(stream: object) -> None:
    """Flush a stream that the element put in place of ours, if it can be flushed."""
    flush = getattr(stream, "flush", None)
    if flush is None:
        return
    try:
        flush()
    except Exception:  # noqa: BLE001  # the user's own object; its output is not ours
        return
