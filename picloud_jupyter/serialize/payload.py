"""Calls, functions and results <-> bytes.

A payload is one version byte, then either one pickle (`_PLAIN`), or a table of sizes, one pickle
and the large buffers it refers to, each aligned to 64 bytes (`_BUFFERS`): those are written from
the arrays themselves and read in place. A function is a frame of its own: a header that says who
made it and the source lines it brings, and a payload.
"""

import contextlib
import functools
import io
import pickle
import platform
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.frames import PREFIX, Buffer, encode_json, split_frame
from picloud_jupyter.serialize.pickler import (
    DEFAULT_FILE_LIMIT_BYTES,
    PROTOCOL,
    Pickler,
    References,
)
from picloud_jupyter.serialize.sources import Source, collect_sources, read_sources
from picloud_jupyter.serialize.versions import package_versions

OUT_OF_BAND_BYTES = 64 * 1024  # smaller buffers stay within the pickle
_PLAIN = 1
_BUFFERS = 2
_FUNCTION = 16
_PLAIN_PREFIX = bytes([_PLAIN])
_ALIGNMENT = 64
_TABLE = struct.Struct(">B3xI")  # version, number of buffers; then >Q sizes, the pickle's first
_DEEP_RECURSION_LIMIT = 3000
_PLAIN_NODES = 64
_ATOMS = frozenset((int, float, str, bytes, bool, type(None), complex))


class PayloadError(ValueError):
    """Raised when bytes are not a payload that this version can read."""


def dump(
    value: object,
    *,
    fast: int = 0,
    root: str = "value",
    references: References | None = None,
    file_limit_bytes: int = DEFAULT_FILE_LIMIT_BYTES,
) -> list[Buffer]:
    """Return ``value`` as parts to write one after another, or to join.

    Large arrays are not copied: their parts are views, which must be written before the arrays
    change. ``fast`` is PiCloud's `_fast_serialization`: 0 explains a failure by path, 1 does not, 2 is
    plain pickle. ``root`` names the value in an explanation. What the value mentions is added to
    ``references``.

    Raises:
        pickle.PicklingError: something in it cannot be pickled; the message names its path, type and size.
    """
    if type(value) in _ATOMS:
        return _with_prefix(pickle.dumps(value, PROTOCOL))
    try:
        return _dump_any(value, fast, references, file_limit_bytes)
    except Exception as exc:
        raise _explained(exc, [(root, value)] if fast == 0 else []) from exc


def dump_bytes(value: object, *, fast: int = 0, references: References | None = None) -> bytes:
    """Return ``value`` as one bytes object; see `dump`."""
    return b"".join(dump(value, fast=fast, references=references))


def dump_call(
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    fast: int = 0,
    references: References | None = None,
    file_limit_bytes: int = DEFAULT_FILE_LIMIT_BYTES,
    pickler: Callable[..., Pickler] | None = None,
) -> list[Buffer]:
    """Return the arguments of one call as parts, by ``pickler``; see `dump`. Failures are named ``args[0]...``."""
    value = (tuple(args), kwargs if type(kwargs) is dict else dict(kwargs))
    if not kwargs and _ATOMS.issuperset(map(type, args)):
        return _with_prefix(pickle.dumps(value, PROTOCOL))
    try:
        return _dump_any(value, fast, references, file_limit_bytes, pickler)
    except Exception as exc:
        roots = [(f"args[{i}]", item) for i, item in enumerate(args)]
        roots += [(f"kwargs[{name!r}]", item) for name, item in kwargs.items()]
        raise _explained(exc, roots if fast == 0 else []) from exc


def bytes_prefix(size_bytes: int) -> bytes:
    """Return what ``size_bytes`` bytes follow to be a payload of them; of one length for all sizes."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=lambda _buffer: None)
    pickler.dump(_Bytes())
    pickled = file.getvalue()
    table = _TABLE.pack(_BUFFERS, 1) + struct.pack(">2Q", len(pickled), size_bytes)
    return table + pickled + bytes(-(len(table) + len(pickled)) % _ALIGNMENT)


def load(data: Buffer, *, loads: Callable[..., Any] = pickle.loads) -> Any:  # noqa: ANN401  # whatever was dumped
    """Return the value in ``data``; large arrays are views of it where it is writable.

    Map a file with ``MAP_PRIVATE`` and hand over the map to read it without a copy. ``loads`` may
    stand in for `pickle.loads`.

    Raises:
        PayloadError: these are not the bytes of a payload.
        Exception: whatever loading the value raises.
    """
    if type(data) is bytes and len(data) < 4096 and data[:1] == _PLAIN_PREFIX:
        return loads(data[1:])  # called by the client and the runner only
    view = memoryview(data)
    version = view[0] if view else None
    if version == _PLAIN:
        return loads(view[1:])
    if version == _BUFFERS:
        return _load_with_buffers(view, loads)
    raise PayloadError(
        "these bytes are not a payload"
        if version is None
        else f"the payload has format {version}, unknown to this version; use the same picloud-jupyter on both sides"
    )


def load_call(
    data: Buffer, *, loads: Callable[..., Any] = pickle.loads
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs) as `dump_call` wrote them; ``loads`` as for `load`."""
    args, kwargs = load(data, loads=loads)
    return args, kwargs


