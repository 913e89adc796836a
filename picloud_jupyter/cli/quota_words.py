"""What a user uses and may use, for people; the words of limits on a command line."""

import argparse
from typing import Any

from picloud_jupyter.cli.output import format_bytes
from picloud_jupyter.protocol.users import cost_words

UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}  # as sizes are shown
NO_LIMIT, AS_SETTINGS = "none", "default"
_MOST_BYTES = 2.0**63


def used_of(user: dict[str, Any]) -> dict[str, str]:
    """Return use and limit in words for a `UserReport` in wire form, in the order of a table."""
    use, quota = user["use"], user["quota"]
    return {
        "cores": _of(f"{use['cores']:g}", quota["cores"], f"{quota['cores']:g}"),
        "memory": _sizes(use, quota, "memory_bytes"),
        "disk": _sizes(use, quota, "disk_bytes"),
        "cost": _of(cost_words(use["cost"]), quota["cost"], cost_words(quota["cost"])),
    }


def _sizes(use: dict[str, Any], quota: dict[str, Any], name: str) -> str:
    return _of(format_bytes(use[name]), quota[name], format_bytes(quota[name]))


def _of(used: str, limit: float, words: str) -> str:
    return f"{used} of {words}" if limit else used


def number_type(text: str) -> float | None:
    """Return a limit: a number, `none` (0 on the wire) or `default` (null)."""
    if text == AS_SETTINGS:
        return None
    try:
        value = 0.0 if text == NO_LIMIT else float(text)
    except ValueError:
        value = -1.0
    if text != NO_LIMIT and not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no limit: give a number above 0, `{NO_LIMIT}` or `{AS_SETTINGS}`"
        )
    return value


def size_type(text: str) -> int | None:
    """Return a limit in bytes, written as 500M or 2.5G."""
    if text in (NO_LIMIT, AS_SETTINGS):
        return None if text == AS_SETTINGS else 0
    unit = UNITS.get(text[-1:].upper())
    try:
        value = float(text if unit is None else text[:-1]) * (unit or 1)
    except ValueError:
        value = 0.0
    if not 1 <= value < _MOST_BYTES:  # less than a byte would be 0, which is no limit at all
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: write for example 500M or 2.5G, `{NO_LIMIT}` or `{AS_SETTINGS}`"
        )
    return round(value)
