"""A cell where there is no IPython: plain Python, the last expression by its repr."""

import ast
import asyncio
import builtins
import inspect
import types
from typing import Any

from picloud_jupyter.protocol.displays import Display, DisplayType
from picloud_kernels.runner.cell_names import CellNames
from picloud_kernels.runner.cell_source import CellSource
from picloud_kernels.runner.display_stream import write_display


def execute(
    source: CellSource, module: types.ModuleType, names: CellNames, why: str
) -> BaseException | None:
    """Run the cell in ``module`` and return what it raised. ``why`` is added to a syntax error."""
    builtins.display = _display  # type: ignore[attr-defined]  # as IPython does
    namespace = vars(module)
    names.enter(namespace)
    try:
        tree = source.parse(ast.parse, source.text)
        names.note_tree(tree, source.name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        code = compile(tree, source.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        shown = _compile_last(last, source)
    except SyntaxError as exc:
        source.complete_error(exc)
        exc.add_note(why)
        return exc
    try:
        value = _run([code] if shown is None else [code, shown], namespace)
        if value is not None:
            write_display(Display(DisplayType.RESULT, {"text/plain": repr(value)}))
    except BaseException as exc:  # noqa: BLE001  # a cell may raise anything, SystemExit too
        return exc
    return None


def _compile_last(last: ast.stmt | None, source: CellSource) -> types.CodeType | None:
    if not isinstance(last, ast.Expr):
        return None
    hidden = source.text.rstrip().endswith(";")
    mode = "exec" if hidden else "eval"
    tree = ast.Module([last], []) if hidden else ast.Expression(last.value)
    code: types.CodeType = compile(tree, source.name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


def _run(codes: list[types.CodeType], namespace: dict[str, object]) -> object:
    """Run ``codes`` one after another, in one event loop if any awaits; return the last one's value."""
    if not any(code.co_flags & inspect.CO_COROUTINE for code in codes):
        return [eval(code, namespace) for code in codes][-1]  # noqa: S307  # what a runner does
    with asyncio.Runner() as runner:
        return runner.run(_awaited(codes, namespace))


async def _awaited(codes: list[types.CodeType], namespace: dict[str, object]) -> object:
    value: Any = None
    for code in codes:
        value = eval(code, namespace)  # noqa: S307
        if code.co_flags & inspect.CO_COROUTINE:
            value = await value
    return value


def _display(*objects: object, **_ignored: object) -> None:
    for each in objects:
        write_display(Display(DisplayType.DISPLAY_DATA, {"text/plain": repr(each)}))
