"""Source lines of functions that travel by value, so that remote tracebacks show the code."""

import linecache
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

MAX_LINE = 10_000_000  # no source has more
MAX_SOURCE_CHARACTERS = 256 * 1024  # per function payload; beyond, frames show no code


class Source(NamedTuple):
    """Some lines of a file or notebook cell: ``text`` begins at line ``first_line`` (from 1)."""

    file_name: str
    first_line: int
    text: str


def collect_sources(code: Iterable[types.CodeType]) -> list[Source]:
    """Return the source lines of ``code`` as far as they can be found here."""
    found: dict[tuple[str, int], Source] = {}
    budget = MAX_SOURCE_CHARACTERS
    for each in code:
        first, last = _line_range(each)
        key = (each.co_filename, first)
        if key in found:
            continue
        text = "".join(linecache.getlines(each.co_filename)[first - 1 : last])
        if text and len(text) <= budget:
            found[key] = Source(each.co_filename, first, text)
            budget -= len(text)
    return [found[key] for key in sorted(found)]


def _line_range(code: types.CodeType) -> tuple[int, int]:
    lines = [line for _, _, line in code.co_lines() if line]
    last = max(lines, default=code.co_firstlineno)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            last = max(last, _line_range(constant)[1])
    return max(code.co_firstlineno, 1), last


def read_sources(values: Iterable[Any]) -> tuple[Source, ...]:
    """Return the sources that came as plain ``values``.

    Raises:
        TypeError, ValueError: these are none.
    """
    found = []
    for file_name, first_line, text in values:
        if not (isinstance(file_name, str) and isinstance(text, str)):
            raise TypeError("a source is a file, a line and a text")
        if not 1 <= first_line <= MAX_LINE:
            raise ValueError(f"a source begins at line {first_line}")
        found.append(Source(file_name, int(first_line), text))
    return tuple(found)


def install_sources(sources: Iterable[Source]) -> None:
    """Make `traceback` show ``sources`` for frames of their files; a later call replaces them."""
    files: dict[str, list[str]] = {}
    for source in sources:
        lines = files.setdefault(source.file_name, [])
        text = source.text.splitlines(keepends=True)
        end = source.first_line - 1 + len(text)
        lines.extend(["\n"] * (end - len(lines)))
        lines[source.first_line - 1 : end] = text
    for name, lines in files.items():
        # no time of change: linecache then never looks for the file
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
