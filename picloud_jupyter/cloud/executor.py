"""`cloud.Executor`: jobs behind the interface of concurrent.futures."""

import contextlib
import functools
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future, InvalidStateError, wait
from typing import Any, NoReturn, ParamSpec, TypeVar

from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.calls import submit_call
from picloud_jupyter.cloud.keywords import take_options
from picloud_jupyter.cloud.maps import submit_map
from picloud_jupyter.cloud.outcomes import Outcome
from picloud_jupyter.cloud.session import Service, service
from picloud_jupyter.cloud.watcher import Collector, collector
from picloud_jupyter.protocol.errors import CloudException, JobError
from picloud_jupyter.protocol.jobs import Status
from picloud_jupyter.serialize.shared import call_each

P = ParamSpec("P")
R = TypeVar("R")
_REFUSED = {
    "_callback": "use add_done_callback of the future",
    "_callback_on_error": "use add_done_callback of the future",
    "_key": "it would make one job of all calls",
}


class JobFuture(Future[Any]):
    """The outcome of a submitted call. ``jid`` is its job; None while ``max_workers`` holds it back."""

    def __init__(self, of: Service) -> None:
        super().__init__()
        self.jid: int | None = None
        self.service = of
        self.is_ending = False  # its job was killed by `cancel_all`
        self._ending = threading.Lock()

    def begin(self, jid: int) -> bool:
        """Take the job that was made; return whether it must end, as this was cancelled meanwhile."""
        with self._ending:
            self.jid = jid
            return self.cancelled()

    def running(self) -> bool:
        """Return whether the job runs now; asks the service."""
        if self.done() or self.jid is None:
            return False
        return bool(self.service.run(results.status, self.jid) == Status.PROCESSING)

    def cancel(self) -> bool:
        """Return whether the call is cancelled: its job had not begun, and never will."""
        if not self.done():
            cancel_all([self])
        return self.cancelled()

    def collect(self, _jid: int, outcome: Outcome | CloudException) -> None:
        """Take the outcome of the job."""
        if isinstance(outcome, CloudException):
            self.fail(outcome)
        else:
            with contextlib.suppress(InvalidStateError):  # it was cancelled meanwhile
                self._settle(outcome)

    def fail(self, exc: BaseException) -> None:
        """End with ``exc``, if there is no outcome yet."""
        with contextlib.suppress(InvalidStateError):
            self.set_exception(exc)

    def _settle(self, outcome: Outcome) -> None:
        if self.is_ending and outcome.status == Status.KILLED:
            self.cancel_here()
            return
        try:
            value = outcome.value()
        except JobError as exc:
            self.set_exception(original_of(exc))
        except BaseException as exc:  # noqa: BLE001  # raised where the result is asked for
            self.set_exception(exc)
        else:
            self.set_result(value)

    def cancel_here(self) -> None:
        """Become cancelled, if there is no outcome yet, and wake who waits."""
        with self._ending:  # the thread that collects may see the end at the same time
            self._cancel()

    def cancel_held_back(self) -> None:
        """Become cancelled, if there is no job yet."""
        with self._ending:  # another thread may make it at the same time
            if self.jid is None:
                self._cancel()

    def _cancel(self) -> None:
        if not self.done() and super().cancel():
            self.set_running_or_notify_cancel()


def original_of(error: JobError) -> BaseException:
    """Return what the job raised, with ``error`` (the remote traceback) as its last cause.

    Where the original cannot be loaded here, ``error`` itself is returned.
    """
    original = error.__cause__
    if original is None:
        return error
    error.__cause__ = None
    last, seen = original, {id(original)}
    while last.__cause__ is not None and id(last.__cause__) not in seen:
        last = last.__cause__
        seen.add(id(last))
    last.__cause__ = error
    return original


