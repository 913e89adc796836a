"""Why a value cannot be pickled: the path to the part that cannot, its type, size and a way out."""

import functools
import pickle
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.serialize.pickler import PROTOCOL, Pickler

DEFAULT_SECONDS = 2.0
_MAX_DEPTH = 100
_MAX_CHILDREN = 10_000
_ATOMS = frozenset((int, float, complex, bool, type(None), str, bytes, bytearray, range, slice))
_HINTS = {
    "lock": "create the lock inside the function, or name the attribute in the class's __transient__",
    "RLock": "create the lock inside the function, or name the attribute in the class's __transient__",
    "module": "import it inside the function",
    "socket": "open the connection inside the function",
    "Connection": "open the connection inside the function",
    "Cursor": "open the connection inside the function",
    "Thread": "start it inside the function",
}

Child = tuple[str, object]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where pickling fails: ``str()`` of it is the sentence for people.

    ``size_bytes`` is the shallow size of the part. ``complete`` is False when time ran out before
    the innermost part was found.
    """

    path: str
    type_name: str
    size_bytes: int
    error: str
    hint: str = ""
    complete: bool = True

    def __str__(self) -> str:
        text = f"cannot pickle {self.path}: {self.type_name} ({self.size_bytes:,} bytes)"
        if self.error:
            text += f": {self.error}"
        return f"{text}. {self.hint[:1].upper()}{self.hint[1:]}." if self.hint else text


class _TimeIsUpError(Exception):
    """Raised inside a trial when the time for explaining is over."""


class _Counter:
    """A file that keeps nothing but the number of bytes, and stops when the time is up."""

    def __init__(self, end_at: float) -> None:
        self.size_bytes = 0
        self._end_at = end_at

    def write(self, data: bytes | memoryview) -> int:
        self.size_bytes += len(data)
        if time.monotonic() > self._end_at:
            raise _TimeIsUpError
        return len(data)

    def skip(self, buffer: pickle.PickleBuffer) -> bool:
        """Count an array without reading it."""
        try:
            self.size_bytes += buffer.raw().nbytes
        except BufferError:
            return True
        return False


class _TrialPickler(Pickler):
    def __init__(self, file: _Counter, end_at: float) -> None:
        super().__init__(file, buffer_callback=file.skip)
        self._end_at = end_at

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401
        if time.monotonic() > self._end_at:
            raise _TimeIsUpError
        return super().reducer_override(obj)


def explain_unpicklable(
    value: object,
    root: str = "value",
    *,
    error: str = "",
    seconds: float = DEFAULT_SECONDS,
) -> Explanation:
    """Return which part of ``value`` cannot be pickled, named from ``root`` on.

    ``error`` is what the failed attempt said. The search ends after ``seconds``; the
    explanation then names the part reached.
    """
    return explain_first([(root, value)], error=error, seconds=seconds)


def explain_first(
    roots: Iterable[Child], *, error: str = "", seconds: float = DEFAULT_SECONDS
) -> Explanation:
    """Return the explanation of the first of ``roots`` (name, value) that cannot be pickled."""
    end_at = time.monotonic() + seconds
    found: tuple[str, object, str] = ("value", None, error)
    children: Iterable[Child] = roots
    seen: set[int] = set()
    complete = True
    try:
        for depth in range(_MAX_DEPTH):
            failing = _first_failing(children, seen, end_at)
            if failing is None:
                break
            found = failing
            seen.add(id(found[1]))
            children = _children(found[1], found[0])
            complete = depth < _MAX_DEPTH - 1
    except _TimeIsUpError:
        complete = False
    except Exception:  # noqa: BLE001  # looking into a value of the user's may raise anything
        complete = False
    path, part, text = found
    return Explanation(
        path,
        _type_name(part),
        _shallow_size(part),
        text or error,
        _hint(part),
        complete=complete,
    )


def _first_failing(
    children: Iterable[Child], seen: set[int], end_at: float
) -> tuple[str, object, str] | None:
    for count, (path, child) in enumerate(children):
        if count > _MAX_CHILDREN or time.monotonic() > end_at:
            raise _TimeIsUpError
        if type(child) in _ATOMS or id(child) in seen:
            continue
        text = _failure_of(child, end_at)
        if text is not None:
            return path, child, text
    return None


def _failure_of(value: object, end_at: float) -> str | None:
    try:
        _TrialPickler(_Counter(end_at), end_at).dump(value)
    except _TimeIsUpError:
        raise
    except Exception as exc:  # noqa: BLE001  # any __reduce__ of the user's may raise anything
        return str(exc) or type(exc).__name__
    return None


def _children(value: object, path: str) -> Iterator[Child]:
    """Yield (path, part) of what pickling ``value`` goes on to pickle."""
    for kind, parts in _PARTS:
        if isinstance(value, kind):
            yield from parts(value, path)
            return
    yield from _reduced_parts(value, path)


def _dict_parts(value: dict[Any, Any], path: str) -> Iterator[Child]:
    for key, item in list(value.items()):
        yield f"{path}[{_short(key)}]", item
        yield f"{path} key {_short(key)}", key


def _sequence_parts(value: list[Any] | tuple[Any, ...], path: str) -> Iterator[Child]:
    names = getattr(value, "_fields", None)
    for index, item in enumerate(list(value)):
        yield (f"{path}.{names[index]}" if names else f"{path}[{index}]"), item


def _set_parts(value: set[Any] | frozenset[Any], path: str) -> Iterator[Child]:
    for item in list(value):
        yield f"{path}{{{_short(item)}}}", item


def _function_parts(function: types.FunctionType, path: str) -> Iterator[Child]:
    for where, name, value in function_variables(function):
        yield f"{path}.<{where}>.{name}", value
    for name, value in list(vars(function).items()):
        yield f"{path}.{name}", value


def _method_parts(method: types.MethodType, path: str) -> Iterator[Child]:
    yield f"{path}.__self__", method.__self__
    yield f"{path}.__func__", method.__func__


def _partial_parts(value: functools.partial[Any], path: str) -> Iterator[Child]:
    yield f"{path}.func", value.func
    yield from _sequence_parts(value.args, f"{path}.args")
    yield from _dict_parts(value.keywords, f"{path}.keywords")


def _class_parts(cls: type, path: str) -> Iterator[Child]:
    for name, item in list(vars(cls).items()):
        if not (name.startswith("__") and isinstance(item, types.GetSetDescriptorType)):
            yield f"{path}.{name}", getattr(item, "__func__", item)
    for base in cls.__bases__:
        yield f"{path}.<base>.{base.__name__}", base


def _module_parts(_module: types.ModuleType, _path: str) -> Iterator[Child]:
    return iter(())


_PARTS: tuple[tuple[Any, Callable[[Any, str], Iterator[Child]]], ...] = (
    (dict, _dict_parts),
    ((list, tuple), _sequence_parts),
    ((set, frozenset), _set_parts),
    (types.FunctionType, _function_parts),
    (types.MethodType, _method_parts),
    (functools.partial, _partial_parts),
    (type, _class_parts),
    (types.ModuleType, _module_parts),
)


def _reduced_parts(value: object, path: str) -> Iterator[Child]:
    """Yield the parts of an instance, as its own reduction names them."""
    try:
        reduced = value.__reduce_ex__(PROTOCOL)
    except Exception:  # noqa: BLE001  # this part itself is what cannot be pickled
        return
    if isinstance(reduced, str):
        return
    padded = (*reduced, *(None,) * (6 - len(reduced)))
    yield from _state_parts(padded[2], path, getattr(type(value), "__transient__", ()))
    for index, item in enumerate(padded[1] or ()):
        if item is not type(value):
            yield f"{path}.<argument {index}>", item
    yield from ((f"{path}[{i}]", item) for i, item in enumerate(padded[3] or ()))
    yield from ((f"{path}[{_short(key)}]", item) for key, item in padded[4] or ())


def _state_parts(state: object, path: str, left_out: Any) -> Iterator[Child]:  # noqa: ANN401
    if isinstance(state, dict):
        names = {left_out} if isinstance(left_out, str) else set(left_out)
        for name, item in list(state.items()):
            if name not in names:
                yield f"{path}.{name}", item
    elif isinstance(state, tuple):
        for part in state:
            yield from _state_parts(part, path, left_out)
    elif state is not None:
        yield f"{path}.<state>", state


def function_variables(function: types.FunctionType) -> Iterator[tuple[str, str, object]]:
    """Yield (``closure`` | ``default`` | ``global``, name, value) of what ``function`` takes along."""
    for name, cell in zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=True
    ):
        try:
            yield "closure", name, cell.cell_contents
        except ValueError:  # not assigned yet: the pickler says so in its own words
            continue
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    yield from (("default", name, value) for name, value in zip(names, defaults, strict=True))
    yield from (
        ("default", name, value) for name, value in (function.__kwdefaults__ or {}).items()
    )
    for name in sorted(_global_names(code)):
        if name in function.__globals__:
            yield "global", name, function.__globals__[name]


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def closure_sizes(
    function: Callable[..., Any], *, seconds: float = DEFAULT_SECONDS
) -> list[tuple[str, int]]:
    """Return (variable, bytes) of what ``function`` takes along, the largest first.

    Variables are those of its closure, defaults, globals, of the object a method is bound to and
    of the arguments of a partial; a part that cannot be pickled counts 0.
    """
    end_at = time.monotonic() + seconds
    sizes = []
    for name, value in _variables_of(function):
        counter = _Counter(end_at)
        try:
            _TrialPickler(counter, end_at).dump(value)
        except _TimeIsUpError:
            sizes.append((name, counter.size_bytes))
            break
        except Exception:  # noqa: BLE001  # said by explain_unpicklable
            counter.size_bytes = 0
        sizes.append((name, counter.size_bytes))
    return sorted(sizes, key=lambda pair: -pair[1])


def _variables_of(function: object) -> Iterator[Child]:
    if isinstance(function, functools.partial):
        yield from _variables_of(function.func)
        yield from _sequence_parts(function.args, "args")
        yield from function.keywords.items()
    elif isinstance(function, types.MethodType):
        yield from _reduced_parts(function.__self__, "self")
        yield from _variables_of(function.__func__)
    elif isinstance(function, types.FunctionType):
        if (
            function.__module__ == "__main__"
            or "<locals>" in function.__qualname__
            or "<lambda>" in function.__qualname__
        ):
            yield from ((name, value) for _, name, value in function_variables(function))
    else:
        yield from _reduced_parts(function, type(function).__name__)


def _short(key: object) -> str:
    try:
        text = repr(key)
    except Exception:  # noqa: BLE001  # a __repr__ of the user's
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _type_name(value: object) -> str:
    kind = type(value)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _shallow_size(value: object) -> int:
    try:
        return sys.getsizeof(value)
    except Exception:  # noqa: BLE001  # a __sizeof__ of the user's
        return 0


def _hint(value: object) -> str:
    name = _type_name(value)
    return _HINTS.get(name) or _HINTS.get(name.rpartition(".")[2], "")
