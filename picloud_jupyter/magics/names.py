"""Values that go from the notebook to a cell's job, and back."""

import builtins
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.cloud.settings import config
from picloud_jupyter.magics.capture import Names
from picloud_jupyter.protocol.cells import CellResult
from picloud_jupyter.serialize.adoption import loads_into
from picloud_jupyter.serialize.payload import dump, load

HISTORY = frozenset(("In", "Out", "_ih", "_oh", "_dh"))
_AMBIENT = frozenset(
    ("get_ipython", "display", "exit", "quit", "open", "__name__", "__builtins__")
)
_LARGEST = 5


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is sent with a cell. ``undefined`` are names that have no value here.

    ``needless`` are those among ``values`` that the cell may do without.
    """

    values: dict[str, Any]
    needless: frozenset[str] = frozenset()
    undefined: tuple[str, ...] = ()


def choose_inputs(
    names: Names,
    namespace: Mapping[str, Any],
    hidden: Mapping[str, Any],
    only: Iterable[str] | None = None,
) -> Inputs:
    """Return the values for a cell of ``names``: those it reads, or ``only`` these.

    ``hidden`` are IPython's own names; a name that shadows one of them, or a builtin, is sent.
    """
    wished = None if only is None else tuple(only)
    values: dict[str, Any] = {}
    undefined = []
    for name in (*names.needed, *(wished or ())):
        if _is_ipythons(name, namespace, hidden):
            continue
        if name in namespace and (wished is None or name in wished):
            values[name] = namespace[name]
        elif not hasattr(builtins, name) or name in (wished or ()):
            undefined.append(name)
    needless = []
    for name in names.wanted:
        if wished is not None or _is_ipythons(name, namespace, hidden) or name not in namespace:
            continue
        values[name] = namespace[name]
        needless.append(name)
    return Inputs(values, frozenset(needless), tuple(dict.fromkeys(undefined)))


def _is_ipythons(name: str, namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> bool:
    """Whether IPython there has its own; the history of this notebook stays here."""
    if name in HISTORY:
        return False
    if name not in namespace:
        return name in _AMBIENT
    return name in hidden and hidden[name] is namespace[name]


def unsendable(values: Mapping[str, Any]) -> dict[str, str]:
    """Return {name: why} of those of ``values`` that cannot be sent."""
    found = {}
    for name, value in values.items():
        try:
            dump(value, root=name, file_limit_bytes=config.max_transmit_data)
        except Exception as exc:  # noqa: BLE001  # any __reduce__ of the user's
            found[name] = str(exc)
    return found


def sizes(values: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return (name, bytes on the way) of ``values``, the largest first; what cannot be sent has 0."""
    found = []
    for name, value in values.items():
        try:
            parts = dump(value, fast=1, file_limit_bytes=config.max_transmit_data)
            found.append((name, sum(map(len, parts))))
        except Exception:  # noqa: BLE001  # said by `unsendable`
            found.append((name, 0))
    return sorted(found, key=lambda pair: -pair[1])


def describe_largest(values: Mapping[str, Any]) -> str:
    """Return the largest of ``values`` in words: ``a (1,024 bytes), b (...)``."""
    return ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes(values)[:_LARGEST])


@dataclass(slots=True)
class Received:
    """What came back: ``values`` by name, and ``not_received`` {name: why}."""

    values: dict[str, Any] = field(default_factory=dict)
    not_received: dict[str, str] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    plain: str = ""


def receive(result: CellResult, namespace: dict[str, Any]) -> Received:
    """Load what a cell left behind and give it to ``namespace``.

    Functions and classes that the cell defined use ``namespace`` as their globals, as if they had been
    defined there.
    """
    loads = loads_into(namespace)
    found = Received(not_received=dict(result.not_sent), plain=result.plain)
    for name, module in result.modules.items():
        _take(found, name, lambda module=module: importlib.import_module(module))
    for name, data in result.values.items():
        _take(found, name, lambda data=data: load(data, loads=loads))
    namespace.update(found.values)
    found.deleted = tuple(name for name in result.deleted if name in namespace)
    for name in found.deleted:
        del namespace[name]
    return found


def _take(found: Received, name: str, load_value: Any) -> None:  # noqa: ANN401  # a function
    try:
        found.values[name] = load_value()
    except Exception as exc:  # noqa: BLE001  # any class's __setstate__ may raise anything
        found.not_received[name] = f"it cannot be loaded here: {type(exc).__name__}: {exc}"