def cancel_all(futures: Sequence[JobFuture], *, running: bool = False) -> None:
    """Cancel those of ``futures`` whose jobs have not begun; with ``running`` end the others too.

    All are of one executor. A job that begins at this very moment may be ended in its first steps.
    """
    for future in futures:
        future.cancel_held_back()
    by_jid = {future.jid: future for future in futures if future.jid and not future.done()}
    if not by_jid:
        return
    run = futures[0].service.run
    jids = list(by_jid)
    if not running:
        statuses = run(results.status, jids)
        jids = [
            jid
            for jid, status in zip(jids, statuses, strict=True)
            if status in (Status.WAITING, Status.QUEUED)
        ]
    if not jids:
        return
    for jid in jids:
        by_jid[jid].is_ending = True
    run(results.kill, jids)
    for jid, status in zip(jids, run(results.status, jids), strict=True):
        if status == Status.KILLED:
            by_jid[jid].cancel_here()


class Executor(BaseExecutor):
    """Runs calls as jobs: `submit`, `map` and `shutdown` as concurrent.futures has them.

    ``max_workers`` is how many of its jobs exist at once, default any number (the service runs as many
    as there are cores). Reserved keywords of `cloud.call` say how the jobs run. Exceptions are those
    that the function raised. The jobs are durable: a program that ends without `shutdown` does not end
    them. An executor cannot be pickled; a job makes one of its own.

    Raises:
        TypeError, ValueError: ``max_workers`` or a keyword is wrong.
    """

    def __init__(self, max_workers: int | None = None, **reserved: Any) -> None:  # noqa: ANN401
        if max_workers is not None:
            if isinstance(max_workers, bool) or not isinstance(max_workers, int):
                raise TypeError(f"max_workers must be an int or None, got {max_workers!r}")
            if max_workers < 1:
                raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        for name in _REFUSED.keys() & reserved.keys():
            raise ValueError(f"{name} is not for an executor: {_REFUSED[name]}")
        options = take_options(reserved, func=None, environ=os.environ)
        if reserved:
            raise TypeError(
                f"an executor takes max_workers and reserved keywords, not {', '.join(reserved)}"
            )
        self.options = options
        self._max_workers = max_workers
        self._service = service()
        self._lock = threading.Lock()
        self._held_back: deque[tuple[JobFuture, Callable[[], int]]] = deque()
        self._under_way = 0
        self._unfinished: set[JobFuture] = set()
        self._is_shut_down = False

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture:
        """Return the future of ``fn(*args, **kwargs)``; all keywords go to ``fn``.

        Raises:
            RuntimeError: the executor was shut down.
            TypeError, pickle.PicklingError, CloudException: as `cloud.call` has them.
        """
        if not callable(fn):
            raise TypeError(f"the first argument must be callable, got {fn!r}")
        return self.start(lambda: submit_call(fn, args, kwargs, self.options))

    def start(self, send: Callable[[], int]) -> JobFuture:
        """Return the future of the job that ``send`` makes, now or as soon as there is room."""
        future = JobFuture(self._service)
        with self._lock:
            self._refuse_if_shut_down()
            self._unfinished.add(future)
            is_held_back = (
                self._max_workers is not None and self._under_way >= self._max_workers
            )
            if is_held_back:
                self._held_back.append((future, send))
            else:
                self._under_way += 1
        future.add_done_callback(self._forget)
        if is_held_back:
            return future
        try:
            jid = self._service.run(send)
        except BaseException:
            self._forget(future)
            self._start_next()
            raise
        self._watch([future], [jid])
        return future

    def failed(self, exc: BaseException) -> JobFuture:
        """Return the future of a call that could not be submitted."""
        future = JobFuture(self._service)
        future.set_exception(exc)
        return future

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[R]:
        """Return an iterator over ``fn`` of the elements, in order; one job runs ``chunksize`` of them.

        It ends with the shortest iterable. When it is closed or an element raises, what has not begun
        is cancelled.

        Raises:
            TimeoutError: from ``next()``, ``timeout`` seconds after this call.
        """
        if not callable(fn):
            raise TypeError(f"the first argument must be callable, got {fn!r}")
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, got {chunksize}")
        end_at = None if timeout is None else time.monotonic() + timeout
        elements = zip(*iterables, strict=False)
        if chunksize == 1:
            return _results(self.futures_of(fn, elements, _shortest(iterables)), end_at)
        chunks = iter(lambda: tuple(itertools.islice(elements, chunksize)), ())
        of_chunk = functools.partial(call_each, fn)
        futures = self.futures_of(of_chunk, ((chunk,) for chunk in chunks))
        return itertools.chain.from_iterable(_results(futures, end_at))

    def futures_of(
        self,
        fn: Callable[..., Any],
        elements: Iterator[tuple[Any, ...]],
        count: int | None = None,
    ) -> list[JobFuture]:
        """Return a future of ``fn(*element)`` for each of ``elements``; they are ``count``, if known."""
        if self._max_workers is not None:
            return self._submit_each(fn, elements)
        with self._lock:
            self._refuse_if_shut_down()
        jids = self._service.run(submit_map, fn, elements, count, self.options)
        futures = [JobFuture(self._service) for _ in jids]
        self._watch(futures, list(map(int, jids)))
        return futures

    def _submit_each(
        self, fn: Callable[..., Any], elements: Iterator[tuple[Any, ...]]
    ) -> list[JobFuture]:
        futures: list[JobFuture] = []
        try:
            for element in elements:
                futures.append(self.submit(fn, *element))  # noqa: PERF401  # those made are needed
        except BaseException:
            cancel_all(futures, running=True)  # as `cloud.map` does: half of them help nobody
            raise
        return futures

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more calls; with ``wait`` return when all are finished.

        ``cancel_futures`` cancels those whose jobs have not begun. Without ``wait``, calls that
        ``max_workers`` holds back are sent as long as this process lives, and not after.
        """
        with self._lock:
            self._is_shut_down = True
        if cancel_futures:
            self._cancel_all(running=False)
        if wait:
            _wait_for(self._list_unfinished())

    def kill(self) -> None:
        """End all jobs of this executor, also those that run."""
        self._cancel_all(running=True)

    def _cancel_all(self, *, running: bool) -> None:
        with self._lock:
            self._held_back.clear()
        cancel_all(self._list_unfinished(), running=running)

    def _list_unfinished(self) -> list[JobFuture]:
        with self._lock:
            return list(self._unfinished)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an executor cannot be pickled: it belongs to this process; make another one in the job, with cloud.Executor()"
        )

    def _refuse_if_shut_down(self) -> None:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _watch(self, futures: Sequence[JobFuture], jids: Sequence[int]) -> None:
        waiting = dict(zip(jids, futures, strict=True))
        with self._lock:
            self._unfinished.update(futures)
        late = [jid for jid, future in waiting.items() if future.begin(int(jid))]
        for future in futures:
            future.add_done_callback(self._note_end)

        def on_end(jid: int, outcome: Outcome | CloudException) -> None:
            waiting.pop(jid).collect(jid, outcome)

        self._collector().watch(jids, on_end)
        if late:
            self._service.run(results.kill, late)

    def _collector(self) -> Collector:
        return self._service.run(collector)

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._unfinished.discard(future)

    def _note_end(self, future: Future[Any]) -> None:
        self._forget(future)
        if self._max_workers is not None:
            self._start_next()

    def _start_next(self) -> None:
        """Give the place of a job that ended to one that was held back."""
        while True:
            with self._lock:
                taken = self._held_back.popleft() if self._held_back else None
                if taken is None:
                    self._under_way -= 1
                    return
            future, send = taken
            if future.cancelled():
                continue
            try:
                jid = self._service.run(send)
            except Exception as exc:  # noqa: BLE001  # raised where the result is asked for
                future.fail(exc)
            else:
                self._watch([future], [jid])
                return


def _wait_for(futures: Sequence[JobFuture]) -> None:
    wait(futures)


def _shortest(iterables: Sequence[Iterable[Any]]) -> int | None:
    if not all(
        isinstance(iterable, list | tuple | range | str | bytes) for iterable in iterables
    ):
        return None
    return min((len(found) for found in iterables if isinstance(found, Sized)), default=0)


def _results(futures: list[JobFuture], end_at: float | None) -> Iterator[Any]:
    futures.reverse()
    try:
        while futures:
            seconds = None if end_at is None else end_at - time.monotonic()
            yield futures.pop().result(seconds)  # what was given away is not kept
    finally:
        cancel_all(futures)
