"""Functions and classes of a notebook, loaded as if they had been defined where they are used."""

import io
import pickle
import types
from collections.abc import Callable, Iterable
from typing import Any

import cloudpickle.cloudpickle as by_value

_NOTEBOOK = "__main__"


def loads_into(namespace: dict[str, Any]) -> Callable[..., Any]:
    """Return a `pickle.loads` whose functions of a notebook have ``namespace`` as their globals."""

    def loads(data: bytes | memoryview, *, buffers: Any = None) -> Any:  # noqa: ANN401  # as pickle's
        return NotebookUnpickler(data, namespace, buffers).load()

    return loads


class NotebookUnpickler(pickle.Unpickler):
    """Loads functions of a notebook with ``namespace`` as their globals.

    What they bring along that ``namespace`` lacks is added there; what it has is kept. A class that is
    known here already gets the methods that it had there.
    """

    def __init__(
        self,
        data: bytes | memoryview,
        namespace: dict[str, Any],
        buffers: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._namespace = namespace

    def find_class(self, module_name: str, name: str, /) -> Any:  # noqa: ANN401
        """Return what a pickle names; functions are made in ways of our own."""
        found = super().find_class(module_name, name)
        if found is by_value._make_function:  # noqa: SLF001  # its pickles name it
            return self._make_function
        if found is by_value._function_setstate:  # noqa: SLF001
            return self._set_state
        return found

    def _make_function(
        self,
        code: types.CodeType,
        made_globals: dict[str, Any],
        *rest: Any,  # noqa: ANN401  # name, defaults, closure
    ) -> types.FunctionType:
        is_ours = made_globals.get("__name__") == _NOTEBOOK
        used = self._namespace if is_ours else made_globals
        made: types.FunctionType = by_value._make_function(code, used, *rest)  # noqa: SLF001
        return made

    def _set_state(
        self, function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]
    ) -> None:
        attributes, slots = state
        if function.__globals__ is self._namespace:
            for name, value in slots["__globals__"].items():
                self._namespace.setdefault(name, value)
            slots = {**slots, "__globals__": {}}
        by_value._function_setstate(function, (attributes, slots))  # noqa: SLF001
