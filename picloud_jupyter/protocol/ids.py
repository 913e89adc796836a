"""Jids: their ranges and their text form.

A jid is a plain positive int. A set of jids travels as sorted, closed, non-overlapping pairs
``(first, last)``, so that a map of a million jobs is one pair.
"""

from collections.abc import Iterable, Iterator

JidRange = tuple[int, int]
MAX_JID = 2**53 - 1  # what a JSON number carries exactly
_MAX_DIGITS = 100  # Python refuses to read numbers of many more


def to_ranges(jids: Iterable[int]) -> list[JidRange]:
    """Return sorted closed ranges that hold each of ``jids`` once.

    >>> to_ranges([4, 1, 2, 3, 7])
    [(1, 4), (7, 7)]
    """
    if isinstance(jids, range) and jids.step == 1:
        return [(jids.start, jids.stop - 1)] if len(jids) else []
    ranges: list[JidRange] = []
    for jid in sorted(jids):
        if ranges and jid <= ranges[-1][1] + 1:
            first, last = ranges[-1]
            ranges[-1] = (first, max(last, jid))
        else:
            ranges.append((jid, jid))
    return ranges


def iterate_ranges(ranges: Iterable[JidRange]) -> Iterator[int]:
    """Yield every jid of ``ranges`` in order.

    >>> list(iterate_ranges([(1, 3), (7, 7)]))
    [1, 2, 3, 7]
    """
    for first, last in ranges:
        yield from range(first, last + 1)


def count_ranges(ranges: Iterable[JidRange]) -> int:
    """Return how many jids ``ranges`` hold.

    >>> count_ranges([(1, 3), (7, 7)])
    4
    """
    return sum(last - first + 1 for first, last in ranges)


def parse_jids(text: str) -> list[JidRange]:
    """Return the ranges named by PiCloud's text form; a range includes both its ends.

    >>> parse_jids("1-4,7")
    [(1, 4), (7, 7)]

    Raises:
        ValueError: the text is not of the form ``5``, ``1,4,9`` or ``1-4,7``.
    """
    ranges: list[JidRange] = []
    for piece in text.split(","):
        first_text, dash, last_text = piece.strip().partition("-")
        if not _is_number(first_text) or (dash and not _is_number(last_text.strip())):
            raise ValueError(
                f"{piece.strip()!r} is not a job id or a range of them; write for example 5, 1,4,9 or 1-4"
            )
        first = int(first_text)
        last = int(last_text) if dash else first
        if not (1 <= first <= MAX_JID and 1 <= last <= MAX_JID):
            raise ValueError(f"{piece.strip()!r} is no job id; they go from 1 to {MAX_JID}")
        if first > last:
            raise ValueError(
                f"{piece.strip()!r} is no range of job ids; write the lower one first"
            )
        ranges.append((first, last))
    return merge_ranges(ranges)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= _MAX_DIGITS


def merge_ranges(ranges: Iterable[JidRange]) -> list[JidRange]:
    """Return the same jids as sorted, non-overlapping ranges.

    >>> merge_ranges([(5, 9), (1, 4), (20, 20)])
    [(1, 9), (20, 20)]
    """
    merged: list[JidRange] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def format_jids(ranges: Iterable[JidRange]) -> str:
    """Return the text form of ``ranges``, as `parse_jids` reads it.

    >>> format_jids([(1, 4), (7, 7)])
    '1-4,7'
    """
    return ",".join(
        str(first) if first == last else f"{first}-{last}" for first, last in ranges
    )
