"""A cell's source: where its lines stand in the notebook, and what tracebacks show of it."""

import ast
import dis
import linecache
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.cells import Cell


@dataclass(frozen=True, slots=True)
class CellSource:
    """``text`` without blank lines before it; its first line is line ``before`` + 1 of the cell."""

    text: str
    name: str
    before: int

    @classmethod
    def of(cls, cell: Cell, name: str) -> "CellSource":
        """Return the source of ``cell``, whose code has the file name ``name``."""
        lines = cell.source.splitlines(keepends=True)
        blank = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
        return cls("".join(lines[blank:]), name, cell.first_line - 1 + blank)

    def install(self, transformed: str | None = None) -> None:
        """Have linecache show the lines: as typed, or ``transformed`` where those are other ones."""
        lines = _lines(self.text)
        is_moved = transformed is not None and len(_lines(transformed)) != len(lines)
        if transformed is not None and is_moved and not self.text.startswith("%%"):
            lines = _lines(transformed)
        shown = ["\n"] * self.before + lines
        # no time of change: linecache then never looks for the file
        linecache.cache[self.name] = (sum(map(len, shown)), None, shown, self.name)

    def parse(self, parse: Callable[..., Any], text: str, mode: str = "exec") -> ast.Module:
        """Return the tree of ``text`` with the line numbers of the notebook's cell.

        Raises:
            SyntaxError: with those line numbers too.
        """
        try:
            tree: ast.Module = parse(text, self.name, mode)
        except SyntaxError as exc:
            if exc.filename == self.name:
                exc.lineno = self._shifted(exc.lineno)
                exc.end_lineno = self._shifted(exc.end_lineno)
            raise
        ast.increment_lineno(tree, self.before)
        return tree

    def complete_error(self, error: SyntaxError) -> None:
        """Give an error of compiling the cell its line of source, and no frames of the compiler."""
        if error.filename != self.name:
            return
        if error.text is None and error.lineno is not None:
            error.text = linecache.getline(self.name, error.lineno) or None
        place = (error.filename, error.lineno, error.offset, error.text)
        error.args = (
            error.msg,
            (*place, error.end_lineno, error.end_offset),
        )  # as it is pickled
        error.__traceback__ = None

    def _shifted(self, line: int | None) -> int | None:
        return None if line is None else line + self.before


def _lines(text: str) -> list[str]:
    return [f"{line}\n" for line in text.splitlines()]


def assigned_names(code: types.CodeType) -> Iterator[str]:
    """Yield the global names that ``code``, a module's, binds anywhere."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_NAME", "STORE_GLOBAL"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_assigned(constant)


def _globals_assigned(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_GLOBAL":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_assigned(constant)
