"""What a module's source imports, and what ties it to its place on disk. Pure."""

import ast
import dis
import types
from dataclasses import dataclass

_PLACE_NAMES = frozenset(("__file__", "__path__"))
_PLACE_MODULES = frozenset(("importlib.resources", "pkgutil", "pkg_resources"))
_IMPORT_NAME = dis.opmap["IMPORT_NAME"]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What static reading of one module's source says.

    ``imports`` are dotted names, tried from the longest: ``from a.b import c`` gives ``a.b.c`` and
    ``a.b``. ``uses_place`` says that it looks for files beside itself, ``calls_import`` that it
    imports by a name made at run time, which nobody can follow.
    """

    imports: frozenset[str]
    uses_place: bool
    calls_import: bool


def read_source(source: bytes, module: str, *, is_package: bool) -> SourceFacts:
    """Return what ``source``, the source of ``module`` (dotted), imports.

    Raises:
        SyntaxError: it is not Python of this version.
        ValueError: it holds null bytes.
    """
    package = module if is_package else module.rpartition(".")[0]
    imports: set[str] = set()
    uses_place = calls_import = False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _resolve(node, package)
            if base:
                imports.add(base)
                imports.update(
                    f"{base}.{alias.name}" for alias in node.names if alias.name != "*"
                )
        elif isinstance(node, ast.Name):
            uses_place = uses_place or node.id in _PLACE_NAMES
            calls_import = calls_import or node.id == "__import__"
        elif isinstance(node, ast.Attribute):
            calls_import = calls_import or node.attr == "import_module"
    uses_place = uses_place or not _PLACE_MODULES.isdisjoint(imports)
    return SourceFacts(frozenset(imports), uses_place, calls_import)


def _resolve(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module that ``from ... import`` names; "" if there is none."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    if node.level > len(parts):
        return ""
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def code_imports(code: types.CodeType) -> set[str]:
    """Return the dotted names that ``code`` and the functions within it import."""
    names: set[str] = set()
    if _IMPORT_NAME in code.co_code[::2]:
        instructions = dis.get_instructions(code)
        names.update(i.argval for i in instructions if i.opcode == _IMPORT_NAME and i.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= code_imports(constant)
    return names


def with_parents(module: str) -> list[str]:
    """Return the packages above ``module`` and itself.

    >>> with_parents("a.b.c")
    ['a', 'a.b', 'a.b.c']
    """
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def is_listed(module: str, whitelist: frozenset[str] | None) -> bool:
    """Return whether ``whitelist`` lets ``module`` be shipped; None lets everything.

    A listed package covers what is in it; packages above a listed module come along.

    >>> allowed = frozenset({"a.b"})
    >>> [is_listed(name, allowed) for name in ("a", "a.b", "a.b.c", "a.c", "ab")]
    [True, True, True, False, False]
    """
    if whitelist is None:
        return True
    return any(
        module == name or module.startswith(f"{name}.") or name.startswith(f"{module}.")
        for name in whitelist
    )
