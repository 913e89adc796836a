"""Which names a cell reads and which it leaves behind, by its syntax alone. Pure.

A name that is read before the cell itself can have given it a value must come from the notebook.
Where that depends on which way the cell goes, the name is sent if the notebook has it.
"""

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from picloud_jupyter.magics import scopes
from picloud_jupyter.magics.scopes import Function, bound_in, forgives, global_names, magic_text

_INSPECTING = frozenset(("globals", "locals", "vars", "dir"))

Transform = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a cell, each tuple in the order in which they are met.

    ``needed`` must have a value before the cell runs; ``wanted`` are sent where the notebook has
    them; ``assigned`` may have a new value afterwards; ``modules`` are those it imports; ``has_star``
    says that it imports ``*``, so that any name may come from there.
    """

    needed: tuple[str, ...]
    wanted: tuple[str, ...]
    assigned: tuple[str, ...]
    modules: tuple[str, ...]
    has_star: bool = False


def capture(source: str, transform: Transform = str) -> Names:
    """Return the names of ``source``, which ``transform`` (IPython's) makes Python of.

    >>> capture("total = sum(prices) * rate")
    Names(needed=('sum', 'prices', 'rate'), wanted=(), assigned=('total',), modules=(), has_star=False)

    Raises:
        SyntaxError: it is not Python even then.
    """
    flow = _Flow(transform)
    flow.visit_all(ast.parse(transform(source)).body)
    return flow.names()


@dataclass(slots=True)
class _Deferred:
    """The body of a function: read when it is called, if it is; ``owner`` is what it is called by."""

    owner: str | None
    reads: set[str]


class _Flow:
    """Walks statements as they run; knows which names surely and which perhaps have a value."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._needed: dict[str, None] = {}
        self._wanted: dict[str, None] = {}
        self._assigned: dict[str, None] = {}
        self._modules: dict[str, None] = {}
        self._loaded: set[str] = set()
        self._deferred: list[_Deferred] = []
        self._surely: set[str] = set()
        self._perhaps: set[str] = set()
        self._comprehensions: list[set[str]] = []
        self._classes: list[tuple[str, set[str]]] = []
        self._lenient = 0
        self._has_star = False

    def names(self) -> Names:
        """Return what was found, the bodies of functions included."""
        used = self._used_names()
        for body in self._deferred:
            for name in sorted(body.reads):
                certain = body.owner is None or body.owner in used
                if name in self._perhaps or self._has_star or not certain:
                    self._wanted[name] = None
                else:
                    self._needed[name] = None
        wanted = tuple(name for name in self._wanted if name not in self._needed)
        return Names(
            tuple(self._needed),
            wanted,
            tuple(self._assigned),
            tuple(self._modules),
            self._has_star,
        )

    def _used_names(self) -> set[str]:
        """What is read when the cell runs, by functions that are read themselves too."""
        used = set(self._loaded)
        while True:
            more = {
                name
                for body in self._deferred
                if body.owner is None or body.owner in used
                for name in body.reads
            }
            if more <= used:
                return used
            used |= more

    # ------------------------------------------------------------------ names
    def _read(self, name: str) -> None:
        if any(name in hidden for hidden in self._comprehensions):
            return
        if self._classes and name in self._classes[-1][1]:
            return
        self._loaded.add(name)
        if name in self._surely:
            return
        unsure = self._lenient or self._has_star or name in self._perhaps
        (self._wanted if unsure else self._needed)[name] = None

    def _assign(self, name: str) -> None:
        if self._classes:
            self._classes[-1][1].add(name)
            return
        self._assigned[name] = None
        self._surely.add(name)
        self._perhaps.add(name)

    def _name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            if self._comprehensions:
                self._comprehensions[-1].add(node.id)
            else:
                self._assign(node.id)
            return
        self._read(node.id)
        if isinstance(node.ctx, ast.Del):
            self._surely.discard(node.id)

    def _named_expr(self, node: ast.NamedExpr) -> None:
        # a walrus binds outside of the comprehensions around it
        self.visit(node.value)
        self._assign(node.target.id)

    def _assignment(self, node: ast.Assign) -> None:
        # the value is there before the targets are
        self.visit(node.value)
        self.visit_all(node.targets)

    def _aug_assign(self, node: ast.AugAssign) -> None:
        # both sides are read first
        if isinstance(node.target, ast.Name):
            self._read(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def _ann_assign(self, node: ast.AnnAssign) -> None:
        # only a value assigns; annotations may never be evaluated
        self._forgiving([node.annotation])
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._modules[alias.name] = None
            self._assign(alias.asname or alias.name.partition(".")[0])

    def _import_from(self, node: ast.ImportFrom) -> None:
        # after a star any name may have a value
        if node.module and not node.level:
            self._modules[node.module] = None
        for alias in node.names:
            if alias.name == "*":
                self._has_star = True
            else:
                self._assign(alias.asname or alias.name)

    # ------------------------------------------------------------------ ways through the cell
    def visit(self, node: ast.AST) -> None:
        """Take note of ``node`` and what is in it."""
        visitor = self._visitors.get(type(node).__name__)
        if visitor is None:
            self._children(node)
        else:
            visitor(self, node)

    def visit_all(self, nodes: Iterable[ast.AST]) -> None:
        """Visit ``nodes`` one after another."""
        for node in nodes:
            self.visit(node)

    def _children(self, node: ast.AST) -> None:
        self.visit_all(ast.iter_child_nodes(node))

    def _branches(self, *branches: Sequence[ast.AST]) -> None:
        """Visit ways of which one is gone: surely assigned is what all of them assign."""
        before = set(self._surely)
        ends = []
        for branch in branches:
            self._surely = set(before)
            self.visit_all(branch)
            ends.append(self._surely)
        self._surely = set.intersection(*ends)

    def _forgiving(self, nodes: Iterable[ast.AST], *, when: bool = True) -> None:
        """Visit what may read names that do not exist."""
        self._lenient += when
        self.visit_all(nodes)
        self._lenient -= when

    def _if(self, node: ast.If) -> None:
        # what asks whether a name exists may read it
        self.visit(node.test)
        asks = any(isinstance(n, ast.Name) and n.id in _INSPECTING for n in ast.walk(node.test))
        self._lenient += asks
        self._branches(node.body, node.orelse)
        self._lenient -= asks

    def _if_exp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._branches([node.body], [node.orelse])

    def _bool_op(self, node: ast.BoolOp) -> None:
        # the first value is always evaluated, the others perhaps
        self.visit(node.values[0])
        self._branches(node.values[1:], ())

    def _bin_op(self, node: ast.BinOp) -> None:
        self.visit_all(scopes.operands(node))

    def _while(self, node: ast.While) -> None:
        # a second round sees what the first one assigned
        self._perhaps |= bound_in(node)
        self.visit(node.test)
        self._branches(node.body, node.orelse)

    def _for(self, node: ast.For | ast.AsyncFor) -> None:
        # as while; the target is assigned by each round
        self.visit(node.iter)
        self._perhaps |= bound_in(node)
        self._branches([node.target, *node.body], node.orelse)

    def _try(self, node: ast.Try) -> None:
        # a handler begins with what was there before, as far as it is sure
        forgiving = any(map(forgives, node.handlers))
        before = set(self._surely)
        self._forgiving(node.body, when=forgiving)
        self.visit_all(node.orelse)
        ends = [self._surely]
        for handler in node.handlers:
            self._surely = set(before)
            self.visit(handler)
            ends.append(self._surely)
        self._surely = set.intersection(*ends)
        self.visit_all(node.finalbody)

    def _except_handler(self, node: ast.ExceptHandler) -> None:
        # the exception's name is gone behind the handler
        if node.type is not None:
            self.visit(node.type)
        known = node.name in self._surely
        if node.name:
            self._surely.add(node.name)
        self.visit_all(node.body)
        if node.name and not known:
            self._surely.discard(node.name)

    def _match(self, node: ast.Match) -> None:
        # no case need fit
        self.visit(node.subject)
        self._branches(*([case] for case in node.cases), ())

    def _match_as(self, node: ast.MatchAs) -> None:
        if node.pattern is not None:
            self.visit(node.pattern)
        if node.name:
            self._assign(node.name)

    def _match_star(self, node: ast.MatchStar) -> None:
        if node.name:
            self._assign(node.name)

    def _match_mapping(self, node: ast.MatchMapping) -> None:
        self._children(node)
        if node.rest:
            self._assign(node.rest)

    # ------------------------------------------------------------------ scopes
    def _function_def(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        # decorators, defaults and (mostly) annotations run now, the body when it is called
        self.visit_all(node.decorator_list)
        self._visit_defaults(node.args)
        self._forgiving(scopes.annotations(node))
        owner = self._classes[0][0] if self._classes else node.name
        self._defer(node, owner)
        if node.decorator_list:
            self._loaded.add(owner)
        self._assign(node.name)

    def _lambda(self, node: ast.Lambda) -> None:
        self._visit_defaults(node.args)
        self._defer(node, None)

    def _visit_defaults(self, arguments: ast.arguments) -> None:
        self.visit_all(arguments.defaults)
        self.visit_all(default for default in arguments.kw_defaults if default is not None)

    def _defer(self, node: Function, owner: str | None) -> None:
        reads, writes = global_names(node)
        reads -= set().union(*self._comprehensions)
        self._deferred.append(_Deferred(owner, reads))
        for name in sorted(writes):
            self._assigned[name] = None
            self._perhaps.add(name)
        for part in ast.walk(node):
            if isinstance(part, ast.Call):
                self._magic(part)

    def _class_def(self, node: ast.ClassDef) -> None:
        # the body runs now; what it assigns are attributes
        self.visit_all(node.decorator_list)
        parameters = {p.name for p in getattr(node, "type_params", ())}
        self._classes.append((node.name, parameters))
        self.visit_all([*node.bases, *node.keywords, *node.body])
        self._classes.pop()
        self._assign(node.name)

    def _type_alias(self, node: ast.AST) -> None:
        # ``type name = ...``: its value is evaluated when somebody asks
        self._assign(node.name.id)  # type: ignore[attr-defined]  # Python 3.12

    def _visit_comprehension(self, node: ast.AST) -> None:
        generators: list[ast.comprehension] = node.generators  # type: ignore[attr-defined]
        self.visit(generators[0].iter)
        self._comprehensions.append(set())
        for index, generator in enumerate(generators):
            if index:
                self.visit(generator.iter)
            self.visit(generator.target)
            self.visit_all(generator.ifs)
        if isinstance(node, ast.DictComp):
            self.visit_all([node.key, node.value])
        else:
            self.visit(node.elt)  # type: ignore[attr-defined]
        self._comprehensions.pop()

    # ------------------------------------------------------------------ IPython
    def _call(self, node: ast.Call) -> None:
        self._children(node)
        self._magic(node)

    def _magic(self, node: ast.Call) -> None:
        found = magic_text(node)
        if found is None:
            return
        for name in found.assigned:
            self._assign(name)
        for text in found.python:
            self.visit_all(scopes.parsed(text, self._transform))
        self._forgiving(ast.Name(name, ast.Load()) for name in found.names)
        for expression in found.expressions:
            self._forgiving(scopes.parsed(expression, self._transform))

    _visitors: ClassVar[dict[str, Callable[[Any, Any], None]]] = {
        "Name": _name,
        "NamedExpr": _named_expr,
        "Assign": _assignment,
        "AugAssign": _aug_assign,
        "AnnAssign": _ann_assign,
        "Import": _import,
        "ImportFrom": _import_from,
        "If": _if,
        "IfExp": _if_exp,
        "BoolOp": _bool_op,
        "BinOp": _bin_op,
        "While": _while,
        "For": _for,
        "AsyncFor": _for,
        "Try": _try,
        "TryStar": _try,
        "ExceptHandler": _except_handler,
        "Match": _match,
        "MatchAs": _match_as,
        "MatchStar": _match_star,
        "MatchMapping": _match_mapping,
        "FunctionDef": _function_def,
        "AsyncFunctionDef": _function_def,
        "Lambda": _lambda,
        "ClassDef": _class_def,
        "TypeAlias": _type_alias,
        "ListComp": _visit_comprehension,
        "SetComp": _visit_comprehension,
        "GeneratorExp": _visit_comprehension,
        "DictComp": _visit_comprehension,
        "Call": _call,
    }
