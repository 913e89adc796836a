"""Running one cell as a job: what is checked, sent, shown and brought back."""

import ast
import contextlib
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError

from picloud_jupyter import cloud
from picloud_jupyter.cloud.calls import submit_call
from picloud_jupyter.cloud.outcomes import Outcome
from picloud_jupyter.cloud.session import session
from picloud_jupyter.cloud.settings import config
from picloud_jupyter.magics.arguments import Request, in_words_of_line
from picloud_jupyter.magics.capture import Names, capture
from picloud_jupyter.magics.feed import Broken, Ended, JobFeed, Submitted, Written
from picloud_jupyter.magics.names import (
    HISTORY,
    Inputs,
    Received,
    choose_inputs,
    describe_largest,
    receive,
    unsendable,
)
from picloud_jupyter.magics.outputs import CellOutput
from picloud_jupyter.magics.shown import (
    Interrupted,
    RemoteError,
    failure_of,
    refusal,
    stand_in,
)
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.cells import Cell, CellResult
from picloud_jupyter.protocol.errors import CloudException, PayloadTooLarge
from picloud_jupyter.protocol.jobs import Status
from picloud_jupyter.protocol.shell import UploadedFile

_QUIET_SECONDS = 0.02  # a job that ends sooner is read when it has ended
_PATIENT_SECONDS = 1.0  # a longer wait for the first output is explained
_CANCEL_SECONDS = 5.0
_GLANCE_SECONDS = 0.05
_FIRST_LINE = 2  # of the cell: the first is the magic's own
_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@dataclass(slots=True)
class CellJobs:
    """What this notebook has submitted, and its defaults; ``shell`` is IPython's."""

    shell: Any
    defaults: dict[str, Any] = field(default_factory=dict)
    jids: list[int] = field(default_factory=list)


def read_names(shell: Any, source: str) -> Names:  # noqa: ANN401
    """Return the names of ``source``; nothing of it is run.

    Raises:
        RemoteError: it has a syntax error; shown as IPython shows it.
    """
    # The number beside the cell: in some versions of IPython execution_count is the next one's already.
    file = f"In[{shell.displayhook.prompt_count}]"
    transformed = shell.transform_cell(source)
    try:
        compile(transformed, file, "exec", flags=_AWAIT, dont_inherit=True)
        return capture(source, shell.transform_cell)
    except SyntaxError as exc:
        for name in ("lineno", "end_lineno"):
            line = getattr(exc, name)
            if line:
                setattr(exc, name, line + _FIRST_LINE - 1)
        exc.filename = file
        lines = shell.SyntaxTB.structured_traceback(type(exc), exc, [])
        raise stand_in(type(exc).__name__, str(exc), lines) from None


def read_inputs(shell: Any, names: Names, request: Request) -> Inputs:  # noqa: ANN401
    """Return what is sent with a cell of ``names``.

    Raises:
        UsageError: `--output` names what the cell does not have.
        RemoteError: names have no value here; shown as one sentence.
    """
    known = {*names.assigned, *names.needed, *names.wanted}
    strange = [name for name in request.outputs or () if name not in known]
    if strange and not names.has_star:
        raise UsageError(f"--output: the cell neither assigns nor reads {', '.join(strange)}")
    inputs = choose_inputs(names, shell.user_ns, shell.user_ns_hidden, request.inputs)
    if inputs.undefined:
        raise refusal("NameError", _undefined_words(inputs.undefined, shell.user_ns, request))
    if history := sorted(HISTORY.intersection(inputs.values)):
        raise refusal(
            "NameError",
            f"{history[0]} is the history of this notebook, which is not sent; write _3 for the value of Out[3]",
        )
    return inputs


def _undefined_words(
    names: tuple[str, ...], namespace: dict[str, Any], request: Request
) -> str:
    left_out = [name for name in names if name in namespace]
    absent = [name for name in names if name not in namespace]
    words = []
    if absent:
        words.append(f"not defined in this notebook: {', '.join(absent)}")
    if left_out and request.inputs is not None:
        words.append(f"read by the cell and not in --input: {', '.join(left_out)}")
    return f"{'; '.join(words)}. Nothing was submitted: assign them before, or in the cell"


def read_files(request: Request) -> tuple[UploadedFile, ...]:
    """Return the files to send; one that lies beside the notebook is there anyway.

    Raises:
        UsageError: another file of that name lies beside the notebook, or one cannot be read.
    """
    found = []
    limit = config.max_transmit_data
    for path, name in request.files:
        beside = Path.cwd() / name
        if session().local and beside.exists():
            if beside.samefile(path):
                continue
            raise UsageError(
                f"--file: another {name} lies beside the notebook, where the job sees it; "
                f"give this one another name: --file {path}:NAME"
            )
        try:
            if (size := os.stat(path).st_size) > limit:  # before it fills the kernel's memory
                raise UsageError(
                    f"--file: {path} has {size:,} bytes, more than the {limit:,} of "
                    "cloud.config.max_transmit_data; raise that, or let the job read it: --vol /folder:/folder"
                )
            found.append(UploadedFile(name, Path(path).read_bytes()))
        except OSError as exc:
            raise UsageError(f"--file: {path} cannot be read: {exc.strerror}") from None
    return tuple(found)


