"""``%picloud status | result | attach | cancel | config``: what can be asked about cells that run."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from IPython.core.error import UsageError

from picloud_jupyter import cloud
from picloud_jupyter.cloud.jid_ranges import JidRanges
from picloud_jupyter.cloud.outcomes import fetch
from picloud_jupyter.cloud.waiting import Deadline, wait_finished
from picloud_jupyter.magics.arguments import describe, make_parser, parse_line, read_options
from picloud_jupyter.magics.cell import CellJobs, follow, plainly, take_back
from picloud_jupyter.magics.feed import JobFeed
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.ids import parse_jids

HELP = """\
%picloud status [JIDS]          where jobs are; without JIDS those of this notebook
%picloud result [JID]           wait for a cell, bring its names back; also their values as a dict
%picloud attach [JID]           show a job's output from its beginning, then as result
%picloud cancel [JIDS]          end jobs
%picloud config [OPTIONS]       show or set the defaults of %%picloud in this notebook; --reset
JIDS is 5, 1,4,9 or 1-4; a missing JID is the notebook's last job.
"""
_NOT_DEFAULTS = ("input", "output", "file", "fetch", "local", "dry_run")
_PARSER = make_parser("%picloud config")


def run(jobs: CellJobs, line: str) -> Any:  # noqa: ANN401  # shown by IPython
    """Run the command in ``line``.

    Raises:
        UsageError: there is no such command, or its words are wrong.
    """
    name, _, rest = line.strip().partition(" ")
    if not name:
        print(HELP)  # noqa: T201
        return None
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        tip = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        raise UsageError(
            f"%picloud: {name!r} is no command; {tip} To run a cell write %%picloud"
        )
    try:
        return command(jobs, rest.strip())
    except CloudException as exc:
        raise plainly(exc) from None


def _jids(jobs: CellJobs, text: str) -> Sequence[int]:
    if not text:
        if not jobs.jids:
            raise UsageError(
                "%picloud: no cell was submitted from this notebook; name a job id"
            )
        return jobs.jids[-1:]
    try:
        return JidRanges.of_pairs(parse_jids(text))
    except ValueError as exc:
        raise UsageError(f"%picloud: {exc}") from None


def _jid(jobs: CellJobs, text: str) -> int:
    found = _jids(jobs, text)
    if len(found) != 1:
        raise UsageError(f"%picloud: one job id, please; got {text}")
    return found[0]


def _status(jobs: CellJobs, text: str) -> None:
    jids = _jids(jobs, text) if text else jobs.jids
    if not jids:
        print("no cell was submitted from this notebook")  # noqa: T201
        return
    _show_status(jids)


def _show_status(jids: Sequence[int]) -> None:
    fields = ["status", "reason", "label", "runtime"]
    for jid, found in cloud.info(jids, fields).items():
        reason = found.get("reason")
        runtime = found.get("runtime")
        words = [
            f"job {jid}: {found['status']}",
            f"({reason})" if reason and reason != found["status"] else "",
            f"{runtime:.1f} s" if runtime else "",
            found.get("label") or "",
        ]
        print(" ".join(word for word in words if word))  # noqa: T201


def _result(jobs: CellJobs, text: str) -> Any:  # noqa: ANN401
    jid = _jid(jobs, text)
    wait_finished([(jid, jid)], Deadline(None), ignore_errors=True)
    (outcome,), _ = fetch([(jid, jid)])
    return take_back(jobs.shell, outcome)


def _attach(jobs: CellJobs, text: str) -> None:
    jid = _jid(jobs, text)
    cloud.status(jid)  # refuses one that is not yours before anything is shown
    take_back(jobs.shell, follow(jobs, JobFeed(lambda: jid, may_repeat=True), cancels=False))


def _cancel(jobs: CellJobs, text: str) -> None:
    jids = _jids(jobs, text)
    cloud.kill(jids)
    _show_status(jids)


def _config(jobs: CellJobs, text: str) -> None:
    if text == "--reset":
        jobs.defaults = {}
    elif text:
        given = parse_line(text, _PARSER)
        for word in _NOT_DEFAULTS:
            if word in given:
                raise UsageError(
                    f"%picloud config: --{word.replace('_', '-')} belongs to one cell, not to all"
                )
        defaults = {**jobs.defaults, **given}
        read_options(defaults)  # refused now rather than by each cell
        jobs.defaults = defaults
    print(f"%%picloud {describe(jobs.defaults)}".rstrip())  # noqa: T201


COMMANDS: dict[str, Callable[[CellJobs, str], Any]] = {
    "status": _status,
    "result": _result,
    "attach": _attach,
    "cancel": _cancel,
    "config": _config,
}
