"""A cell that is interrupted or whose output is lost; without a service."""

import pickle
import threading
from types import SimpleNamespace

import pytest

from picloud_jupyter.cli import follow as follow_module
from picloud_jupyter.cli import logs
from picloud_jupyter.cloud.outcomes import Outcome
from picloud_jupyter.magics import background
from picloud_jupyter.magics import feed as feed_module
from picloud_jupyter.magics.arguments import read_request
from picloud_jupyter.magics.cell import CellJobs, _Follower, follow
from picloud_jupyter.magics.commands import _jids
from picloud_jupyter.magics.feed import Ended, JobFeed, Written
from picloud_jupyter.magics.magic import _plan
from picloud_jupyter.magics.names import Inputs
from picloud_jupyter.protocol.errors import Unreachable


@pytest.fixture
def jobs():
    return CellJobs(SimpleNamespace())


def test_an_interrupt_is_not_answered_by_another_submit(jobs):
    may_fail = threading.Event()

    def submit():
        assert may_fail.wait(10)
        raise pickle.PicklingError("a socket")

    follower = _Follower(jobs, JobFeed(submit))
    may_fail.set()
    # a PicklingError here would make `run_cell` submit the cell without what cannot be sent
    assert follower.cancel() == "nothing was submitted"


def test_threads_of_a_feed_end_with_who_follows_it(jobs):
    def submit():
        raise pickle.PicklingError("a socket")

    feed = JobFeed(submit)
    with pytest.raises(pickle.PicklingError):
        follow(jobs, feed, cancels=True)
    assert feed._closed


def test_output_that_cannot_be_read_costs_the_output_alone(jobs, capsys):
    class LostOutput(JobFeed):
        def rest(self):
            raise Unreachable("gone")

    outcome = Outcome(5, "done", None, "", b"")
    feed = LostOutput(lambda: threading.Event().wait() or 5)
    feed._put(Ended(outcome))
    assert follow(jobs, feed, cancels=True) is outcome
    assert "could not be read: gone" in capsys.readouterr().err


def test_many_jids_need_no_room(jobs):
    assert len(_jids(jobs, "1-99999999999")) == 99_999_999_999


def test_a_dry_run_tells_what_cannot_be_sent():
    inputs = Inputs({"lock": threading.Lock(), "n": 1})
    lines = _plan({}, read_request({}), inputs, ()).splitlines()
    assert lines[2].startswith("sends: n (")
    assert "lock" not in lines[2]
    assert lines[3].startswith("not sent: cannot pickle lock")


class LogOfTwoAttempts:
    """Answers as GET /v1/jobs/J/logs/STREAM does for a job that was started again."""

    def __init__(self, *outputs):
        self.first, self.second = outputs[0], outputs[-1]
        self._outputs = outputs
        self._asked = 0

    def exchange(self, _method, _path, *, query, **_rest):
        now = min(self._asked, len(self._outputs) - 1)
        self._asked += 1
        data = self._outputs[now]
        body = data[query["offset"] :]
        headers = {
            "x-picloud-next": str(query["offset"] + len(body)),
            "x-picloud-total": str(len(data)),
            "x-picloud-finished": str(int(now == len(self._outputs) - 1)),
            "x-picloud-attempt": str(now + 1 if data else 0),
        }
        return SimpleNamespace(answer=lambda: SimpleNamespace(body=body, headers=headers))


@pytest.fixture(
    params=[
        (b"first attempt, which died", b"", b"second"),
        (b"first", b"second, which has written more"),
    ]
)
def restarted(monkeypatch, request):
    log = LogOfTwoAttempts(*request.param)
    used = SimpleNamespace(client=log)
    for module in (feed_module, logs, follow_module):
        monkeypatch.setattr(module, "session", lambda: used)
    return log


def test_a_job_that_is_started_again_shows_its_new_output(restarted):
    reader, shown, complete = feed_module._Reader(5, "stdout"), [], False
    while not complete:
        data, complete = reader.take(reader.ask())
        shown.append(bytes(data))
    assert shown[0] == restarted.first
    assert b"started again" in shown[1]
    assert shown[-1] == restarted.second


def test_logs_of_a_job_that_is_started_again_have_its_new_output(restarted):
    assert list(logs.read_log(5, "stdout", follow=True))[-1] == restarted.second


def test_logs_of_many_jobs_have_the_new_output_too(restarted):
    places: dict[int, tuple[int, str]] = {}
    shown = b"".join(follow_module._new_output(5, "stdout", places))
    assert shown.endswith(restarted.first + restarted.second)


def test_a_job_that_waits_is_not_said_to_run(monkeypatch):
    titles, ended = [], threading.Event()

    class Handle:
        def update(self, bundle, **_options):
            titles.append(bundle["text/plain"].splitlines()[0])
            if "is done" in titles[-1]:
                ended.set()

    class Feed:
        def __init__(self, _submit, **_options):
            outcome = Outcome(5, "done", None, "", b"")
            self._events = iter((None, Written("stdout", b"x"), None, Ended(outcome)))

        def next(self, _seconds):
            return next(self._events)

        def start_reading(self): ...

        def rest(self):
            return ()

    monkeypatch.setattr(background, "JobFeed", Feed)
    monkeypatch.setattr(background, "_REDRAW_SECONDS", 0.0)
    monkeypatch.setattr(background, "display", lambda *_a, **_k: Handle())
    background.LiveView(5)
    assert ended.wait(10)
    assert [title.partition(" after")[0] for title in titles] == ["job 5 runs", "job 5 is done"]
