"""The image in memory of every unfinished batch: one byte per job, changed only by what has committed.

The store is the only truth; this is what it says of jobs that still change, kept so that waiting,
listing and dispatching cost nothing per job. A batch is forgotten when its last job is finished.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from picloud_jupyter.protocol.jobs import Status
from picloud_services.jobs.spans import (
    ABSENT,
    CODE_OF,
    OPEN,
    STATUS_OF,
    UNFINISHED_CODES,
    LiveBatch,
    Span,
    SpanIndex,
)

STATUS_OF_UNFINISHED = tuple(STATUS_OF[code] for code in UNFINISHED_CODES)


@dataclass(frozen=True, slots=True)
class Change:
    """Jobs of one batch, contiguous jids, that went from one stored status to another."""

    batch: int
    first_jid: int
    last_jid: int
    old: Status
    new: Status
    reason: str = ""  # where it is not plain from the status


@dataclass(frozen=True, slots=True)
class Ready:
    """Contiguous queued jobs of one batch that may run now, or ``delay_seconds`` from now."""

    batch: int
    first_jid: int
    count: int
    attempt: int = 1
    fresh: bool = False
    alone: bool = False
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Running:
    """An element that runs now."""

    lease: str
    node: str
    position: int
    started_at: float
    container: str = ""  # where the node said it


class LiveJobs:
    """All unfinished batches, and which of their jobs run."""

    def __init__(self) -> None:
        self.batches: dict[int, LiveBatch] = {}
        self.running: dict[int, Running] = {}
        self.killing: set[int] = (
            set()
        )  # run, and are to end by request, whatever their node does
        self._index: SpanIndex[Span] = SpanIndex()
        self._unfinished: Counter[tuple[int, int]] = Counter()  # (user, code) -> jobs

    def add_batch(self, batch: LiveBatch) -> None:
        """Enter a batch without jobs."""
        self.batches[batch.batch] = batch

    def reserve(self, batch: LiveBatch, first_jid: int, count: int) -> None:
        """Enter the jids of a map of known length, whose parts are still to come."""
        self._add_span(Span(first_jid, bytearray(count), batch, 0))

    def add_jobs(
        self, batch: LiveBatch, first_jid: int, first_index: int, codes: bytes
    ) -> None:
        """Enter committed jobs with their status codes."""
        span = self._index.find(first_jid)
        if span is None:
            span = batch.spans[-1] if batch.spans else None
            if (
                span is not None
                and span.last_jid + 1 == first_jid
                and span.first_index + len(span.codes) == first_index
            ):
                span.codes += codes
                self._index.add(span)
            else:
                self._add_span(Span(first_jid, bytearray(codes), batch, first_index))
        else:
            start = first_jid - span.first_jid
            span.codes[start : start + len(codes)] = codes
        for code in UNFINISHED_CODES:
            count = codes.count(code)
            batch.open += count
            self._unfinished[batch.user_id, code] += count
        self.forget_if_finished(batch)

    def _add_span(self, span: Span) -> None:
        span.batch.spans.append(span)
        self._index.add(span)

    def find(self, jid: int) -> Span | None:
        """Return the span of ``jid`` if its batch is unfinished."""
        return self._index.find(jid)

    def overlapping(self, first: int, last: int) -> Iterator[Span]:
        """Yield the spans that hold any of ``first`` .. ``last``."""
        return self._index.overlapping(first, last)

    def status(self, jid: int) -> Status | None:
        """Return the status of ``jid`` if its batch is unfinished and the job is committed."""
        span = self._index.find(jid)
        if span is None or (code := span.code(jid)) == ABSENT:
            return None
        if jid in self.running and code in UNFINISHED_CODES:
            return Status.PROCESSING
        return STATUS_OF[code]

    def start(self, jid: int, running: Running) -> None:
        """Note that ``jid`` runs now."""
        span = self._index.find(jid)
        if span is None or span.code(jid) not in UNFINISHED_CODES or jid in self.running:
            return
        self.running[jid] = running
        self._tell_again(span, jid)

    def wish_end(self, jid: int) -> None:
        """Note that ``jid`` is to end by request: it never runs again."""
        span = self._index.find(jid)
        if span is not None and span.code(jid) in UNFINISHED_CODES:
            self.killing.add(jid)

    def stop(self, jid: int) -> None:
        """Note that ``jid`` does not run any more, though it is not finished."""
        span = self._index.find(jid)
        if self.running.pop(jid, None) is not None and span is not None:
            self._tell_again(span, jid)

    @staticmethod
    def _tell_again(span: Span, jid: int) -> None:
        at = jid - span.first_jid
        for watcher in tuple(span.watchers):
            watcher.changed(span, at, at + 1, span.codes[at], span.codes[at])

    def apply(self, changes: Iterable[Change]) -> None:
        """Take over committed changes and tell the watchers of their spans."""
        for change in changes:
            span = self._index.find(change.first_jid)
            if span is None:
                continue
            start, stop = span.cut(change.first_jid, change.last_jid)
            old, new = CODE_OF[change.old], CODE_OF[change.new]
            span.codes[start:stop] = bytes((new,)) * (stop - start)
            user_id = span.batch.user_id
            self._unfinished[user_id, old] -= stop - start
            if new in UNFINISHED_CODES:
                self._unfinished[user_id, new] += stop - start
            else:
                span.batch.open -= stop - start
                if self.killing:
                    self.killing.difference_update(range(change.first_jid, change.last_jid + 1))
                for jid in self._running_within(change.first_jid, change.last_jid):
                    del self.running[jid]
            for watcher in tuple(span.watchers):
                watcher.changed(span, start, stop, old, new)
            self.forget_if_finished(span.batch)

    def _running_within(self, first: int, last: int) -> list[int]:
        if last - first < len(self.running):
            return [jid for jid in range(first, last + 1) if jid in self.running]
        return [jid for jid in self.running if first <= jid <= last]

    def forget_if_finished(self, batch: LiveBatch) -> None:
        """Drop a batch that cannot change any more."""
        if batch.open or batch.state == OPEN or batch.batch not in self.batches:
            return
        del self.batches[batch.batch]
        for span in batch.spans:
            self._index.remove(span)

    def unfinished(self, user_id: int) -> Counter[Status]:
        """Return how many unfinished jobs of a user are in each status, processing included."""
        found = Counter(
            {STATUS_OF[code]: self._unfinished[user_id, code] for code in UNFINISHED_CODES}
        )
        for jid in self.running:
            span = self._index.find(jid)
            if span is not None and span.batch.user_id == user_id:
                found[Status.PROCESSING] += 1
                found[Status.QUEUED] -= 1
        return +found

    def unfinished_of_all(self) -> Counter[Status]:
        """Return how many unfinished jobs of all users are in each status, processing included."""
        found: Counter[Status] = Counter(
            dict.fromkeys((*STATUS_OF_UNFINISHED, Status.PROCESSING), 0)
        )
        for (_, code), count in self._unfinished.items():
            found[STATUS_OF[code]] += count
        found[Status.PROCESSING] += len(self.running)
        found[Status.QUEUED] -= len(self.running)
        return found

    def count(self, span: Span, start: int, stop: int) -> dict[Status, int]:
        """Return how many jobs between two positions are in each status, processing included."""
        codes = span.codes
        found = {
            status: n
            for code, status in STATUS_OF.items()
            if (n := codes.count(code, start, stop))
        }
        running = len(self._running_within(span.first_jid + start, span.first_jid + stop - 1))
        if running:
            found[Status.PROCESSING] = running
            left = found.get(Status.QUEUED, 0) - running
            if left > 0:
                found[Status.QUEUED] = left
            else:
                found.pop(Status.QUEUED, None)
        return found

    def runs(self, span: Span, start: int, stop: int) -> Iterator[tuple[int, int, Status]]:
        """Yield (first jid, last jid, status) for positions [start, stop), absent ones left out."""
        base = span.first_jid
        cuts = sorted(
            {jid - base for jid in self._running_within(base + start, base + stop - 1)}
        )
        at = start
        for running_at in [*cuts, stop]:
            yield from _code_runs(span, at, running_at)
            if running_at < stop:
                yield base + running_at, base + running_at, Status.PROCESSING
            at = running_at + 1


def _code_runs(span: Span, start: int, stop: int) -> Iterator[tuple[int, int, Status]]:
    codes = span.codes
    while start < stop:
        code = codes[start]
        end = start + 1
        step = 1
        while end < stop and codes[end] == code:  # doubling steps: runs are long
            ahead = min(end + step, stop)
            if codes.count(code, end, ahead) == ahead - end:
                end = ahead
                step *= 2
            else:
                step = max(step // 2, 1)
        if code != ABSENT:
            yield span.first_jid + start, span.first_jid + end - 1, STATUS_OF[code]
        start = end