def make_submit(
    jobs: CellJobs, source: str, names: Names, inputs: Inputs, request: Request
) -> Callable[[], int]:
    """Return a function that submits the cell and returns the job's id; it may run in any thread."""
    files = read_files(request)
    cell = Cell(
        source,
        name="" if request.options.cache else f"In[{jobs.shell.displayhook.prompt_count}]",
        first_line=_FIRST_LINE,
        outputs=request.outputs,
        max_output_bytes=config.max_transmit_data,
        files=files,
    )
    arguments = (inputs.values,)
    return lambda: submit_call(cell, arguments, {}, request.options, modules=names.modules)


def run_cell(
    jobs: CellJobs, source: str, names: Names, inputs: Inputs, request: Request
) -> int:
    """Run the cell as a job, show it here, and bring its names back; return the job's id.

    Raises:
        Interrupted: the kernel was interrupted; the job is cancelled.
        Exception: what the cell raised, shown with the frames of the job.
    """
    while True:
        submit = make_submit(jobs, source, names, inputs, request)
        feed = JobFeed(submit, may_repeat=request.options.cache)
        try:
            outcome = follow(jobs, feed, cancels=True)
        except pickle.PicklingError as exc:
            inputs = without_unsendable(inputs, exc)
            continue
        except PayloadTooLarge as exc:
            raise with_sizes(exc, inputs) from None
        except CloudException as exc:
            if feed.jid is not None:
                say(f"job {feed.jid} was submitted and goes on: %picloud attach {feed.jid}")
            raise plainly(exc) from None
        take_back(jobs.shell, outcome)
        if request.fetch is not None:
            fetch_files(outcome.jid, request.fetch)
        return outcome.jid


def plainly(error: CloudException) -> CloudException:
    """Return ``error``, shown without the frames of this side."""
    text = in_words_of_line(f"{type(error).__name__}: {error}")
    error._render_traceback_ = text.splitlines  # type: ignore[attr-defined]  # IPython looks for it
    return error


def with_sizes(error: PayloadTooLarge, inputs: Inputs) -> RemoteError:
    """Return ``error`` in words that name the largest of ``inputs``."""
    largest = describe_largest(inputs.values)
    return refusal(
        type(error).__name__, f"{error.parameter}; the largest: {largest}. {error.hint}"
    )


def without_unsendable(inputs: Inputs, error: Exception) -> Inputs:
    """Return ``inputs`` without those that the cell may do without and that cannot be sent.

    Raises:
        RemoteError: others cannot be sent: each is named, with why.
    """
    reasons = unsendable(inputs.values)
    needed = [why for name, why in reasons.items() if name not in inputs.needless]
    if needed or not reasons:
        said = "\n  ".join(needed) or str(error)
        raise refusal("PicklingError", f"nothing was submitted:\n  {said}") from None
    for name, why in reasons.items():
        say(f"{name} is not sent: {why}")
    values = {name: value for name, value in inputs.values.items() if name not in reasons}
    return replace(inputs, values=values)


def take_back(shell: Any, outcome: Outcome) -> Any:  # noqa: ANN401
    """Give the names of a finished cell to the notebook; return {name: value}, or a call's value.

    Raises:
        Exception: what the job raised, shown with its frames.
    """
    if outcome.status != Status.DONE:
        raise failure_of(outcome, shell) from None
    value = outcome.value()
    if not isinstance(value, CellResult):
        return value
    received = receive(value, shell.user_ns)
    for name in received.values:
        shell.user_ns_hidden.pop(name, None)
    _say_what_is_missing(received)
    return received.values


def fetch_files(jid: int, folder: str) -> None:
    """Copy what the job wrote below ``folder``, over what is there."""
    files = cloud.files_of(jid)
    paths = files.fetch(folder, overwrite=True)
    for path, why in files.left:
        say(f"{path} was not kept: {why}")
    if files.note:
        say(files.note)
    count = f"{len(paths)} file{'s' if len(paths) > 1 else ''}"
    say(f"fetched {count} into {folder}" if paths else "the cell wrote no files")


def _say_what_is_missing(received: Received) -> None:
    if received.plain:
        say(received.plain)
    for name, why in received.not_received.items():
        say(f"{name} was not brought back: {why}")


def say(text: str) -> None:
    """Tell the user in the cell that runs now."""
    sys.stderr.write(f"picloud: {text}\n")


