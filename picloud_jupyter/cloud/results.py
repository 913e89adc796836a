"""What jobs returned: `result`, `iresult`, `join` and the rest that asks about many at once."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from picloud_jupyter.cloud.jid_ranges import is_single_jid, ordered_ranges, read_jids
from picloud_jupyter.cloud.outcomes import (
    Outcome,
    PendingOutcomes,
    fetch,
    slices,
    start_fetch,
)
from picloud_jupyter.cloud.session import service, session
from picloud_jupyter.cloud.waiting import Deadline, wait_finished
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException, InternalError
from picloud_jupyter.protocol.ids import (
    JidRange,
    count_ranges,
    iterate_ranges,
    merge_ranges,
    to_ranges,
)

MAX_READ_AHEAD = 1024


def status(jids: Any) -> Any:  # noqa: ANN401  # an int or an iterable of them
    """Return the status of a job as a string, of several as a list in the same order.

    Raises:
        TypeError: ``jids`` is neither an int nor an iterable of them.
        NotFound: a job is not yours.
    """
    ranges = ordered_ranges(jids)
    if not ranges:
        return []
    runs = session().client.post(routes.STATUS, {"jids": merge_ranges(ranges)})["statuses"]
    if is_single_jid(jids):
        return str(runs[0][2])
    found: dict[int, str] = {}
    for first, last, word in runs:
        found.update(dict.fromkeys(range(first, last + 1), word))
    return [found[jid] for jid in iterate_ranges(ranges)]


def join(
    jids: Any,  # noqa: ANN401
    timeout: float | None = None,
    ignore_errors: bool = False,  # noqa: FBT001, FBT002  # PiCloud's signature
    deadlock_check: bool = True,  # noqa: FBT001, FBT002
) -> None:
    """Return when all of ``jids`` are finished; ``timeout`` in seconds, None or 0 = never.

    Raises:
        JobError: one failed, unless ``ignore_errors``; raised at the first, others may go on.
        CloudTimeoutError: the time passed; its ``jid`` holds the unfinished ones.
        NotFound: a job is not yours.
    """
    deadline = Deadline(timeout)
    ranges = read_jids(jids)
    if not ranges:
        return
    failed = wait_finished(
        ranges, deadline, ignore_errors=ignore_errors, deadlock_check=deadlock_check
    )
    if failed and not ignore_errors:
        raise _outcome(failed[0][0]).error(load_cause=False)


def result(
    jids: Any,  # noqa: ANN401
    timeout: float | None = None,
    ignore_errors: bool = False,  # noqa: FBT001, FBT002  # PiCloud's signature
    deadlock_check: bool = True,  # noqa: FBT001, FBT002
) -> Any:  # noqa: ANN401  # whatever the jobs returned
    """Return what a job returned, or the list of what several did, once all are finished.

    With ``ignore_errors`` a failed job gives its exception as its value.

    Raises:
        JobError: one failed; holds the remote traceback, with the original as its cause.
        CloudTimeoutError: ``timeout`` seconds passed; its ``jid`` holds the unfinished ones.
        NotFound: a job is not yours.
    """
    deadline = Deadline(timeout)
    ranges = ordered_ranges(jids)
    if not ranges:
        return []
    if is_single_jid(jids):
        outcome = _finished_outcome(ranges[0][0], deadline, deadlock_check=deadlock_check)
        return _value(outcome, ignore_errors=ignore_errors)
    merged = merge_ranges(ranges)
    failed = wait_finished(
        merged, deadline, ignore_errors=ignore_errors, deadlock_check=deadlock_check
    )
    if failed and not ignore_errors:
        raise _outcome(failed[0][0]).error()
    values = [_value(outcome, ignore_errors=ignore_errors) for outcome in _outcomes(merged)]
    if merged == ranges:
        return values
    by_jid = dict(zip(iterate_ranges(merged), values, strict=True))
    return [by_jid[jid] for jid in iterate_ranges(ranges)]


def iresult(
    jids: Any,  # noqa: ANN401
    timeout: float | None = None,
    num_in_parallel: int = 10,
    ignore_errors: bool = False,  # noqa: FBT001, FBT002  # PiCloud's signature
) -> "ResultIterator":
    """Return an iterator over the results in the order of ``jids``, fetched ahead.

    A failed job raises from ``next()``, and the iterator goes on behind it; with ``ignore_errors`` it
    yields the exception. ``timeout`` seconds may pass for each element. ``num_in_parallel`` results
    are fetched at once (below 1 or above 1024 means 1024).
    """
    window = num_in_parallel if 1 <= num_in_parallel <= MAX_READ_AHEAD else MAX_READ_AHEAD
    return ResultIterator(ordered_ranges(jids), timeout, window, ignore_errors=ignore_errors)


class ResultIterator(Iterator[Any]):
    """The results of jobs one after another; the answer for the next ones is always under way."""

    def __init__(
        self,
        ranges: Sequence[JidRange],
        timeout: float | None,
        window: int,
        *,
        ignore_errors: bool,
    ) -> None:
        Deadline(timeout)  # refuses a wrong one now
        self._service = service()
        self._timeout = timeout
        self._left = count_ranges(ranges)
        self._ignore_errors = ignore_errors
        self._windows = slices(ranges, window)
        self._order: deque[int] = deque()
        self._have: dict[int, Outcome] = {}
        self._coming = next(self._windows, None)
        self._answer: PendingOutcomes | None = None
        self._ask_ahead()

    def __len__(self) -> int:
        """How many are left: what tqdm shows as the total."""
        return self._left

    def __next__(self) -> Any:  # noqa: ANN401
        return self.next()

    def next(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Return the next result, waiting ``timeout`` seconds for it (default: the iterator's).

        Raises:
            StopIteration: there is none left.
            CloudTimeoutError: the job is not finished; the same one comes next.
            JobError: it failed; the iterator can go on.
        """
        deadline = Deadline(self._timeout if timeout is None else timeout)
        return self._service.run(self._next, deadline)

    def _next(self, deadline: Deadline) -> Any:  # noqa: ANN401
        if not self._order:
            self._take_window()
        jid = self._order[0]
        if jid not in self._have:
            self._have[jid] = _finished_outcome(jid, deadline)
            self._fetch_rest()
        self._have[jid].fetch()  # if that fails the same one comes next
        self._order.popleft()
        self._left -= 1
        outcome = self._have[jid] if jid in self._order else self._have.pop(jid)
        return _value(outcome, ignore_errors=self._ignore_errors)

    def _take_window(self) -> None:
        """Take the next window. What cannot be asked for now is not lost, and comes once."""
        ranges = self._coming
        if ranges is None:
            raise StopIteration
        self._ask_ahead()  # again, if that failed before
        assert self._answer is not None
        self._have = {outcome.jid: outcome for outcome in self._answer.take()[0]}
        self._order.extend(iterate_ranges(ranges))
        self._coming, self._answer = next(self._windows, None), None
        self._ask_ahead()

    def _ask_ahead(self) -> None:
        if self._coming is not None and self._answer is None:
            self._answer = start_fetch(merge_ranges(self._coming))

    def _fetch_rest(self) -> None:
        missing = to_ranges(jid for jid in set(self._order) if jid not in self._have)
        if missing:
            self._have.update((outcome.jid, outcome) for outcome in fetch(missing)[0])


