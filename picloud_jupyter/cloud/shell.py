"""`cloud.shell`: commands of /bin/bash as jobs."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from picloud_jupyter.cloud.calls import submit_call
from picloud_jupyter.cloud.handles import Jid, Jids
from picloud_jupyter.cloud.keywords import Options, take_options
from picloud_jupyter.cloud.maps import submit_map
from picloud_jupyter.cloud.shell_templates import (
    check_bound,
    check_mapping,
    check_values,
    equal_length,
    parse_template,
)
from picloud_jupyter.cloud.shell_values import Bound, bind, bind_value, check_filled, load
from picloud_jupyter.protocol.jobs import MAX_MAP_COUNT, Kind
from picloud_jupyter.protocol.shell import ShellCommand

__all__ = ["execute", "execute_map"]

_LATER = ("rest_publish", "cron_register")


def execute(
    command: str,
    argdict: Mapping[str, str] | None = None,
    return_file: str | None = None,
    ignore_exit_status: bool = False,  # noqa: FBT001, FBT002  # PiCloud's signature
    cwd: str | None = None,
    **reserved: Any,  # noqa: ANN401  # keywords of `call`
) -> Jid:
    """Return the id of a new job that runs ``command`` by /bin/bash.

    ``{name}`` in it becomes ``argdict["name"]``; a value ``@path`` sends that local file along and
    becomes its name there. The result is what the command wrote to stdout, or the contents
    of ``return_file``, as bytes. An exit code other than 0 is an error of the job, unless
    ``ignore_exit_status``. Paths are relative to ``cwd``, that to the job's working directory.

    Raises:
        ValueError: a parameter without a value, a value without a parameter, a keyword that is not
            reserved, or a value of one that is not allowed.
        TypeError: a value is not a string, or an underscore keyword is unknown.
        OSError: a file to send cannot be read.
        PayloadTooLarge, CloudException: as for `call`.
    """
    made = _command(
        command, return_file=return_file, ignore_exit_status=ignore_exit_status, cwd=cwd
    )
    options = _options(reserved, callbacks=True)
    values = bind(check_values({} if argdict is None else argdict))
    check_bound(made.pieces, values)
    check_filled(made.pieces, values)
    return submit_call(made, (load(values),), {}, options)


def execute_map(
    command: str,
    common_argdict: Mapping[str, str] | None,
    map_argdict: Mapping[str, Sequence[str]],
    return_file: str | None = None,
    ignore_exit_status: bool = False,  # noqa: FBT001, FBT002  # PiCloud's signature
    cwd: str | None = None,
    **reserved: Any,  # noqa: ANN401  # keywords of `map`
) -> Jids:
    """Return the ids of new jobs that run ``command``, one for each value of ``map_argdict``'s lists.

    ``common_argdict`` has the values that are the same for all; the lists have one length.
    The rest is as for `execute`.

    Raises:
        ValueError: lists of different lengths or empty ones; a name in both; else as for `execute`.
        TypeError, OSError, PayloadTooLarge, CloudException: as for `execute`.
    """
    check_mapping("map_argdict", map_argdict)
    columns = {name: _column(name, values) for name, values in map_argdict.items()}
    count = equal_length(columns)
    return execute_many(
        command,
        {} if common_argdict is None else common_argdict,
        columns,
        count,
        return_file=return_file,
        ignore_exit_status=ignore_exit_status,
        cwd=cwd,
        **reserved,
    )


def execute_many(
    command: str,
    common: Mapping[str, str],
    columns: Mapping[str, Sequence[str]],
    count: int,
    *,
    return_file: str | None = None,
    ignore_exit_status: bool = False,
    cwd: str | None = None,
    **reserved: Any,  # noqa: ANN401
) -> Jids:
    """Return the ids of ``count`` jobs; each of ``columns`` has so many values, or there are none.

    Raises:
        Exception: as for `execute_map`.
    """
    made = _command(
        command, return_file=return_file, ignore_exit_status=ignore_exit_status, cwd=cwd
    )
    options = _options(reserved, callbacks=False)
    both = [name for name in columns if name in common]
    if both:
        raise ValueError(
            f"{', '.join(map(repr, both))} has a common value and a list of values"
        )
    if not 1 <= count <= MAX_MAP_COUNT:
        raise ValueError(f"a map has 1 to {MAX_MAP_COUNT:,} jobs, got {count:,}")
    shared = bind(check_values(common))
    check_bound(made.pieces, [*shared, *columns])
    rows = _rows(columns, count)
    for values in rows:  # all of them, before the first job is made
        check_filled(made.pieces, shared | values)
    made = replace(made, common=tuple(load(shared).items()))
    elements = ((load(values),) for values in rows)
    return submit_map(made, elements, count, options)


def _rows(columns: Mapping[str, Sequence[str]], count: int) -> list[Bound]:
    find = functools.cache(bind_value)  # a file that many jobs need is looked for once
    texts = ({name: values[i] for name, values in columns.items()} for i in range(count))
    return [{name: find(text) for name, text in check_values(row).items()} for row in texts]


def _command(
    text: str,
    *,
    return_file: str | None,
    ignore_exit_status: bool,
    cwd: str | None,
) -> ShellCommand:
    for name, value in (("command", text), ("return_file", return_file), ("cwd", cwd)):
        if value is None and name != "command":
            continue
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {value!r}")
        if "\0" in value:
            raise ValueError(f"{name} holds a NUL, which a command or path cannot")
        if not value:
            raise ValueError(f"{name} is empty")
    return ShellCommand(
        text,
        parse_template(text),
        return_file=return_file,
        ignore_exit_status=bool(ignore_exit_status),
        cwd=cwd,
    )


def _options(reserved: dict[str, Any], *, callbacks: bool) -> Options:
    options = take_options(reserved, func=_nothing, environ=os.environ, callbacks=callbacks)
    if reserved:
        raise ValueError(
            f"cloud.shell takes reserved keywords only, not {', '.join(reserved)}; "
            "values of parameters go into argdict"
        )
    if options.profile:
        raise ValueError("_profile looks into Python functions, and cannot into a command")
    return replace(options, kind=Kind.SHELL, fast_serialization=2)


def _nothing() -> None:
    """What unknown keywords are checked against: it takes none."""


def _column(name: str, values: object) -> Sequence[str]:
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise TypeError(f"map_argdict needs a list of values for {name!r}, got {values!r}")
    return list(values)


def __getattr__(name: str) -> Any:  # noqa: ANN401  # there is none
    if name in _LATER:
        raise AttributeError(f"cloud.shell.{name} of PiCloud does not exist in this version")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