def follow(jobs: CellJobs, feed: JobFeed, *, cancels: bool) -> Outcome:
    """Show what a job does until it ends; return how it ended.

    Raises:
        Interrupted: the kernel was interrupted: the job is ended too if ``cancels``.
        CloudException: the job could not be submitted, or is not known.
    """
    shown = _Follower(jobs, feed)
    try:
        return shown.follow()
    except KeyboardInterrupt:
        if cancels:
            raise Interrupted(shown.cancel()) from None
        raise Interrupted(
            f"job {feed.jid} goes on; %picloud attach {feed.jid} shows it again, %picloud cancel {feed.jid} ends it"
        ) from None
    finally:
        feed.close()  # its threads wait for nobody


class _Follower:
    """Shows the events of one feed in the cell that runs now."""

    def __init__(self, jobs: CellJobs, feed: JobFeed) -> None:
        self._jobs = jobs
        self._feed = feed
        self._output = CellOutput(jobs.shell)
        self._silent = True
        self._outcome: Outcome | None = None

    def follow(self) -> Outcome:
        """Show events until the last one."""
        seconds: float | None = _QUIET_SECONDS
        while True:
            if self._take(seconds):
                continue
            if self._outcome is not None:
                return self._outcome
            if self._feed.jid is None:
                continue
            if seconds == _PATIENT_SECONDS and self._silent:
                self._explain(self._feed.jid)
            self._feed.start_reading()
            seconds = _PATIENT_SECONDS if seconds == _QUIET_SECONDS else None

    def _take(self, seconds: float | None) -> bool:
        """Show the next event; return whether there was one and others may follow."""
        event = self._feed.next(seconds)
        if isinstance(event, Submitted):
            self._output.jid = event.written_by
            if event.jid not in self._jobs.jids:
                self._jobs.jids.append(event.jid)
        elif isinstance(event, Written):
            self._silent = False
            self._output.write(event.stream, event.data)
        elif isinstance(event, Broken):
            raise event.error
        elif isinstance(event, Ended):
            self._show_rest()
            self._outcome = event.outcome
        return event is not None and self._outcome is None

    def _show_rest(self) -> None:
        try:
            for written in self._feed.rest():
                self._output.write(written.stream, written.data, now=False)
        except CloudException as exc:  # its result is here, and is not to be lost with that
            say(f"the rest of the output of job {self._feed.jid} could not be read: {exc}")
        self._output.finish()

    def _explain(self, jid: int) -> None:
        """Say why the job has not begun, if it has not."""
        request = {"jids": [(jid, jid)], "timeout_seconds": 0, "until": "all"}
        try:
            answer = session().client.post(routes.WAIT, request)
        except CloudException:  # who waits for the result hears of it too, and says it
            return
        waits = [s for s in (Status.WAITING, Status.QUEUED) if answer["counts"].get(s)]
        if waits:
            why = answer.get("why", {}).get(str(jid), "")
            say(f"job {jid} is {waits[0]}{': ' if why else ''}{why}")

    def cancel(self) -> str:
        """End the job; return what became of it, in words."""
        self._feed.cancel()
        deadline = time.monotonic() + _CANCEL_SECONDS
        while self._feed.outcome is None and time.monotonic() < deadline:
            try:
                self._take(_GLANCE_SECONDS)
            except KeyboardInterrupt:  # asks for what is being done already
                continue
            except (
                pickle.PicklingError
            ):  # else it would be tried again without what cannot be sent
                return "nothing was submitted"
        jid, outcome = self._feed.jid, self._feed.outcome
        if outcome is None:
            name = "the job" if jid is None else f"job {jid}"
            return f"{name} is being cancelled; %picloud status tells when it has ended"
        if self._outcome is None:
            with contextlib.suppress(KeyboardInterrupt):
                self._show_rest()
        if outcome.status == Status.DONE:
            return f"job {jid} was done already; %picloud result {jid} brings its names back"
        return f"job {jid} was cancelled"


def run_here(shell: Any, source: str) -> Any:  # noqa: ANN401
    """Run the cell in this kernel and return its last expression's value; %debug works.

    Raises:
        UsageError: it awaits at top level.
        Exception: what the cell raises.
    """
    transformed = shell.transform_cell(source)
    file = shell.compile.cache(
        "\n" * (_FIRST_LINE - 1) + transformed, shell.displayhook.prompt_count
    )
    try:
        tree = ast.parse("\n" * (_FIRST_LINE - 1) + transformed, file)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        body = compile(tree, file, "exec", dont_inherit=True)
        value = None
        if isinstance(last, ast.Expr):
            value = compile(ast.Expression(last.value), file, "eval", dont_inherit=True)
    except SyntaxError:  # `read_names` found none: it awaits
        raise UsageError(
            "--local cannot await at top level; run the cell without %%picloud"
        ) from None
    exec(body, shell.user_ns)  # noqa: S102  # the user's own cell
    return None if value is None else eval(value, shell.user_ns)  # noqa: S307
