"""What call and map return: numbers that are also handles of their jobs."""

import html
from collections.abc import Callable, Generator, Iterator
from typing import Any, ClassVar

from picloud_jupyter.cloud import results
from picloud_jupyter.cloud.asynchronous import result_of, results_of
from picloud_jupyter.cloud.information import info
from picloud_jupyter.cloud.jid_ranges import JidRanges, describe
from picloud_jupyter.cloud.session import DEFAULT, Service
from picloud_jupyter.cloud.written_files import JobFiles, files_of
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException


class Jid(int):
    """A job id: an int in every respect, and a handle of the job. Pickles as an int.

    ``service`` has the job; each service has a class of handles of its own.
    """

    __slots__ = ()
    service: ClassVar[Service] = DEFAULT

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Return what the job returned, once it is finished; see `cloud.result`."""
        return self.service.run(results.result, int(self), timeout)

    def join(self, timeout: float | None = None) -> None:
        """Return when the job is finished; see `cloud.join`."""
        self.service.run(results.join, int(self), timeout)

    def status(self) -> str:
        """Return the job's status."""
        return str(self.service.run(results.status, int(self)))

    def info(self, fields: Any = None) -> dict[str, Any]:  # noqa: ANN401
        """Return the job's fields; see `cloud.info`."""
        return self.service.run(info, int(self), fields)[int(self)]

    def kill(self) -> None:
        """End the job."""
        self.service.run(results.kill, int(self))

    def delete(self) -> None:
        """Remove the finished job with its result and output."""
        self.service.run(results.delete, int(self))

    def files(self) -> JobFiles:
        """Return the files that the finished job wrote; see `cloud.files_of`."""
        return self.service.run(files_of, int(self))

    def __await__(self) -> Generator[Any, None, Any]:
        return self.service.run(result_of, int(self)).__await__()

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def _repr_html_(self) -> str:
        return _html(f"Job {int(self)}", self._words)

    def _repr_mimebundle_(self, **_options: object) -> dict[str, str]:
        return {"text/plain": repr(int(self)), "text/html": self._repr_html_()}

    def _words(self) -> str:
        """The status; of a job that wrote files also how to get them."""
        found = self.info(["status", "files_written"])
        written = found["files_written"]
        more = f", wrote {written:,} file{'' if written == 1 else 's'}: cloud.files_of({int(self)})"
        return f"{found['status']}{more if written else ''}"


class Jids(JidRanges):
    """The job ids of a map: a range-like sequence of `Jid`, and a handle of all its jobs.

    Slices are handles too: ``jids[:10].result()``.
    """

    __slots__ = ()
    service: ClassVar[Service] = DEFAULT

    def make(self, jid: int) -> Jid:
        """Return the handle of one job."""
        return Jid(jid)

    def result(self, timeout: float | None = None, *, ignore_errors: bool = False) -> list[Any]:
        """Return what the jobs returned, once all are finished; see `cloud.result`."""
        found: list[Any] = self.service.run(results.result, self, timeout, ignore_errors)
        return found

    def iresult(self, timeout: float | None = None, **options: Any) -> Iterator[Any]:  # noqa: ANN401
        """Return an iterator over the results in order; see `cloud.iresult`."""
        return self.service.run(results.iresult, self, timeout, **options)

    def join(self, timeout: float | None = None, *, ignore_errors: bool = False) -> None:
        """Return when all jobs are finished; see `cloud.join`."""
        self.service.run(results.join, self, timeout, ignore_errors)

    def status(self) -> list[str]:
        """Return the status of each job."""
        found: list[str] = self.service.run(results.status, self)
        return found

    def info(self, fields: Any = None) -> dict[int, dict[str, Any]]:  # noqa: ANN401
        """Return the fields of each job; see `cloud.info`."""
        return self.service.run(info, self, fields)

    def kill(self) -> None:
        """End all these jobs."""
        self.service.run(results.kill, self)

    def delete(self) -> None:
        """Remove these finished jobs with their results and output."""
        self.service.run(results.delete, self)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self.service.run(results_of, self).__await__()

    def _repr_html_(self) -> str:
        return _html(f"{len(self):,} jobs {describe(self)}", self._count_words)

    def _repr_mimebundle_(self, **_options: object) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _count_words(self) -> str:
        if not self:
            return ""
        pairs = [(piece[0], piece[-1]) for piece in self.ranges if piece.step == 1]
        request = {"jids": pairs, "timeout_seconds": 0, "until": "all"}
        counts = self.service.session().client.post(routes.WAIT, request)["counts"]
        return ", ".join(f"{number:,} {status}" for status, number in counts.items())


def _html(title: str, words: Callable[[], str]) -> str:
    """A line for a notebook; the status of the moment, or that nobody answers."""
    try:
        state = words()
    except CloudException as exc:
        state = f"not known: {exc.parameter}"
    return f"<span><b>{html.escape(title)}</b> <code>{html.escape(state)}</code></span>"
