"""Sets of jids as a Python caller gives and gets them: ints, ranges, sequences. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Self, overload

from picloud_jupyter.protocol.ids import MAX_JID, JidRange, merge_ranges


class JidRanges(Sequence[int]):
    """A read-only sequence of jids, small however many they are; behaves like a range.

    ``ranges`` are its pieces in order. It equals any sequence of the same numbers and pickles as
    a plain range or list.
    """

    __slots__ = ("_ends", "ranges")

    def __init__(self, ranges: Iterable[range] = ()) -> None:
        pieces: list[range] = []
        for piece in ranges:
            if not piece:
                continue
            if pieces and _continues(pieces[-1], piece):
                pieces[-1] = range(pieces[-1].start, piece.stop, piece.step)
            else:
                pieces.append(piece)
        self.ranges = tuple(pieces)
        self._ends = tuple(accumulate(map(len, pieces)))

    @classmethod
    def of_pairs(cls, pairs: Iterable[JidRange]) -> Self:
        """Return the sequence of the closed ranges ``pairs``."""
        return cls(range(first, last + 1) for first, last in pairs)

    def make(self, jid: int) -> int:
        """Return the element for ``jid``; subclasses give handles."""
        return jid

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Any]:
        for piece in self.ranges:
            yield from map(self.make, piece)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(self._sliced(range(len(self))[index]))
        position = range(len(self))[index]
        piece = bisect_right(self._ends, position)
        return self.make(self.ranges[piece][position - self._ends[piece]])

    def _sliced(self, positions: range) -> Iterator[range]:
        if len(self.ranges) == 1 and positions.step > 0:
            yield self.ranges[0][positions.start : positions.stop : positions.step]
            return
        for position in positions:
            jid = int(self[position])
            yield range(jid, jid + 1)

    def __contains__(self, value: object) -> bool:
        return any(value in piece for piece in self.ranges)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, JidRanges) and other.ranges == self.ranges:
            return True
        if isinstance(other, range) and len(self.ranges) <= 1:
            return other == (self.ranges[0] if self.ranges else range(0))
        if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(other) == len(self) and all(
                a == b for a, b in zip(self, other, strict=True)
            )
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.ranges[0] if len(self.ranges) == 1 else self.ranges)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({describe(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        if len(self.ranges) == 1:
            piece = self.ranges[0]
            return range, (piece.start, piece.stop, piece.step)
        return list, (list(map(int, self)),)


def _continues(before: range, after: range) -> bool:
    return before.step == after.step == 1 and before.stop == after.start


def describe(jids: JidRanges) -> str:
    """Return the jids in the text form of the command line, cut short when long."""
    texts = []
    for piece in jids.ranges[:8]:
        if piece.step == 1:
            texts.append(str(piece[0]) if len(piece) == 1 else f"{piece[0]}-{piece[-1]}")
        else:
            texts.append(f"{piece[0]}-{piece[-1]} by {piece.step}")
    return ",".join(texts) + (",..." if len(jids.ranges) > 8 else "")


def read_jids(value: object) -> list[JidRange]:
    """Return the ranges of ``value``: an int, or an iterable of ints, ranges and what `map` returns, in any order.

    Raises:
        TypeError: something in it is no integer.
        ValueError: an integer is not a job id.
    """
    return merge_ranges(ordered_ranges(value))


def ordered_ranges(value: object) -> list[JidRange]:
    """Return the ranges of ``value`` in the order given; repeated jids stay repeated.

    Raises:
        TypeError: something in it is no integer.
        ValueError: an integer is not a job id.
    """
    if is_single_jid(value):
        return [_pair(int(value), int(value))]  # type: ignore[call-overload]  # it is an integer
    if isinstance(value, range):
        return _ranges_of_range(value)
    parts = getattr(value, "ranges", None)
    if isinstance(parts, tuple):
        return [pair for part in parts for pair in _ranges_of_range(part)]
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"a job id must be an int, or an iterable of ints; got {value!r}")
    found: list[JidRange] = []
    for item in value:
        if isinstance(item, int) and not isinstance(item, bool):
            if found and found[-1][1] + 1 == item <= MAX_JID:
                found[-1] = (found[-1][0], int(item))
            else:
                found.append(_pair(int(item), int(item)))
        elif isinstance(item, range | JidRanges) or is_single_jid(item):
            found.extend(ordered_ranges(item))
        else:
            raise TypeError(
                f"a job id must be an int; got {item!r} of type {type(item).__name__}"
            )
    return found


def is_single_jid(value: object) -> bool:
    """Return whether ``value`` is one job id, not several."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return hasattr(value, "__index__") and not hasattr(value, "__len__")


def _ranges_of_range(value: range) -> list[JidRange]:
    if value.step == 1:
        return [_pair(value.start, value.stop - 1)] if value else []
    return [_pair(jid, jid) for jid in value]


def _pair(first: int, last: int) -> JidRange:
    if not 1 <= first <= last <= MAX_JID:
        raise ValueError(
            f"{first if first < 1 else last} is no job id; they go from 1 to {MAX_JID}"
        )
    return first, last
