"""Queued jobs as ranges: by user, then priority, then order of submission. Pure."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from picloud_services.jobs.leasing import Arguments
from picloud_services.jobs.live import Ready
from picloud_services.jobs.spans import LiveBatch, Span
from picloud_services.jobs.words import Function

ARGUMENT_BYTES = (
    32 * 1024 * 1024
)  # packs kept in memory; what is over is read again when needed
QUEUED_CODE = ord("q")


@dataclass(slots=True, order=True)
class Work:
    """Contiguous queued jobs of one batch, of one attempt."""

    priority: int
    batch_number: int
    first_jid: int
    count: int = field(compare=False)
    batch: LiveBatch = field(compare=False)
    attempt: int = field(compare=False, default=1)
    fresh: bool = field(compare=False, default=False)
    alone: bool = field(compare=False, default=False)
    arguments: Arguments | None = field(compare=False, default=None)
    function: Function | None = field(compare=False, default=None)
    since: float = field(compare=False, default=0.0)
    _span: Span | None = field(compare=False, default=None, repr=False)

    def span(self) -> Span | None:
        """Return the span that holds its first job; a batch of many is searched once, not each time."""
        found = self._span
        if found is None or not found.first_jid <= self.first_jid <= found.last_jid:
            spans = self.batch.spans
            found = next(
                (s for s in spans if s.first_jid <= self.first_jid <= s.last_jid), None
            )
            self._span = found
        return found


def work_from(
    ready: Ready,
    batch: LiveBatch,
    since: float,
    arguments: Arguments | None = None,
    function: Function | None = None,
) -> Work:
    """Return ``ready`` as an entry of the queue."""
    return Work(
        batch.priority,
        batch.batch,
        ready.first_jid,
        ready.count,
        batch,
        attempt=ready.attempt,
        fresh=ready.fresh,
        alone=ready.alone,
        arguments=arguments,
        function=function,
        since=since,
    )


class WorkQueue:
    """One heap per user. Jobs that were ended while queued are left out when their turn comes."""

    def __init__(self) -> None:
        self._users: dict[int, list[Work]] = {}
        self._of_batch: dict[int, int] = {}
        self._of_user: Counter[int] = Counter()
        self._count = 0
        self._argument_bytes = 0

    def users(self) -> list[int]:
        """Return the users that have something queued."""
        return list(self._users)

    def __len__(self) -> int:
        return self._count

    def count_of(self, user_id: int) -> int:
        """Return how many jobs a user has queued."""
        return self._of_user.get(user_id, 0)

    def remaining(self, batch: int) -> int:
        """Return how many jobs of a batch are queued here."""
        return self._of_batch.get(batch, 0)

    def push(self, work: Work) -> None:
        """Enter ``work``."""
        if work.arguments is not None:
            size = len(work.arguments.pack)
            if self._argument_bytes + size > ARGUMENT_BYTES:
                work.arguments = None
            else:
                self._argument_bytes += size
        heapq.heappush(self._users.setdefault(work.batch.user_id, []), work)
        self._of_batch[work.batch_number] = self.remaining(work.batch_number) + work.count
        self._of_user[work.batch.user_id] += work.count
        self._count += work.count

    def head(self, user_id: int) -> Work | None:
        """Return a user's next work, cut to its first run of jobs that are still queued."""
        heap = self._users.get(user_id)
        while heap:
            work = heap[0]
            if _trim(work, self._forget):
                return work
            self._drop_head(user_id, heap)
        return None

    def take(self, work: Work, count: int) -> Work:
        """Remove ``count`` jobs from the front of a user's head and return them."""
        heap = self._users[work.batch.user_id]
        assert heap[0] is work
        taken = Work(
            work.priority,
            work.batch_number,
            work.first_jid,
            count,
            work.batch,
            attempt=work.attempt,
            fresh=work.fresh,
            alone=work.alone,
            arguments=work.arguments,
            function=work.function,
            since=work.since,
        )
        self._forget(work, count)
        work.first_jid += count
        work.count -= count
        if not work.count:
            self._drop_head(work.batch.user_id, heap)
        return taken

    def _forget(self, work: Work, count: int) -> None:
        self._of_user[work.batch.user_id] -= count
        self._count -= count
        left = self._of_batch[work.batch_number] - count
        if left:
            self._of_batch[work.batch_number] = left
        else:
            del self._of_batch[work.batch_number]

    def _drop_head(self, user_id: int, heap: list[Work]) -> None:
        work = heapq.heappop(heap)
        if work.arguments is not None:
            self._argument_bytes -= len(work.arguments.pack)
        if work.count:
            self._forget(work, work.count)
        if not heap:
            del self._users[user_id]

    def give_arguments(self, user_id: int, part: Arguments) -> None:
        """Let a user's next work have the arguments of its part, which were just read."""
        heap = self._users.get(user_id)
        if not heap or heap[0].arguments is not None:
            return
        work = heap[0]
        inside = part.first_jid <= work.first_jid
        if inside and work.first_jid + work.count <= part.first_jid + part.count:
            self._argument_bytes += len(part.pack)
            work.arguments = part

    def entries(self, user_id: int) -> Iterator[Work]:
        """Yield a user's entries, in no order."""
        return iter(self._users.get(user_id, ()))

    def ahead_of(self, user_id: int, priority: int, batch: int, jid: int) -> int:
        """Return how many queued jobs of the same user come before ``jid``."""
        return sum(
            work.count if work.batch_number != batch else min(work.count, jid - work.first_jid)
            for work in self.entries(user_id)
            if (work.priority, work.batch_number, work.first_jid) < (priority, batch, jid)
        )


def _trim(work: Work, forget: Callable[[Work, int], None]) -> bool:
    """Drop jobs at the front that are not queued any more; return whether any are left."""
    span = work.span()
    if span is None:
        return False
    start = work.first_jid - span.first_jid
    first = span.codes.find(QUEUED_CODE, start, start + work.count)
    if first < 0:
        return False
    if first > start:
        forget(work, first - start)
        work.first_jid += first - start
        work.count -= first - start
    return True


def queued_run(work: Work) -> int:
    """Return how many jobs from the front of ``work`` on are queued without a gap."""
    span = work.span()
    if span is None:
        return 0
    start = work.first_jid - span.first_jid
    stop, codes = start + work.count, span.codes
    if codes.count(QUEUED_CODE, start, stop) == work.count:
        return work.count
    return next(
        (at - start for at in range(start, stop) if codes[at] != QUEUED_CODE), work.count
    )
