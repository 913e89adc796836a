"""What call and map return: numbers that are also handles of their jobs."""

import html
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.information import info
from picloud_jupyter.cloud.jid_ranges import JidRanges, describe
from picloud_jupyter.cloud.session import session
from picloud_jupyter.cloud.watcher import forget, watch
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException

if TYPE_CHECKING:
    import asyncio  # loaded by who awaits: it would be a third of our import time


class Jid(int):
    """A job id: an int in every respect, and a handle of the job. Pickles as an int."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Return what the job returned, once it is finished; see `cloud.result`."""
        return results.result(int(self), timeout)

    def join(self, timeout: float | None = None) -> None:
        """Return when the job is finished; see `cloud.join`."""
        results.join(int(self), timeout)

    def status(self) -> str:
        """Return the job's status."""
        return str(results.status(int(self)))

    def info(self, fields: Any = None) -> dict[str, Any]:  # noqa: ANN401
        """Return the job's fields; see `cloud.info`."""
        return info(int(self), fields)[int(self)]

    def kill(self) -> None:
        """End the job."""
        results.kill(int(self))

    def delete(self) -> None:
        """Remove the finished job with its result and output."""
        results.delete(int(self))

    def __await__(self) -> Generator[Any, None, Any]:
        return _await_job(int(self)).__await__()

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def _repr_html_(self) -> str:
        return _html(f"Job {int(self)}", self.status)

    def _repr_mimebundle_(self, **_options: object) -> dict[str, str]:
        return {"text/plain": repr(int(self)), "text/html": self._repr_html_()}


class Jids(JidRanges):
    """The job ids of a map: a range-like sequence of `Jid`, and a handle of all its jobs.

    Slices are handles too: ``jids[:10].result()``.
    """

    __slots__ = ()

    def make(self, jid: int) -> Jid:
        """Return the handle of one job."""
        return Jid(jid)

    def result(self, timeout: float | None = None, *, ignore_errors: bool = False) -> list[Any]:
        """Return what the jobs returned, once all are finished; see `cloud.result`."""
        found: list[Any] = results.result(self, timeout, ignore_errors)
        return found

    def iresult(self, timeout: float | None = None, **options: Any) -> Iterator[Any]:  # noqa: ANN401
        """Return an iterator over the results in order; see `cloud.iresult`."""
        return results.iresult(self, timeout, **options)

    def join(self, timeout: float | None = None, *, ignore_errors: bool = False) -> None:
        """Return when all jobs are finished; see `cloud.join`."""
        results.join(self, timeout, ignore_errors)

    def status(self) -> list[str]:
        """Return the status of each job."""
        found: list[str] = results.status(self)
        return found

    def info(self, fields: Any = None) -> dict[int, dict[str, Any]]:  # noqa: ANN401
        """Return the fields of each job; see `cloud.info`."""
        return info(self, fields)

    def kill(self) -> None:
        """End all these jobs."""
        results.kill(self)

    def delete(self) -> None:
        """Remove these finished jobs with their results and output."""
        results.delete(self)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return _in_thread(self.result).__await__()

    def _repr_html_(self) -> str:
        return _html(f"{len(self):,} jobs {describe(self)}", self._count_words)

    def _repr_mimebundle_(self, **_options: object) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _count_words(self) -> str:
        if not self:
            return ""
        pairs = [(piece[0], piece[-1]) for piece in self.ranges if piece.step == 1]
        request = {"jids": pairs, "timeout_seconds": 0, "until": "all"}
        counts = session().client.post(routes.WAIT, request)["counts"]
        return ", ".join(f"{number:,} {status}" for status, number in counts.items())


async def _await_job(jid: int) -> Any:  # noqa: ANN401
    import asyncio

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def on_end(_jid: int, outcome: str | CloudException) -> None:
        if isinstance(outcome, CloudException):
            loop.call_soon_threadsafe(_settle, ended, ended.set_exception, outcome)
        else:
            loop.call_soon_threadsafe(_settle, ended, ended.set_result, None)

    watch(jid, on_end)
    try:
        await ended
    finally:
        forget(jid, on_end)
    return await _in_thread(lambda: results.result(jid))


def _settle(future: "asyncio.Future[Any]", how: Callable[[Any], None], value: object) -> None:
    if not future.done():  # it is when the waiting task was cancelled
        how(value)


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
        loop.call_soon_threadsafe(_settle, future, how, value)

    threading.Thread(target=run, name="picloud-await", daemon=True).start()
    return await future


def _html(title: str, words: Callable[[], str]) -> str:
    """A line for a notebook; the status of the moment, or that nobody answers."""
    try:
        state = words()
    except CloudException as exc:
        state = f"not known: {exc.parameter}"
    return f"<span><b>{html.escape(title)}</b> <code>{html.escape(state)}</code></span>"
