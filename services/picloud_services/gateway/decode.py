"""Bytes of a request -> plain, checked values. Pure; whatever is wrong becomes `InvalidRequest`."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.frames import PREFIX
from picloud_jupyter.protocol.ids import MAX_JID, JidRange
from picloud_jupyter.protocol.requests import MAX_RANGES
from picloud_services.base import codec

T = TypeVar("T")
_WHOLE = re.compile(r"-?[0-9]{1,18}")
MAX_DEPTH = 32
MAX_COMMAS = (
    2 * MAX_RANGES + 10_000
)  # between values: reading many more would hold up everybody


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"the field {twice[:80]!r} stands twice in one object")
    return found


def _no_constant(text: str) -> float:
    raise InvalidRequest(f"{text} is not JSON; send null or a finite number")


def _whole_number(text: str) -> int:
    value = int(text) if len(text) <= 20 else 2**63
    if not -(2**63) <= value < 2**63:
        raise InvalidRequest(f"{text[:40]} has more than 64 bits; send a smaller number")
    return value


def _finite_number(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # as JSON it would come back out of the store as null
        raise InvalidRequest(f"{text[:40]} is too large; send a finite number")
    return value


_decoder = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_constant=_no_constant,
    parse_float=_finite_number,
    parse_int=_whole_number,
)
_HALF_A_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # or a whole one, in two halves


def read_json(data: bytes | memoryview) -> dict[str, Any]:
    """Return the JSON object in ``data``: no duplicates, numbers of 64 bits, at most 32 levels deep.

    Raises:
        InvalidRequest: it is something else.
    """
    if not data:
        return {}
    try:
        text = str(data, "utf-8")
        if text.count(",") > MAX_COMMAS:
            raise InvalidRequest(
                f"the body holds more than {MAX_COMMAS} values; ask for less at once"
            )
        value = _decoder.decode(text)
        if _HALF_A_CHARACTER.search(text):
            codec.encode(value)  # nothing here can store or answer half a character
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
    return value


def _depth(value: object) -> int:
    """Return how deep ``value`` is nested, without recursion; stops counting past the limit."""
    depth = 0
    level = [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
    return depth


def split_frame(data: bytes) -> tuple[memoryview, memoryview]:
    """Return (header, body) of the one frame in ``data``, neither of them read.

    Raises:
        InvalidRequest: it is not one frame.
    """
    view = memoryview(data)
    if len(view) < PREFIX.size:
        raise InvalidRequest("the body must be one frame; it is shorter than a frame's prefix")
    header_bytes, body_bytes = PREFIX.unpack_from(view)
    start = PREFIX.size + header_bytes
    if start + body_bytes != len(view):
        raise InvalidRequest("the sizes in the frame's prefix do not match the body's length")
    return view[PREFIX.size : start], view[start:]


def read_as(kind: type[T], value: object, name: str) -> T:
    """Return ``value`` as a ``kind`` (a dataclass of the protocol); unknown fields are ignored.

    Raises:
        InvalidRequest: a field is missing or wrong; the message says where.
    """
    try:
        return codec.convert(kind, value)
    except ValueError as exc:
        raise InvalidRequest(f"{name}: {exc}") from exc


def read_ranges(value: object, name: str = "jids") -> list[JidRange]:
    """Return ``[[first, last], ...]`` as pairs, in the order given.

    Raises:
        InvalidRequest: it is something else, or more than 250,000 ranges.
    """
    ranges = read_as(list[tuple[int, int]], value, name)
    if len(ranges) > MAX_RANGES:
        raise InvalidRequest(
            f"{name} holds {len(ranges)} ranges; ask for at most {MAX_RANGES} at once"
        )
    for first, last in ranges:
        if not 1 <= first <= last <= MAX_JID:
            raise InvalidRequest(
                f"{name} holds [{first}, {last}]; a range is [first, last], both included, from 1 on"
            )
    return ranges


def read_int(
    source: Mapping[str, Any],
    name: str,
    default: int | None = None,
    *,
    low: int = 0,
    high: int = MAX_JID,
) -> int:
    """Return the whole number ``source[name]``, given as a number or (in a query) as its text.

    Raises:
        InvalidRequest: it is missing and has no default, is no whole number, or out of range.
    """
    value = source.get(name, default)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(
            f"{name} must be a whole number from {low} to {high}, got {value!r:.80}"
        )
    return value


def read_seconds(
    source: Mapping[str, Any], name: str, default: float = 0.0, *, high: float = 60.0
) -> float:
    """Return the number of seconds ``source[name]``, at most ``high``.

    Raises:
        InvalidRequest: it is no number or out of range.
    """
    value = source.get(name, default)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high:
        raise InvalidRequest(
            f"{name} must be a number from 0 to {high:g}, got {source[name]!r:.80}"
        )
    return float(value)


def read_text(source: Mapping[str, Any], name: str, *, longest: int = 1000) -> str | None:
    """Return the text ``source[name]``, or None if it is not given.

    Raises:
        InvalidRequest: it is no text, or longer than ``longest``.
    """
    value = source.get(name)
    if value is None or (isinstance(value, str) and len(value) <= longest):
        return value
    raise InvalidRequest(f"{name} must be a text of at most {longest} characters")


def read_flag(source: Mapping[str, Any], name: str) -> bool:
    """Return the truth value ``source[name]``, False if it is not given.

    Raises:
        InvalidRequest: it is something else.
    """
    value = source.get(name, False)
    if isinstance(value, bool):
        return value
    raise InvalidRequest(f"{name} must be true or false, got {value!r:.80}")


def read_byte_range(header: str | None, total_bytes: int) -> tuple[int, int] | None:
    """Return (start, stop) of a Range header, or None where the whole is to be sent.

    What cannot be understood, or asks for several ranges, is answered with the whole, as RFC 9110
    14.2 allows.

    Raises:
        InvalidRequest: (status 416) the range lies behind the end.

    >>> read_byte_range("bytes=2-4", 10), read_byte_range("bytes=-3", 10)
    ((2, 5), (7, 10))
    """
    if not header or not header.startswith("bytes=") or "," in header:
        return None
    first, dash, last = header.removeprefix("bytes=").strip().partition("-")
    if not dash or not (first + last).isdecimal() or len(first) > 18 or len(last) > 18:
        return None
    if not first:
        start, stop = max(0, total_bytes - int(last)), total_bytes
    else:
        start, stop = int(first), min(int(last) + 1 if last else total_bytes, total_bytes)
    if start >= stop:
        raise InvalidRequest(
            f"the range {header!r} lies outside the {total_bytes} bytes", status=416
        )
    return start, stop
