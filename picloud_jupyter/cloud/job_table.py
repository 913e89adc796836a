"""`cloud.jobs`: the newest jobs as a table, for people, programs and pandas."""

import datetime
import html
import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from picloud_jupyter.cloud.progress import format_seconds
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.jobs import Status
from picloud_jupyter.protocol.terminal import one_line

COLUMNS = ("jid", "status", "reason", "created", "runtime", "label", "function")
_GAP = "    "
_AT_ONCE = 1000
_MOMENTS = {"created_at": "created", "started_at": "started", "finished_at": "finished"}


def jobs(
    limit: int = 20,
    *,
    label: str | None = None,
    status: str | None = None,
    map: int | None = None,  # noqa: A002  # as info calls it
    before: int | None = None,
) -> "JobTable":
    """Return your newest jobs, newest first: at most ``limit``, of one label, status or map.

    ``before`` is a jid: only older ones. The table shows itself in a notebook; `JobTable.to_pandas` gives a
    DataFrame.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, or there is no such status.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, got {limit!r}")
    if limit < 0:
        raise ValueError(f"limit must not be negative, got {limit}")
    if status is not None and status not in set(Status):
        raise ValueError(f"a status is one of {', '.join(Status)}; got {status!r}")
    given = {"label": label, "status": status, "map": map}
    return JobTable(_pages(limit, {k: v for k, v in given.items() if v is not None}, before))


def _pages(
    limit: int, query: dict[str, object], before: int | None
) -> Iterator[dict[str, Any]]:
    while limit > 0:
        asked = {**query, "limit": min(limit, _AT_ONCE)}
        if before is not None:
            asked["before"] = int(before)
        found: list[dict[str, Any]] = session().client.get(routes.JOBS, asked)["jobs"]
        yield from found
        if len(found) < min(limit, _AT_ONCE):
            return
        limit -= len(found)
        before = found[-1]["jid"]


class JobTable(Sequence[dict[str, Any]]):
    """Jobs in a row, each a dict: jid, status, reason, why, label, function, created, map, cores ...

    Times are datetimes in UTC.
    """

    def __init__(self, lines: Iterable[dict[str, Any]]) -> None:
        self._jobs = [_with_moments(line) for line in lines]

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "JobTable": ...
    def __getitem__(self, index: int | slice) -> "dict[str, Any] | JobTable":
        if isinstance(index, int):
            return self._jobs[index]
        table = JobTable(())
        table._jobs = self._jobs[index]  # one of its own
        return table

    def to_pandas(self) -> Any:  # noqa: ANN401  # pandas.DataFrame
        """Return a pandas DataFrame with the jid as index.

        Raises:
            ModuleNotFoundError: pandas is not installed in this Python.
        """
        pandas = importlib.import_module("pandas")
        columns = (
            ["jid", *(name for name in self._jobs[0] if name != "jid")] if self else COLUMNS
        )
        return pandas.DataFrame(self._jobs, columns=list(columns)).set_index("jid")

    def __repr__(self) -> str:
        if not self._jobs:
            return "no jobs"
        return "\n".join(format_columns([COLUMNS, *map(row, self._jobs)]))

    def _repr_html_(self) -> str:
        if not self._jobs:
            return "<span>no jobs</span>"
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(_cell(cell))}</td>' for cell in row(job))}</tr>"
            for job in self._jobs
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def row(job: dict[str, Any]) -> tuple[object, ...]:
    """Return the cells of one job, in the order of `COLUMNS`."""
    started, finished = job.get("started"), job.get("finished")
    runtime = (
        format_seconds((finished - started).total_seconds()) if started and finished else ""
    )
    created = job.get("created")
    return (
        job["jid"],
        job["status"],
        job.get("why") or job.get("reason") or "",
        created.astimezone().strftime("%Y-%m-%d %H:%M:%S") if created else "",
        runtime,
        job.get("label") or "",
        job.get("function") or "",
    )


def format_columns(rows: Iterable[Sequence[object]]) -> list[str]:
    """Return one line for each of ``rows``, columns left-justified and padded to the widest cell.

    >>> format_columns([("jid", "status"), (7, "done")])
    ['jid    status', '7      done']
    """
    lines = [[_cell(cell) for cell in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    first, *more = text.splitlines() or [""]
    return one_line(f"{first} ..." if more else first)


def _with_moments(line: dict[str, Any]) -> dict[str, Any]:
    """The job with datetimes in place of seconds since 1970."""
    return {_MOMENTS.get(name, name): _moment(name, value) for name, value in line.items()}


def _moment(name: str, value: Any) -> Any:  # noqa: ANN401
    if name not in _MOMENTS or value is None:
        return value
    return datetime.datetime.fromtimestamp(value, tz=datetime.UTC)