def digest(parts: Iterable[Buffer]) -> str:
    """Return the sha256 in hex of ``parts`` one after another."""
    import hashlib  # the runner starts faster without it

    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


@dataclass(frozen=True, slots=True)
class LoadedFunction:
    """A function as it came, with what its sender said of itself; ``packages`` are versions."""

    call: Callable[..., Any]
    name: str
    python: str
    packages: dict[str, str]
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class FunctionHeader:
    """What a function payload says before anything of it is loaded."""

    name: str
    python: str
    packages: dict[str, str]
    sources: tuple[Source, ...]


def dump_function(
    function: object,
    *,
    references: References | None = None,
    file_limit_bytes: int = DEFAULT_FILE_LIMIT_BYTES,
) -> bytes:
    """Return ``function`` (or a word that stands for one) by value where it cannot be imported elsewhere, with its source lines.

    Raises:
        pickle.PicklingError: something it uses cannot be pickled; the message names its path.
    """
    return b"".join(
        dump_function_parts(function, references=references, file_limit_bytes=file_limit_bytes)
    )


def dump_function_parts(
    function: object,
    *,
    references: References | None = None,
    file_limit_bytes: int = DEFAULT_FILE_LIMIT_BYTES,
) -> list[Buffer]:
    """Return what `dump_function` does, as parts to write one after another; see `dump`."""
    found = References() if references is None else references
    first_code = len(found.code)
    name = getattr(function, "__qualname__", None) or type(function).__name__
    parts = dump(function, root=name, references=found, file_limit_bytes=file_limit_bytes)
    header = {
        "name": name,
        "python": platform.python_version(),
        "packages": package_versions(found.modules),
        "sources": [list(source) for source in collect_sources(found.code[first_code:])],
    }
    head = encode_json(header)
    head += b" " * (-(1 + PREFIX.size + len(head)) % _ALIGNMENT)  # the arrays behind it too
    size = sum(map(len, parts))
    return [bytes([_FUNCTION]) + PREFIX.pack(len(head), size) + head, *parts]


def read_function_header(data: Buffer) -> FunctionHeader:
    """Return what a function's bytes say of it, without loading it.

    Raises:
        PayloadError: these are not the bytes of a function.
    """
    return _split_function(data)[0]


def load_function(data: Buffer) -> LoadedFunction:
    """Return the function in ``data``.

    Raises:
        PayloadError: these are not the bytes of a function.
        Exception: whatever loading it raises, ModuleNotFoundError for a module missing here.
    """
    header, body = _split_function(data)
    return LoadedFunction(
        load(body), header.name, header.python, header.packages, header.sources
    )


def _split_function(data: Buffer) -> tuple[FunctionHeader, memoryview]:
    view = memoryview(data)
    if not view or view[0] != _FUNCTION:
        raise PayloadError("these bytes are not a function payload of this version")
    try:
        header, body = split_frame(view[1:])
        sources = read_sources(header["sources"])
        name, python, packages = str(header["name"]), str(header["python"]), header["packages"]
        return FunctionHeader(name, python, dict(packages), sources), body
    except (KeyError, TypeError, ValueError) as exc:
        raise PayloadError(f"the function payload is damaged: {exc}") from exc


