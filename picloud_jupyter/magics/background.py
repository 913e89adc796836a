"""``%%picloud --nowait``: a handle whose display in its own cell follows the job."""

import pickle
import threading
import time
from typing import Any

from IPython.core.error import UsageError
from IPython.display import DisplayHandle, display

from picloud_jupyter.cloud.handles import Jid
from picloud_jupyter.cloud.outcomes import fetch
from picloud_jupyter.cloud.progress import format_seconds, in_notebook
from picloud_jupyter.cloud.waiting import Deadline, wait_finished
from picloud_jupyter.magics.arguments import Request
from picloud_jupyter.magics.capture import Names
from picloud_jupyter.magics.cell import (
    CellJobs,
    make_submit,
    plainly,
    take_back,
    with_sizes,
    without_unsendable,
)
from picloud_jupyter.magics.feed import Broken, Ended, JobFeed, Written
from picloud_jupyter.magics.names import Inputs
from picloud_jupyter.magics.transcript import Transcript
from picloud_jupyter.protocol.errors import CloudException, PayloadTooLarge
from picloud_jupyter.protocol.jobs import Status

_REDRAW_SECONDS = 0.5


class CellJob(Jid):
    """The handle of a cell that runs on: a job id with all that a `Jid` can do.

    Shown in a notebook it follows the job, in the cell where it was shown first.
    """

    _shell: Any = None
    _view: "LiveView | None" = None

    def of(self, shell: Any) -> "CellJob":  # noqa: ANN401  # IPython's
        """Return this handle, which gives its names to ``shell`` from now on."""
        self._shell = shell
        return self

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Return {name: value} of what the cell assigned, once it has ended; the notebook has them then.

        Raises:
            CloudTimeoutError: ``timeout`` seconds passed.
            Exception: what the cell raised, shown with the frames of the job.
        """
        jid = int(self)
        wait_finished([(jid, jid)], Deadline(timeout), ignore_errors=True)
        (outcome,), _ = fetch([(jid, jid)])
        return take_back(self._shell, outcome)

    def _ipython_display_(self) -> None:
        if not in_notebook() or self._view is not None:
            print(f"job {int(self)}: {self.status()}")  # noqa: T201  # a terminal cannot redraw
            return
        self._view = LiveView(int(self))


class LiveView:
    """A display of the cell that runs now, redrawn from a thread until the job has ended."""

    def __init__(self, jid: int) -> None:
        self._jid = jid
        self._transcript = Transcript()
        self._begun_at = time.monotonic()
        self._handle: DisplayHandle = display(  # type: ignore[no-untyped-call]
            self._transcript.bundle(f"job {jid} was submitted", jid), raw=True, display_id=True
        )
        threading.Thread(target=self._run, name=f"picloud-view-{jid}", daemon=True).start()

    def _run(self) -> None:
        feed = JobFeed(lambda: self._jid, may_repeat=True)
        feed_seconds: float = _REDRAW_SECONDS
        drawn_at = 0.0
        fresh = False  # it is not said to run before it has written something
        while True:
            feed.start_reading()
            event = feed.next(feed_seconds)
            if isinstance(event, Broken):
                feed.close()
                self._draw(f"job {self._jid} cannot be followed any more: {event.error}")
                return
            if isinstance(event, Ended):
                self._draw(self._end_words(event) + self._add_rest(feed))
                return
            if isinstance(event, Written):
                self._transcript.add(event.stream, event.data)
                fresh = True
            now = time.monotonic()
            if fresh and now - drawn_at >= _REDRAW_SECONDS:
                self._draw(f"job {self._jid} runs")
                drawn_at, fresh = now, False

    def _add_rest(self, feed: JobFeed) -> str:
        """Take what is still unread; return what is to be said of it."""
        try:
            for written in feed.rest():
                self._transcript.add(written.stream, written.data)
        except CloudException as exc:
            return f"; the rest of its output could not be read: {exc}"
        return ""

    def _end_words(self, event: Ended) -> str:
        outcome = event.outcome
        seconds = format_seconds(time.monotonic() - self._begun_at)
        if outcome.status == Status.DONE:
            return (
                f"job {self._jid} is done after {seconds}; "
                f"%picloud result {self._jid} brings its names back"
            )
        reason = f" ({outcome.reason})" if outcome.reason else ""
        return (
            f"job {self._jid} ended as {outcome.status}{reason} after {seconds}; "
            f"%picloud result {self._jid} shows why"
        )

    def _draw(self, title: str) -> None:
        # by its id: it stays in the cell where it was made, whichever runs now
        self._handle.update(  # type: ignore[no-untyped-call]
            self._transcript.bundle(title, self._jid), raw=True
        )


def submit_in_background(
    jobs: CellJobs, source: str, names: Names, inputs: Inputs, request: Request
) -> CellJob:
    """Return the handle of a new job that runs the cell.

    Raises:
        RemoteError: something that the cell needs cannot be sent.
        CloudException: the control plane refused it.
    """
    if request.fetch:
        raise UsageError("--fetch waits for the files; with --nowait use cloud.files_of later")
    while True:
        try:
            jid = make_submit(jobs, source, names, inputs, request)()
        except pickle.PicklingError as exc:
            inputs = without_unsendable(inputs, exc)
        except PayloadTooLarge as exc:
            raise with_sizes(exc, inputs) from None
        except CloudException as exc:
            raise plainly(exc) from None
        else:
            jobs.jids.append(jid)
            return CellJob(jid).of(jobs.shell)
