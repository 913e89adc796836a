"""Functions that were pickled before and would give the same bytes again.

Pickling a small function costs more than all else that the client does for a call. The bytes are used
again only where nothing that they hold can have changed: a plain function without a closure,
with immutable defaults, whose globals are modules.
"""

import sys
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import cloudpickle

from picloud_jupyter.serialize.imports import code_imports
from picloud_jupyter.serialize.pickler import References

_ATOMS = frozenset((int, float, str, bytes, bool, complex, type(None)))


@dataclass(slots=True)
class PickledFunction:
    """A function as bytes, with the JSON about it that its next submit mostly needs again.

    ``spec`` is (what it was made for, JSON), one value as threads share it; ``reference_json`` is
    b"" until it is made.
    """

    data: bytes
    name: str
    reference_json: bytes = b""
    spec: tuple[tuple[object, ...], bytes] = ((), b"")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A function that was pickled, all modules it needs, and the state in which that is right."""

    function: PickledFunction
    own_code: types.CodeType
    defaults: tuple[object, ...] | None
    modules: frozenset[str]
    state: tuple[object, ...]
    globals: tuple[tuple[str, object], ...]


_kept: weakref.WeakKeyDictionary[types.FunctionType, _Kept] = weakref.WeakKeyDictionary()
_ABSENT = object()


def find(func: object, references: References) -> PickledFunction | None:
    """Return ``func`` as pickled before if that is still right, and add the modules it needs."""
    if type(func) is not types.FunctionType or _whole_modules():
        return None
    kept = _kept.get(func)
    if (
        kept is None
        or kept.own_code is not func.__code__
        or kept.defaults is not func.__defaults__  # equal ones may differ: 1 and True
        or kept.state != _state(func)
    ):
        return None
    names = func.__globals__
    for name, value in kept.globals:
        if names.get(name, _ABSENT) is not value:
            return None
    references.modules |= kept.modules
    return kept.function


def keep(func: object, function: PickledFunction, references: References) -> None:
    """Remember that ``func`` was pickled as ``function``, if that can be told to stay right.

    ``references`` must hold what was mentioned by this function alone.
    """
    if type(func) is not types.FunctionType or not _is_simple(func) or _whole_modules():
        return
    names = func.__globals__
    used = {name: names.get(name, _ABSENT) for name in _global_names(func.__code__)}
    if all(value is _ABSENT or _is_importable(value) for value in used.values()):
        _kept[func] = _Kept(
            function,
            func.__code__,
            func.__defaults__,
            frozenset(references.modules.union(*map(code_imports, references.code))),
            _state(func),
            tuple(used.items()),
        )


def _whole_modules() -> set[str]:
    """The modules that the user wants to travel with all that is in them, as it is then."""
    found: set[str] = cloudpickle.list_registry_pickle_by_value()
    return found


def _is_importable(value: object) -> bool:
    """Whether it is a module that travels as its name: others go with all that is in them."""
    return isinstance(value, types.ModuleType) and sys.modules.get(value.__name__) is value


def _is_simple(func: types.FunctionType) -> bool:
    if func.__closure__ or func.__kwdefaults__ or func.__dict__:
        return False
    notes = func.__annotations__.values()
    return all(type(value) in _ATOMS for value in func.__defaults__ or ()) and all(
        type(note) is str or getattr(note, "__module__", "") == "builtins" for note in notes
    )


def _state(func: types.FunctionType) -> tuple[object, ...]:
    """What is compared by value; ``len(sys.modules)``: cloudpickle looks for imported submodules."""
    return (
        func.__kwdefaults__,
        len(func.__dict__),
        len(func.__annotations__),
        func.__qualname__,
        func.__module__,
        len(sys.modules),
    )


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
