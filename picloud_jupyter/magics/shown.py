"""Errors as a notebook shows them: the job's own frames, none of ours; name and text kept."""

import linecache
import re
from collections.abc import Sequence
from typing import Any

from picloud_jupyter.cloud.outcomes import Outcome
from picloud_jupyter.magics.arguments import in_words_of_line
from picloud_jupyter.protocol.errors import JobError
from picloud_jupyter.serialize.failure import read_failure

_FRAME = re.compile(r'^(\s*)File "(?P<file>[^"]+)", line (?P<line>\d+)')
_RULE = "-" * 75
# IPython shows these by ways of its own, which know nothing of a job
_SHOWN_OTHERWISE = (SyntaxError, BaseExceptionGroup)


class RemoteError(Exception):
    """Stands for an error that cannot be raised here as it was raised there; shown as ``lines``."""

    def __init__(self, message: str, lines: Sequence[str], jid: int | None = None) -> None:
        super().__init__(message)
        self.jid = jid
        self._lines = list(lines)

    def _render_traceback_(self) -> list[str]:
        return self._lines


class Interrupted(KeyboardInterrupt):
    """Raised in place of the KeyboardInterrupt that ended a wait; says what became of the job."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


Interrupted.__name__ = "KeyboardInterrupt"  # what clients read as the error's name


def stand_in(
    type_name: str, message: str, lines: Sequence[str], jid: int | None = None
) -> RemoteError:
    """Return an exception whose class is called ``type_name``, shown as ``lines``."""
    cls: type[RemoteError] = type(
        type_name.rpartition(".")[2] or "Exception", (RemoteError,), {}
    )
    return cls(message, lines, jid)


def refusal(type_name: str, message: str) -> RemoteError:
    """Return an error that is shown as one sentence: what is wrong on this side."""
    return stand_in(type_name, message, [f"{type_name}: {message}"])


def failure_of(outcome: Outcome, shell: Any) -> BaseException:  # noqa: ANN401  # IPython's
    """Return the exception to raise for a job that did not end as done.

    It is the original where that can be loaded, and shows the remote frames.
    """
    error = outcome.error()
    body = outcome.body
    if outcome.status != "error" or not body:
        return _job_error(error, outcome)
    failure = read_failure(body)
    lines = [
        _RULE,
        f"Job {outcome.jid} raised {failure.type_name} in its container, where %debug cannot go; "
        "%%picloud --local runs the cell here",
        "",
        *with_sources(error.parameter, shell).splitlines(),
    ]
    cause = error.__cause__
    if cause is None or isinstance(cause, _SHOWN_OTHERWISE):
        return stand_in(failure.type_name, failure.message, lines, outcome.jid)
    try:
        cause._render_traceback_ = lambda: lines  # type: ignore[attr-defined]  # IPython looks for it
    except AttributeError:  # a class with __slots__
        return stand_in(failure.type_name, failure.message, lines, outcome.jid)
    return cause


def _job_error(error: JobError, outcome: Outcome) -> JobError:
    text = in_words_of_line(f"{type(error).__name__}: {error}")
    reason = f" ({outcome.reason})" if outcome.reason else ""
    lines = [
        _RULE,
        f"Job {outcome.jid} ended as {outcome.status}{reason}",
        "",
        *text.splitlines(),
    ]
    error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]  # IPython looks for it
    return error


def with_sources(traceback_text: str, shell: Any) -> str:  # noqa: ANN401  # IPython's
    """Return the text of a remote traceback with lines of this notebook's cells filled in.

    Functions defined in the notebook travel by value; their lines are known here.
    """
    lines = traceback_text.splitlines()
    shown: list[str] = []
    for index, line in enumerate(lines):
        found = _FRAME.match(line)
        if not found:
            shown.append(line)
            continue
        indent, file = found[1], found["file"]
        known = shell.compile.format_code_name(file)
        shown.append(line.replace(f'File "{file}"', " ".join(known)) if known else line)
        following = lines[index + 1] if index + 1 < len(lines) else ""
        source = linecache.getline(file, int(found["line"])).strip() if known else ""
        if source and not following.startswith(f"{indent}  "):
            shown.append(f"{indent}  {source}")
    return "\n".join(shown)
