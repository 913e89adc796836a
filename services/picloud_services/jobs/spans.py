"""Which contiguous range of jids a jid is in: an index that costs per range, not per jid. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import JobSpec, Status

BLOCK_BITS = 12
OPEN, SEALED, ABANDONED = "open", "sealed", "abandoned"  # states of a batch

CODE_OF = {
    Status.WAITING: ord("w"),
    Status.QUEUED: ord("q"),
    Status.DONE: ord("d"),
    Status.ERROR: ord("e"),
    Status.KILLED: ord("k"),
    Status.STALLED: ord("s"),
}
STATUS_OF = {code: status for status, code in CODE_OF.items()}
ABSENT = 0  # reserved for a part that has not come yet
UNFINISHED_CODES = (CODE_OF[Status.WAITING], CODE_OF[Status.QUEUED])


@dataclass(slots=True, eq=False)
class LiveBatch:
    """A call or a map that is not finished. ``spec`` is shared by many and lacks what is here."""

    batch: int
    user_id: int
    spec: JobSpec
    function_digest: str
    priority: int
    label: str | None
    state: str
    size: int | None
    created_at: float
    depends_on: tuple[JidRange, ...] = ()
    is_map: bool = False
    spans: "list[Span]" = field(default_factory=list)
    open: int = 0  # unfinished jobs


@dataclass(slots=True, eq=False)
class Span:
    """Contiguous jids of one unfinished batch, one status code each."""

    first_jid: int
    codes: bytearray
    batch: LiveBatch
    first_index: int
    watchers: list["Watcher"] = field(default_factory=list)

    @property
    def last_jid(self) -> int:
        """The last jid, included."""
        return self.first_jid + len(self.codes) - 1

    def code(self, jid: int) -> int:
        """Return the status code of ``jid``, which must be inside."""
        return self.codes[jid - self.first_jid]

    def cut(self, first: int, last: int) -> tuple[int, int]:
        """Return the positions [start, stop) of those of ``first`` .. ``last`` that are inside."""
        return max(first - self.first_jid, 0), min(last - self.first_jid + 1, len(self.codes))

    def unfinished(self, start: int, stop: int) -> int:
        """Return how many between two positions are waiting or queued."""
        codes = self.codes
        return sum(codes.count(code, start, stop) for code in UNFINISHED_CODES)


class Watcher(Protocol):
    """Is told of each committed change in a span it registered with."""

    def changed(self, span: Span, start: int, stop: int, old: int, new: int) -> None:
        """Positions [start, stop) went from code ``old`` to ``new``."""


S = TypeVar("S", bound=Span)


class SpanIndex(Generic[S]):
    """Finds the span of a jid; spans never overlap."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[S]] = {}

    def add(self, span: S) -> None:
        """Enter ``span``; one that has grown may be added again."""
        for block in range(span.first_jid >> BLOCK_BITS, (span.last_jid >> BLOCK_BITS) + 1):
            spans = self._blocks.setdefault(block, [])
            at = bisect_right(spans, span.first_jid, key=_first_jid)
            if not (at and spans[at - 1] is span):
                spans.insert(at, span)

    def remove(self, span: S) -> None:
        """Forget ``span``."""
        for block in range(span.first_jid >> BLOCK_BITS, (span.last_jid >> BLOCK_BITS) + 1):
            spans = self._blocks[block]
            del spans[bisect_right(spans, span.first_jid, key=_first_jid) - 1]
            if not spans:
                del self._blocks[block]

    def find(self, jid: int) -> S | None:
        """Return the span that holds ``jid``."""
        spans = self._blocks.get(jid >> BLOCK_BITS)
        if not spans:
            return None
        at = bisect_right(spans, jid, key=_first_jid)
        if at and jid <= spans[at - 1].last_jid:
            return spans[at - 1]
        return None

    def overlapping(self, first: int, last: int) -> Iterator[S]:
        """Yield the spans that hold any of ``first`` .. ``last``, in order of jid."""
        blocks: Iterable[int] = range(first >> BLOCK_BITS, (last >> BLOCK_BITS) + 1)
        if (last - first) >> BLOCK_BITS > len(self._blocks):
            blocks = sorted(b for b in self._blocks if b in blocks)
        seen: S | None = None
        for block in blocks:
            spans = self._blocks.get(block)
            if not spans:
                continue
            # A block of single calls has thousands of spans, and a client may name each by itself.
            at = max(bisect_right(spans, first, key=_first_jid) - 1, 0)
            for span in spans[at : bisect_right(spans, last, key=_first_jid)]:
                if span is not seen and span.last_jid >= first:
                    yield span
                seen = span


def _first_jid(span: Span) -> int:
    return span.first_jid
