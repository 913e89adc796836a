"""The names of a cell: those it was given, and those that go back."""

import ast
import pickle
import sys
import types
from typing import Any

from picloud_jupyter.protocol.cells import Cell, CellResult
from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.serialize.payload import OUT_OF_BAND_BYTES, dump
from picloud_kernels.runner.cell_source import assigned_names
from picloud_kernels.runner.words import failure_body

_INTERACTIVE = frozenset(("_", "__", "___", "_exit_code"))  # what an interactive session sets


class NotSentError(Exception):
    """Raised where a name that was asked for cannot be sent back; ``body`` is the failure's."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.body = failure_body(pickle.PicklingError(why), why)


class CellNames:
    """Knows which names a cell assigned, and dumps them one by one."""

    def __init__(self, cell: Cell, inputs: dict[str, Any]) -> None:
        self._cell = cell
        self._inputs = inputs
        self._hidden: dict[str, Any] = {}
        self._bound: frozenset[str] = frozenset()

    def enter(self, namespace: dict[str, Any]) -> None:
        """Put the inputs into ``namespace``; what is there already is not the cell's own."""
        self._hidden = dict(namespace)
        namespace.update(self._inputs)

    def note_tree(self, tree: ast.Module, name: str) -> None:
        """Note what the cell's code binds: an input may be bound anew to the same object."""
        if self._inputs:
            code = compile(
                tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
            )
            self._bound = frozenset(assigned_names(code))

    def collect(self, namespace: dict[str, Any], plain: str) -> CellResult:
        """Return what the cell left in ``namespace``. ``plain`` is `CellResult`'s.

        Raises:
            NotSentError: a name that was asked for is not there or cannot be pickled.
        """
        values: dict[str, Buffer] = {}
        modules: dict[str, str] = {}
        not_sent: dict[str, str] = {}
        asked = self._cell.outputs
        for name in self._assigned(namespace) if asked is None else asked:
            try:
                value = _value_of(name, namespace)
                if isinstance(value, types.ModuleType):
                    modules[name] = _import_name(value)
                else:
                    values[name] = self._dump(name, value)
            except pickle.PicklingError as exc:
                if asked is not None:
                    raise NotSentError(f"{name} cannot be sent back: {exc}") from exc
                not_sent[name] = str(exc)
        deleted = tuple(name for name in self._inputs if name not in namespace)
        return CellResult(values, modules, not_sent, deleted, plain)

    def _assigned(self, namespace: dict[str, Any]) -> list[str]:
        return [name for name, value in namespace.items() if self._is_assigned(name, value)]

    def _is_assigned(self, name: str, value: object) -> bool:
        if name in _INTERACTIVE or (name.startswith("__") and name.endswith("__")):
            return False
        if name in self._inputs:
            return name in self._bound or self._inputs[name] is not value
        return name not in self._hidden or self._hidden[name] is not value

    def _dump(self, name: str, value: object) -> Buffer:
        parts = dump(value, root=name)
        size = sum(memoryview(part).nbytes for part in parts)
        limit = self._cell.max_output_bytes
        if limit and size > limit:
            raise pickle.PicklingError(
                f"it has {size:,} bytes, more than the {limit:,} allowed; write it to a volume, or ask for less of it"
            )
        data = b"".join(parts)
        if size <= OUT_OF_BAND_BYTES:
            return data
        return pickle.PickleBuffer(data)  # type: ignore[return-value]  # it becomes a Buffer when loaded


def _value_of(name: str, namespace: dict[str, Any]) -> object:
    try:
        return namespace[name]
    except KeyError:
        raise pickle.PicklingError("the cell did not assign it") from None


def _import_name(module: types.ModuleType) -> str:
    """Return by which name ``module`` can be imported elsewhere."""
    name = module.__name__
    if sys.modules.get(name) is not module or module.__spec__ is None:
        raise pickle.PicklingError(
            f"the module {name} was made in the cell and cannot be imported"
        )
    return name
