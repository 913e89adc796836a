"""Displays into the job's standard output, in order with what is printed."""

import dataclasses
import sys

from picloud_jupyter.protocol.displays import Display, DisplayTooLargeError, encode


def write_display(display: Display) -> None:
    """Write ``display`` behind all that was printed before it, in one piece.

    One that is too large is replaced by words.

    Raises:
        ValueError: it refers to itself.
        TypeError: something in it has keys that are not text.
    """
    try:
        sequence = encode(display)
    except DisplayTooLargeError as exc:
        words = {"text/plain": f"[{exc}]"}
        sequence = encode(dataclasses.replace(display, data=words, metadata={}))
    flush_printed()
    stream = sys.__stdout__
    assert stream is not None
    stream.flush()
    stream.buffer.write(sequence)  # its lock keeps other threads' text out of the sequence
    stream.buffer.flush()


def flush_printed() -> None:
    """Write what Python holds back, so that what is written without it comes after."""
    for printed in (sys.stdout, sys.stderr):
        flush = getattr(printed, "flush", None)  # the cell may have put anything there
        if flush is not None:
            flush()
