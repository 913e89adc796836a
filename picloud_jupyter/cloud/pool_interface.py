"""`cloud.pool_interface`: the functions of multiprocessing.Pool, each element a job.

Beside PiCloud's: keywords of the function (``kwds``), `starmap`, results in the order in which they come
(`imap_unordered`), timeouts that count, and callbacks that get values as those of multiprocessing do.
"""

import itertools
import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, as_completed, wait
from typing import Any

from picloud_jupyter.cloud.executor import Executor, cancel_all
from picloud_jupyter.protocol.errors import CloudTimeoutError

Callback = Callable[[Any], object]


class PoolTimeoutError(CloudTimeoutError, multiprocessing.TimeoutError):
    """Raised when the time of a `get` passed: a timeout of `cloud` and of multiprocessing."""


class AsyncResult:
    """The value of one job, or the list of those of several, to come."""

    def __init__(self, futures: list[Future[Any]], *, single: bool) -> None:
        self._futures = futures
        self._single = single

    def get(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Return the value or values; waits for at most ``timeout`` seconds.

        Raises:
            PoolTimeoutError: the time passed.
            Exception: what the function raised.
        """
        self.wait(timeout)
        if not self.ready():
            raise PoolTimeoutError(f"not ready after {timeout:g} seconds")
        if self._single:
            return self._futures[0].result()
        return [future.result() for future in self._futures]

    def wait(self, timeout: float | None = None) -> None:
        """Return when it is ready, or after ``timeout`` seconds."""
        wait(self._futures, timeout)

    def ready(self) -> bool:
        """Return whether all jobs are finished."""
        return all(future.done() for future in self._futures)

    def successful(self) -> bool:
        """Return whether no function raised.

        Raises:
            ValueError: it is not ready.
        """
        if not self.ready():
            raise ValueError("the result is not ready")
        return all(future.exception() is None for future in self._futures)

    def call_back(self, on_value: Callback | None, on_error: Callback | None) -> None:
        """Have one of the functions called, in a background thread, when it is ready."""
        left = itertools.count(len(self._futures) - 1, -1)
        lock = threading.Lock()  # those that have ended already are noted in this thread

        def note_end(_future: Future[Any]) -> None:
            with lock:
                is_last = next(left) == 0
            if is_last:
                self._tell(on_value, on_error)

        if on_value is None and on_error is None:
            return
        if not self._futures:
            self._tell(on_value, on_error)
        for future in self._futures:
            future.add_done_callback(note_end)

    def _tell(self, on_value: Callback | None, on_error: Callback | None) -> None:
        error = next((e for future in self._futures if (e := future.exception())), None)
        if error is None and on_value is not None:
            on_value(self.get())
        elif error is not None and on_error is not None:
            on_error(error)


def apply(
    func: Callable[..., Any],
    args: Iterable[Any] = (),
    kwds: Mapping[str, Any] | None = None,
) -> Any:  # noqa: ANN401
    """Return ``func(*args, **kwds)``, run as a job; waits for it."""
    return apply_async(func, args, kwds).get()


def apply_async(
    func: Callable[..., Any],
    args: Iterable[Any] = (),
    kwds: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    error_callback: Callback | None = None,
) -> AsyncResult:
    """Return the result to come of ``func(*args, **kwds)``, run as a job."""
    future = Executor().submit(func, *args, **(kwds or {}))
    found = AsyncResult([future], single=True)
    found.call_back(callback, error_callback)
    return found


def map(  # noqa: A001  # multiprocessing's name
    func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
) -> list[Any]:
    """Return ``func`` of each element; waits for all. ``chunksize`` has no effect: each is a job."""
    return starmap(func, zip(iterable, strict=True), chunksize)


def map_async(
    func: Callable[..., Any],
    iterable: Iterable[Any],
    chunksize: int | None = None,
    callback: Callback | None = None,
    error_callback: Callback | None = None,
) -> AsyncResult:
    """Return the list to come of ``func`` of each element; see `map`."""
    return starmap_async(func, zip(iterable, strict=True), chunksize, callback, error_callback)


def starmap(
    func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
) -> list[Any]:
    """Return ``func(*element)`` of each element; waits for all."""
    found: list[Any] = starmap_async(func, iterable, chunksize).get()
    return found


def starmap_async(
    func: Callable[..., Any],
    iterable: Iterable[Iterable[Any]],
    chunksize: int | None = None,
    callback: Callback | None = None,
    error_callback: Callback | None = None,
) -> AsyncResult:
    """Return the list to come of ``func(*element)`` of each element."""
    _check_chunksize(chunksize)
    futures = Executor().futures_of(func, (tuple(element) for element in iterable))
    found = AsyncResult(list(futures), single=False)
    found.call_back(callback, error_callback)
    return found


def imap(
    func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
) -> Iterator[Any]:
    """Return an iterator over ``func`` of each element, in order."""
    _check_chunksize(chunksize)
    return Executor().map(func, iterable)


def imap_unordered(
    func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
) -> Iterator[Any]:
    """Return an iterator over ``func`` of each element, as they come."""
    _check_chunksize(chunksize)
    executor = Executor()
    futures = executor.futures_of(func, zip(iterable, strict=True))

    def values() -> Iterator[Any]:
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            cancel_all(futures)

    return values()


def _check_chunksize(chunksize: int | None) -> None:
    if chunksize is not None and not chunksize >= 1:
        raise ValueError(f"chunksize must be at least 1, got {chunksize}")
