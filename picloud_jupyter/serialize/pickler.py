"""The pickler: cloudpickle plus PiCloud's rules about files, iterators and `__transient__`."""

import io
import itertools
import pickle
import sys
import types
from dataclasses import dataclass, field
from typing import IO, Any, cast

import cloudpickle

from picloud_jupyter.serialize.files import reduce_file

DEFAULT_FILE_LIMIT_BYTES = 256_000_000
PROTOCOL = 5

FILE_TYPES = (io.TextIOWrapper, io.BufferedIOBase, io.FileIO)
MEMORY_FILE_TYPES = (io.BytesIO, io.StringIO)
ITERATOR_TYPES = frozenset(t for t in vars(itertools).values() if isinstance(t, type))
SUSPENDED_TYPES = frozenset(
    (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
)


@dataclass(slots=True)
class References:
    """What one or more pickles mention: modules by name, and lines of functions sent by value.

    ``code`` holds the code objects of functions that travel by value.
    """

    modules: set[str] = field(default_factory=set)
    code: list[types.CodeType] = field(default_factory=list)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """Writes a value by value where its definition cannot be imported elsewhere.

    Every module mentioned is added to ``references``.
    """

    def __init__(
        self,
        file: Any,  # noqa: ANN401  # anything with write()
        *,
        references: References | None = None,
        file_limit_bytes: int = DEFAULT_FILE_LIMIT_BYTES,
        buffer_callback: Any = None,  # noqa: ANN401  # pickle's own callback type is private
    ) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
        self.references = References() if references is None else references
        self.file_limit_bytes = file_limit_bytes

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401
        """Return how ``obj`` is rebuilt, or NotImplemented for pickle's own way."""
        kind = type(obj)
        if kind is types.FunctionType:
            return self._reduce_function(obj)
        if issubclass(kind, type):
            self._mention(obj.__module__)
            return super().reducer_override(obj)
        if kind is types.BuiltinFunctionType:
            self._mention(obj.__module__)
        elif kind is types.ModuleType:
            self._mention(obj.__name__)
        elif kind is types.CodeType:
            self.references.code.append(obj)
        elif obj is sys.stdout or obj is sys.__stdout__:
            return getattr, (sys, "stdout")
        elif obj is sys.stderr or obj is sys.__stderr__:
            return getattr, (sys, "stderr")
        elif isinstance(obj, FILE_TYPES) and not isinstance(obj, MEMORY_FILE_TYPES):
            return reduce_file(cast("IO[Any]", obj), self.file_limit_bytes)
        elif kind in SUSPENDED_TYPES or kind in ITERATOR_TYPES:
            raise pickle.PicklingError(
                f"a {kind.__name__} cannot be sent, it cannot be resumed elsewhere; send list(...) of it"
            )
        elif (left_out := getattr(kind, "__transient__", None)) is not None:
            return _without(obj, left_out)
        return super().reducer_override(obj)

    def _reduce_function(self, function: types.FunctionType) -> Any:  # noqa: ANN401
        reduced = super().reducer_override(function)
        if reduced is NotImplemented:
            self._mention(function.__module__)
            return reduced
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            if not _is_filled(cell):
                raise pickle.PicklingError(
                    f"{function.__qualname__} uses the variable {name!r} of the function around it, which has "
                    "no value yet; assign it before the call"
                )
        self.references.code.append(function.__code__)
        return reduced

    def _mention(self, module: str | None) -> None:
        if isinstance(module, str):
            self.references.modules.add(module)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # reading is the test
    except ValueError:
        return False
    return True


def _without(obj: object, left_out: Any) -> Any:  # noqa: ANN401
    """Return the reduction of ``obj`` with the attributes of ``__transient__`` left out."""
    reduced = obj.__reduce_ex__(PROTOCOL)
    if isinstance(reduced, str) or len(reduced) < 3 or reduced[2] is None:
        return reduced
    names = {left_out} if isinstance(left_out, str) else set(left_out)
    return (*reduced[:2], _strip(reduced[2], names), *reduced[3:])


def _strip(state: object, names: set[str]) -> object:
    if isinstance(state, dict):
        return {name: value for name, value in state.items() if name not in names}
    if isinstance(state, tuple) and len(state) == 2:  # (__dict__, __slots__)
        return tuple(_strip(part, names) for part in state)
    return state