def kill(jids: Any = None) -> None:  # noqa: ANN401
    """End ``jids`` and all their processes; None = everything of yours that is not finished.

    Raises:
        TypeError: ``jids`` is neither None nor an int nor an iterable of them.
        NotFound: a job is not yours.
    """
    ranges = None if jids is None else read_jids(jids)
    if ranges is None or ranges:
        session().client.post(routes.KILL, {"jids": ranges})


def delete(jids: Any) -> None:  # noqa: ANN401
    """Remove finished jobs with their results and output.

    Raises:
        Conflict: one is not finished.
        NotFound: a job is not yours.
    """
    ranges = read_jids(jids)
    if ranges:
        session().client.post(routes.DELETE, {"jids": ranges, "key": os.urandom(16).hex()})


def _value(outcome: Outcome, *, ignore_errors: bool) -> Any:  # noqa: ANN401
    if ignore_errors and outcome.status != "done":
        return outcome.error()
    return outcome.value()


def _outcome(jid: int) -> Outcome:
    return next(_outcomes([(jid, jid)]))


def _finished_outcome(jid: int, deadline: Deadline, *, deadlock_check: bool = True) -> Outcome:
    """The outcome of one job, once it is finished: one request where that is within a minute."""
    pair = [(jid, jid)]
    found, _ = fetch(pair, wait_seconds=deadline.slice_seconds())
    if not found:
        if deadline.over:
            raise deadline.error(pair)
        wait_finished(pair, deadline, ignore_errors=True, deadlock_check=deadlock_check)
        found, _ = fetch(pair)
    if not found:
        raise _gone(jid)
    return found[0]


def _outcomes(merged: Sequence[JidRange]) -> Iterator[Outcome]:
    """The outcomes of finished jobs in order; the next answer is under way while one is used."""
    parts = slices(merged)
    part: list[JidRange] | None = next(parts, None)
    pending = start_fetch(part) if part else None
    while part and pending:
        outcomes, more = pending.take()
        if more and outcomes:
            part = _behind(part, outcomes[-1].jid)
        else:
            if not outcomes or outcomes[-1].jid != part[-1][1]:
                raise _gone(part[-1][1])
            part = next(parts, None)
        pending = start_fetch(part) if part else None
        yield from outcomes


def _behind(ranges: Sequence[JidRange], jid: int) -> list[JidRange]:
    return [(max(first, jid + 1), last) for first, last in ranges if last > jid]


def _gone(jid: int) -> CloudException:
    return InternalError(
        "the control plane gave no result for a job that it called finished", jid, retry=True
    )
