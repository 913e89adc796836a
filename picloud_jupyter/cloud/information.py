"""`cloud.info`: what is known about jobs."""

import datetime
from collections.abc import Iterable
from typing import Any

from picloud_jupyter.cloud.jid_ranges import read_jids
from picloud_jupyter.cloud.outcomes import slices
from picloud_jupyter.cloud.session import service, session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.displays import text_for_terminal
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.serialize.payload import load_call, load_function

_MOMENTS = ("created", "started", "finished")
_LOADED = ("func_object", "args", "kwargs")  # unpickled here, and only when asked for
_JIDS_AT_ONCE = 2_000
_TAIL_CHARACTERS = 64 * 1024  # an output of so many is the end of a longer one


class JobInfo(dict[str, Any]):
    """The fields of one job. ``func_object``, ``args`` and ``kwargs`` are loaded when read."""

    def __init__(self, jid: int, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._jid = jid
        self._service = service()  # the one that was asked, not the one in use when it is read

    def __missing__(self, name: str) -> Any:  # noqa: ANN401
        if name not in _LOADED:
            raise KeyError(name)
        if name == "func_object":
            self[name] = self._service.run(_load_function, self._jid)
        else:
            self["args"], self["kwargs"] = self._service.run(_load_arguments, self._jid)
        return self[name]


def info(jids: Any, info_requested: Any = None) -> dict[int, dict[str, Any]]:  # noqa: ANN401
    """Return ``{jid: {field: value}}``, keyed by jid even for one job.

    ``info_requested`` is a field, a list of them, or "all"; default stdout, stderr, status and
    runtime. Times are datetimes in UTC, durations seconds, sizes bytes; the groups memory, cputime and
    disk come as dotted keys. Displays of a cell are words in its stdout.

    Raises:
        TypeError: a jid or a field is of the wrong type.
        InvalidRequest: there is no such field.
        NotFound: a job is not yours.
    """
    ranges = read_jids(jids)
    fields = _read_fields(info_requested)
    asked = None if fields is None else [name for name in fields if name not in _LOADED]
    loaded = [name for name in fields or () if name in _LOADED]
    found: dict[int, dict[str, Any]] = {}
    for part in slices(ranges, _JIDS_AT_ONCE):
        answer = session().client.post(routes.INFO, {"jids": part, "fields": asked})["info"]
        for jid, values in answer.items():
            found[int(jid)] = _job_info(int(jid), values, loaded)
    return found


def _read_fields(value: object) -> list[str] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise TypeError(f"info_requested must be a string or strings, got {value!r}")
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"info_requested must be a string or strings, got {name!r} in it")
    return found


def _job_info(jid: int, values: dict[str, Any], loaded: list[str]) -> JobInfo:
    for name in _MOMENTS:
        at = values.get(name)
        if isinstance(at, int | float):
            values[name] = datetime.datetime.fromtimestamp(at, tz=datetime.UTC)
    printed = values.get("stdout")
    if isinstance(printed, str):
        is_tail = len(printed) >= _TAIL_CHARACTERS
        values["stdout"] = text_for_terminal(printed, begins_within=is_tail)
    fields = JobInfo(jid, values)
    for name in loaded:
        fields[name]  # loads it
    return fields


def _load_function(jid: int) -> Any:  # noqa: ANN401
    data = session().client.exchange("GET", routes.FUNCTION.format(jid=jid)).answer().body
    try:
        return load_function(data).call
    except Exception as exc:
        raise CloudException(f"its function cannot be loaded here: {exc}", jid) from exc


def _load_arguments(jid: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    data = session().client.exchange("GET", routes.ARGUMENTS.format(jid=jid)).answer().body
    try:
        return load_call(data)
    except Exception as exc:
        raise CloudException(f"its arguments cannot be loaded here: {exc}", jid) from exc
