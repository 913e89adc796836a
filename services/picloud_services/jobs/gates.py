"""Opens when a set of jobs is far enough: for long polls and for dependencies. O(changes). Pure."""

from bisect import bisect_right
from collections.abc import Callable

from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import Status
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.spans import CODE_OF, UNFINISHED_CODES, Span

FAILED_CODES = frozenset(CODE_OF[s] for s in (Status.ERROR, Status.KILLED, Status.STALLED))
Piece = tuple[Span, int, int]


class Gate:
    """Counts the unfinished and failed ones of a set of jobs that are in the image.

    Jobs that are not in the image are finished, or do not exist: the caller finds out which.
    ``opened`` is called at most once, when ``enough`` says so after a change.
    """

    def __init__(
        self,
        live: LiveJobs,
        jids: list[JidRange],
        *,
        enough: "Callable[[Gate], bool]",
        opened: Callable[[], None],
    ) -> None:
        self.pieces: list[Piece] = []  # as asked: in that order, repeated if asked twice
        self.unfinished = 0
        self.failed = 0
        self.changes = 0
        self._cuts: dict[Span, tuple[list[int], list[int]]] = {}  # starts, stops: disjoint
        self._enough = enough
        self._opened: Callable[[], None] | None = opened
        for first, last in jids:
            for span in live.overlapping(first, last):
                self.pieces.append((span, *span.cut(first, last)))
        for span, start, stop in sorted(self.pieces, key=_position):
            self._enter(span, start, stop)

    def _enter(self, span: Span, start: int, stop: int) -> None:
        """Count positions [start, stop), which come in order, but for those counted already."""
        if span not in self._cuts:
            self._cuts[span] = [], []
            span.watchers.append(self)
        starts, stops = self._cuts[span]
        if stops:
            start = max(start, stops[-1])
        if start >= stop:
            return
        if stops and stops[-1] == start:
            stops[-1] = stop
        else:
            starts.append(start)
            stops.append(stop)
        self.unfinished += span.unfinished(start, stop)
        self.failed += sum(span.codes.count(code, start, stop) for code in FAILED_CODES)

    def changed(self, span: Span, start: int, stop: int, old: int, new: int) -> None:
        """Count a committed change of ``span`` (the protocol of its watchers)."""
        starts, stops = self._cuts[span]
        at = bisect_right(stops, start)
        count = 0
        while at < len(starts) and starts[at] < stop:
            count += min(stop, stops[at]) - max(start, starts[at])
            at += 1
        if not count:
            return
        self.changes += 1
        if old in UNFINISHED_CODES:
            self.unfinished -= count
        if new in UNFINISHED_CODES:
            self.unfinished += count
        elif new in FAILED_CODES:
            self.failed += count
        self.check()

    def check(self) -> None:
        """Open if it is far enough."""
        if self._opened is not None and self._enough(self):
            opened, self._opened = self._opened, None
            opened()

    def rearm(self, opened: Callable[[], None]) -> None:
        """Count changes anew and open again at the next that is enough."""
        self.changes = 0
        self._opened = opened

    def close(self) -> None:
        """Stop counting."""
        self._opened = None
        for span in self._cuts:
            if self in span.watchers:
                span.watchers.remove(self)


def _position(piece: Piece) -> tuple[int, int]:
    return piece[0].first_jid, piece[1]
