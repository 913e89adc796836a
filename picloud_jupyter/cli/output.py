"""How values are printed: tables, lists, bare values, or JSON."""

import dataclasses
import datetime
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from picloud_jupyter.protocol.terminal import safe_text


class NotPrintableError(ValueError):
    """Raised when a value has no text form; the message says what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names; `-o json` prints a list of objects."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Lines for people, and the ``value`` that stands behind them for `-o json`."""

    text: str
    value: object


@dataclasses.dataclass(frozen=True, slots=True)
class Raw:
    """Bytes or text that go out exactly as they are; ``value`` for `-o json`."""

    data: bytes
    value: object


def show(value: object, style: str) -> None:
    """Print ``value``; ``style`` is default, no-header or json. None prints nothing."""
    if style == "json":
        if value is not None:
            _print(to_json(value))
    elif isinstance(value, Raw):
        sys.stdout.flush()
        sys.stdout.buffer.write(value.data)
        sys.stdout.buffer.flush()
    elif value is not None:
        text = to_text(value, header=style != "no-header")
        if text:
            _print(text)


def _print(text: str) -> None:
    """Print ``text``; characters that the terminal does not know are escaped, in JSON's way too.

    What would steer a terminal is made visible on one.
    """
    if sys.stdout.isatty():
        text = safe_text(text)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    print(text)


def to_text(value: object, *, header: bool) -> str:
    """Return ``value`` for people: tables padded, lists one per line, others as they are."""
    if isinstance(value, Table):
        return format_table(value, header=header)
    if isinstance(value, Text):
        return value.text
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value))
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {item}" for name, item in value.items())
    return str(value)


def format_table(table: Table, *, header: bool) -> str:
    """Return the table, columns left-justified and padded to the widest cell plus four."""
    from picloud_jupyter.cloud.job_table import format_columns  # with all of the API

    return "\n".join(format_columns([table.columns, *table.rows] if header else table.rows))


def to_json(value: object) -> str:
    """Return ``value`` as JSON.

    Raises:
        NotPrintableError: something in it has no JSON form.
    """
    try:
        return json.dumps(_plain(value), ensure_ascii=False, default=_jsonable)
    except NotPrintableError:
        raise
    except (
        TypeError,
        ValueError,
        RecursionError,
    ) as exc:  # keys that are no text, a value within itself ...
        raise NotPrintableError(
            f"it has no JSON form: {exc}; read it in Python with cloud.result"
        ) from exc


def _plain(value: object) -> object:
    if isinstance(value, Table):
        return [dict(zip(value.columns, row, strict=True)) for row in value.rows]
    if isinstance(value, Text | Raw):
        return value.value
    return value


def _jsonable(value: Any) -> object:  # noqa: ANN401
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return value.tolist()
    raise NotPrintableError(
        f"a value of type {type(value).__name__} has no text form; read it in Python with cloud.result"
    )


def format_bytes(size: float | None) -> str:
    """Return a size as people read it.

    >>> format_bytes(512), format_bytes(3 * 2**20), format_bytes(None)
    ('512 B', '3.0 MiB', '')
    """
    if size is None:
        return ""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"
