"""`cloud.mp`: the functions of `cloud` over local processes, beside `cloud` itself.

Its jobs run in a service of this program's own that ends with it: plain processes, not isolated, as many
at once as there are cores. Job ids are its own: ask `cloud.mp` about them, or the ids themselves.
"""

import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, ParamSpec, TypeVar

from picloud_jupyter.cloud import (
    asynchronous,
    calls,
    executor,
    handles,
    information,
    job_table,
    maps,
    results,
    session,
)
from picloud_jupyter.cloud.private_service import PRIVATE
from picloud_jupyter.cloud.session import Service
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES

P = ParamSpec("P")
R = TypeVar("R")


class Jid(handles.Jid):
    """A job id of `cloud.mp`; see `handles.Jid`."""

    __slots__ = ()
    service: ClassVar[Service] = PRIVATE


class Jids(handles.Jids):
    """The job ids of a map of `cloud.mp`; see `handles.Jids`."""

    __slots__ = ()
    service: ClassVar[Service] = PRIVATE

    def make(self, jid: int) -> Jid:
        """Return the handle of one job."""
        return Jid(jid)


def call(func: Callable[..., object], *args: Any, **kwargs: Any) -> Jid:  # noqa: ANN401
    """Return the id of a new job that runs ``func(*args, **kwargs)``; see `cloud.call`."""
    return Jid(PRIVATE.run(calls.call, func, *args, **kwargs))


def map(func: Callable[..., object], *iterables: Iterable[Any], **reserved: Any) -> Jids:  # noqa: A001, ANN401
    """Return the ids of new jobs, one for each element; see `cloud.map`."""
    outside = [_Outside(i) if isinstance(i, Iterator) else i for i in iterables]
    return Jids(PRIVATE.run(maps.map, func, *outside, **reserved).ranges)


class _Outside(Iterator[Any]):
    """An iterator whose code, the user's, runs as outside of this module: its `cloud` is `cloud`."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._context = contextvars.copy_context()

    def __next__(self) -> Any:  # noqa: ANN401
        return self._context.run(next, self._iterator)


def _bound(function: Callable[P, R]) -> Callable[P, R]:
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return PRIVATE.run(function, *args, **kwargs)

    run.__doc__ = function.__doc__
    run.__name__ = run.__qualname__ = function.__name__
    return run


status = _bound(results.status)
result = _bound(results.result)
iresult = _bound(results.iresult)
join = _bound(results.join)
kill = _bound(results.kill)
delete = _bound(results.delete)
info = _bound(information.info)
aresult = _bound(asynchronous.aresult)
jobs = _bound(job_table.jobs)
connection_info = _bound(session.connection_info)
close = _bound(session.close)
is_simulated = _bound(session.is_simulated)
Executor = _bound(executor.Executor)
finished_statuses = [status.value for status in FINISHED_STATUSES]
