"""What the compiler's symbol tables say of a function or a loop, and what IPython's calls hold. Pure."""

import ast
import re
import symtable
from collections.abc import Callable, Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Loop = ast.For | ast.AsyncFor | ast.While

_PYTHON_LINE_MAGICS = frozenset(
    ("time", "timeit", "prun", "pinfo", "pinfo2", "pdoc", "psource", "pdef")
)
_PYTHON_CELL_MAGICS = frozenset(("time", "timeit", "prun", "capture"))
_OPTIONS = re.compile(r"^(\s*-{1,2}\w+([ =]?\d+)?(?=\s|$))+")
_EXPANSION = re.compile(r"\$\{?([A-Za-z_]\w*)|\{([^{}]+)\}")  # $name and {expression}
_FORGIVING = frozenset(("NameError", "Exception", "BaseException"))


def forgives(handler: ast.ExceptHandler) -> bool:
    """Return whether ``handler`` catches the error of a name without a value."""
    if handler.type is None:
        return True
    return any(isinstance(n, ast.Name) and n.id in _FORGIVING for n in ast.walk(handler.type))


def bound_in(loop: Loop) -> set[str]:
    """Return the names that one round of ``loop`` may give a value to."""
    return {
        symbol.get_name()
        for symbol in _table(loop).get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }


def annotations(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    """Yield what stands for types in the head of ``function``."""
    for part in ast.walk(function.args):
        if isinstance(part, ast.arg) and part.annotation is not None:
            yield part.annotation
    if function.returns is not None:
        yield function.returns


def operands(operation: ast.BinOp) -> list[ast.expr]:
    """Return what a chain of operators works on, from left to right.

    Python nests ``a + b + c`` to the left, one level for each term: a long sum is deeper than a walk
    by recursion may go.
    """
    found: list[ast.expr] = []
    left: ast.expr = operation
    while isinstance(left, ast.BinOp):
        found.append(left.right)
        left = left.left
    return [left, *reversed(found)]


def parsed(text: str, transform: Callable[[str], str]) -> list[ast.stmt]:
    """Return the statements of a magic's text; [] if it is no Python."""
    try:
        return ast.parse(transform(text)).body
    except SyntaxError:
        return []  # braces of the shell's; or the magic will say it where it runs


def global_names(function: Function) -> tuple[set[str], set[str]]:
    """Return (global names that the body of ``function`` reads, those that it assigns)."""
    reads: set[str] = set()
    writes: set[str] = set()
    for table in _inner_tables(_table(function)):
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                reads.add(symbol.get_name())
            if symbol.is_declared_global() and symbol.is_assigned():
                writes.add(symbol.get_name())
    return reads, writes


def _table(node: ast.AST) -> symtable.SymbolTable:
    return symtable.symtable(ast.unparse(node), "<cell>", "exec")


def _inner_tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _inner_tables(child)


class MagicText:
    """The text that ``get_ipython().method(...)`` was given, by parts that are read differently.

    ``python`` are pieces of Python, ``assigned`` the names that the magic itself gives a value to,
    ``names`` and ``expressions`` those within ``$name`` and ``{expression}``.
    """

    def __init__(self, method: str, texts: list[str]) -> None:
        self.python: list[str] = []
        self.assigned: list[str] = []
        self.names: list[str] = []
        self.expressions: list[str] = []
        for name, expression in _EXPANSION.findall(" ".join(texts)):
            (self.names if name else self.expressions).append(name or expression.strip())
        if method == "run_line_magic" and texts[0] in _PYTHON_LINE_MAGICS:
            self.python.append(_OPTIONS.sub("", texts[1]).strip())
        elif method == "run_cell_magic" and texts[0] in _PYTHON_CELL_MAGICS:
            if texts[0] == "capture":
                self.assigned += [word for word in texts[1].split() if word.isidentifier()]
            else:
                self.python.append(_OPTIONS.sub("", texts[1]).strip())
            self.python.append(texts[2])


def magic_text(call: ast.Call) -> MagicText | None:
    """Return what is in ``call`` if it is one that IPython makes of a magic or a ``!command``."""
    func = call.func
    if not (
        isinstance(func, ast.Attribute)
        and isinstance(func.value, ast.Call)
        and isinstance(func.value.func, ast.Name)
        and func.value.func.id == "get_ipython"
    ):
        return None
    texts = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    if len(texts) != len(call.args) or not all(isinstance(text, str) for text in texts):
        return None
    needed = {"run_line_magic": 2, "run_cell_magic": 3, "system": 1, "getoutput": 1}
    if len(texts) != needed.get(func.attr, 0):
        return None
    return MagicText(func.attr, [str(text) for text in texts])
