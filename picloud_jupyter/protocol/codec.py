"""Frozen dataclasses <-> plain values, with the standard library alone.

The control plane encodes the same words with msgspec (`picloud_services.base.codec`); both give
the same JSON, which `tests/contract` checks.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")


def to_wire(value: object) -> Any:  # noqa: ANN401  # plain JSON values
    """Return ``value`` as dicts, lists and scalars; fields equal to their default are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: to_wire(item)
            for name, default in _defaults(type(value))
            if (item := getattr(value, name)) != default
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_wire(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_wire(item) for key, item in value.items()}
    return value


@functools.cache
def _defaults(cls: type) -> tuple[tuple[str, object], ...]:
    return tuple((f.name, f.default) for f in dataclasses.fields(cls))


def from_wire(cls: type[T], value: object, *, at: str = "") -> T:
    """Return a ``cls`` made from plain values; unknown fields are ignored (a newer peer sent them).

    Raises:
        ValueError: a field is missing or of the wrong type; the message names its path.
    """
    return typing.cast(T, _reader(cls)(value, at or cls.__name__))


Reader = Callable[[Any, str], Any]


def _reader(annotation: Any) -> Reader:  # noqa: ANN401
    return _make_reader(annotation)


@functools.cache
def _make_reader(annotation: Any) -> Reader:  # noqa: ANN401, PLR0911
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return functools.partial(_read_dataclass, annotation)
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        if len(inner) == 1:
            read = _reader(inner[0])
            return lambda value, at: None if value is None else read(value, at)
        return lambda value, _at: value
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            read = _reader(arguments[0])
            return lambda value, at: tuple(
                read(v, f"{at}[{i}]") for i, v in enumerate(_expect(value, list, at))
            )
        return functools.partial(_read_group, tuple(_reader(a) for a in arguments))
    if origin in (dict, Mapping):
        read = _reader(arguments[1])
        return lambda value, at: {
            k: read(v, f"{at}.{k}") for k, v in _expect(value, dict, at).items()
        }
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return functools.partial(_read_enum, annotation)
    if annotation is float:
        return _read_float
    if annotation in (int, str, bool):
        return lambda value, at: _expect(value, annotation, at)
    return lambda value, _at: value


def _expect(value: Any, kind: Any, at: str) -> Any:  # noqa: ANN401
    if isinstance(value, tuple) and kind is list:
        return list(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{at} must be {kind}, got {type(value).__name__}")
    return value


def _read_group(readers: tuple[Reader, ...], value: object, at: str) -> tuple[Any, ...]:
    items = _expect(value, list, at)
    if len(items) != len(readers):
        raise ValueError(f"{at} must have {len(readers)} items, got {len(items)}")
    return tuple(
        read(v, f"{at}[{i}]") for i, (read, v) in enumerate(zip(readers, items, strict=True))
    )


def _read_float(value: object, at: str) -> float:
    try:
        return float(_expect(value, (int, float), at))
    except OverflowError:
        raise ValueError(f"{at} is larger than any float") from None


def _read_enum(cls: type[Enum], value: object, at: str) -> Enum:
    try:
        return cls(value)
    except ValueError:
        allowed = ", ".join(str(m.value) for m in cls)
        raise ValueError(f"{at} must be one of {allowed}; got {value!r}") from None


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, Reader, bool], ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        (
            f.name,
            _reader(hints[f.name]),
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    )


def _read_dataclass(cls: type, value: object, at: str) -> object:
    source = _expect(value, dict, at)
    found = {}
    for name, read, required in _fields(cls):
        if name in source:
            found[name] = read(source[name], f"{at}.{name}")
        elif required:
            raise ValueError(f"{at}.{name} is missing")
    return cls(**found)
