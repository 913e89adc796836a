"""`await`: jobs waited for without holding up the event loop, and without a thread for each."""

import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.jid_ranges import (
    JidRanges,
    is_single_jid,
    ordered_ranges,
    read_jids,
)
from picloud_jupyter.cloud.session import Service, service
from picloud_jupyter.cloud.waiting import Deadline, wait_finished
from picloud_jupyter.cloud.watcher import forget, watch
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.transport.client import Canceller

if TYPE_CHECKING:
    import asyncio  # loaded by who awaits: it would be a third of our import time


def aresult(
    jids: Any,  # noqa: ANN401
    timeout: float | None = None,
    ignore_errors: bool = False,  # noqa: FBT001, FBT002  # as `result` has it
) -> Awaitable[Any]:
    """Return what a job returned, or the list of what several did, to be awaited.

    The event loop goes on meanwhile. A task that is cancelled stops waiting; its jobs go on. Errors as
    for `cloud.result`.
    """
    ranges = ordered_ranges(jids)  # refuses wrong ones now
    if is_single_jid(jids):
        return result_of(ranges[0][0], timeout, ignore_errors=ignore_errors)
    # not ``jids``, which an iterator gives once
    return results_of(JidRanges.of_pairs(ranges), timeout, ignore_errors=ignore_errors)


def result_of(
    jid: int, timeout: float | None = None, *, ignore_errors: bool = False
) -> Awaitable[Any]:
    """Return the result of one job, to be awaited: the background thread of callbacks sees its end."""
    return _result_of(service(), jid, Deadline(timeout), ignore_errors=ignore_errors)


async def _result_of(of: Service, jid: int, deadline: Deadline, *, ignore_errors: bool) -> Any:  # noqa: ANN401
    import asyncio

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def on_end(_jid: int, outcome: str | CloudException) -> None:
        if isinstance(outcome, CloudException):
            loop.call_soon_threadsafe(_settle, ended, ended.set_exception, outcome)
        else:
            loop.call_soon_threadsafe(_settle, ended, ended.set_result, None)

    of.run(watch, jid, on_end)
    try:
        await asyncio.wait_for(ended, deadline.timeout)
    except TimeoutError:
        raise deadline.error([(jid, jid)]) from None
    finally:
        of.run(forget, jid, on_end)
    return await _in_thread(lambda: of.run(results.result, jid, None, ignore_errors))


def results_of(
    jids: JidRanges,
    timeout: float | None = None,
    *,
    ignore_errors: bool = False,
) -> Awaitable[list[Any]]:
    """Return the results of several jobs, to be awaited; a thread waits for all of them."""
    return _results_of(service(), jids, Deadline(timeout), ignore_errors=ignore_errors)


async def _results_of(
    of: Service,
    jids: JidRanges,
    deadline: Deadline,
    *,
    ignore_errors: bool,
) -> list[Any]:
    canceller = Canceller()

    def wait() -> Any:  # noqa: ANN401
        ranges = read_jids(jids)
        if ranges:
            wait_finished(ranges, deadline, ignore_errors=ignore_errors, canceller=canceller)
        return results.result(jids, None, ignore_errors)

    try:
        found: list[Any] = await _in_thread(lambda: of.run(wait))
    finally:
        canceller.cancel()  # of a task that is cancelled: its thread ends now
    return found


async def _in_thread(function: Callable[[], Any]) -> Any:  # noqa: ANN401
    """The value of ``function``, run in a daemon thread: a cancelled wait must not hold up an exit."""
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        how: Callable[[Any], None] = future.set_result
        try:
            value: object = function()
        except BaseException as exc:  # noqa: BLE001  # raised again where it is awaited
            how, value = future.set_exception, exc
        with contextlib.suppress(RuntimeError):  # the loop ended before: nobody waits
            loop.call_soon_threadsafe(_settle, future, how, value)

    threading.Thread(target=run, name="picloud-await", daemon=True).start()
    return await future


def _settle(future: "asyncio.Future[Any]", how: Callable[[Any], None], value: object) -> None:
    if not future.done():  # it is when the waiting task was cancelled
        how(value)