class _Bytes:
    """Pickled as bytes that come behind the pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (pickle.PickleBuffer(b""),)


def _is_plain(value: object) -> bool:
    """Whether ``value`` is small and made of builtin types and arrays, which pickle alone writes."""
    pending = [value]
    for _ in range(_PLAIN_NODES):
        if not pending:
            return True
        node = pending.pop()
        kind = type(node)
        if kind in _ATOMS:
            continue
        if kind is tuple or kind is list:
            if len(node) > _PLAIN_NODES:  # type: ignore[arg-type]
                return False
            pending.extend(node)  # type: ignore[arg-type]
        elif kind is dict:
            if len(node) > _PLAIN_NODES:  # type: ignore[arg-type]
                return False
            pending.extend(node)  # type: ignore[arg-type]
            pending.extend(node.values())  # type: ignore[attr-defined]
        elif not _is_numeric(node, kind):
            return False
    return not pending


def _is_numeric(value: Any, kind: type) -> bool:  # noqa: ANN401
    """Whether ``value`` is exactly an array or a scalar of numpy that holds no Python objects."""
    if kind.__module__ != "numpy":
        return False
    numpy = sys.modules["numpy"]
    if kind is numpy.ndarray or issubclass(kind, numpy.generic):
        return not value.dtype.hasobject
    return False


def _with_prefix(data: bytes) -> list[Buffer]:
    if len(data) > OUT_OF_BAND_BYTES:
        return [_PLAIN_PREFIX, data]
    return [b"".join((_PLAIN_PREFIX, data))]


def _dump_any(
    value: object,
    fast: int,
    references: References | None,
    file_limit_bytes: int,
    pickler: Callable[..., Pickler] | None = None,
) -> list[Buffer]:
    if pickler is None and (fast >= 2 or _is_plain(value)):
        return _dump_with(value, functools.partial(pickle.Pickler, protocol=PROTOCOL))
    make: Callable[..., Pickler] = functools.partial(
        pickler or Pickler, references=references, file_limit_bytes=file_limit_bytes
    )
    return _dump_with(value, make)


def _dump_with(value: object, make: Callable[..., Any]) -> list[Buffer]:
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: only pickle itself can copy it
            return True
        if view.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(view)
        return False

    def write() -> bytes:
        file = io.BytesIO()
        buffers.clear()
        make(file, buffer_callback=keep_in_band).dump(value)
        return file.getvalue()  # not a copy: the file is dropped

    try:
        pickled = write()
    except (RecursionError, pickle.PicklingError) as exc:
        if not _is_too_deep(exc):
            raise
        with _deep_recursion():
            pickled = write()
    return _with_buffers(pickled, buffers) if buffers else _with_prefix(pickled)


@contextlib.contextmanager
def _deep_recursion() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEEP_RECURSION_LIMIT))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _is_too_deep(exc: BaseException) -> bool:
    return isinstance(exc, RecursionError) or isinstance(exc.__context__, RecursionError)


def _with_buffers(pickled: bytes, buffers: Sequence[memoryview]) -> list[Buffer]:
    sizes = [len(pickled), *(b.nbytes for b in buffers)]
    table = _TABLE.pack(_BUFFERS, len(buffers)) + struct.pack(f">{len(sizes)}Q", *sizes)
    parts: list[Buffer] = [table, pickled]
    at = len(table) + len(pickled)
    for buffer in buffers:
        padding = -at % _ALIGNMENT
        parts += [bytes(padding), buffer]
        at += padding + buffer.nbytes
    return parts


def _load_with_buffers(view: memoryview, loads: Callable[..., Any]) -> Any:  # noqa: ANN401
    try:
        _version, count = _TABLE.unpack_from(view)
        sizes = struct.unpack_from(f">{count + 1}Q", view, _TABLE.size)
    except struct.error as exc:
        raise PayloadError("the payload's table of sizes is cut off") from exc
    at = _TABLE.size + 8 * (count + 1)
    pickled = view[at : at + sizes[0]]
    at += sizes[0]
    buffers: list[Buffer] = []
    for size in sizes[1:]:
        at += -at % _ALIGNMENT
        part = view[at : at + size]
        # a value that came as immutable bytes must still be one that the function may write to
        buffers.append(bytearray(part) if view.readonly else part)
        at += size
    if at != len(view):
        raise PayloadError(f"the payload should have {at} bytes, and has {len(view)}")
    return loads(pickled, buffers=buffers)


def _explained(exc: Exception, roots: list[tuple[str, object]]) -> pickle.PicklingError:
    text = str(exc) if isinstance(exc, pickle.PicklingError) else f"{type(exc).__name__}: {exc}"
    if _is_too_deep(exc):
        return pickle.PicklingError(
            "the value is nested too deep to be pickled; send it flatter, for example as a list of its nodes"
        )
    if not roots:
        return pickle.PicklingError(text)
    from picloud_jupyter.serialize.explain import explain_first

    return pickle.PicklingError(str(explain_first(roots, error=text)))
