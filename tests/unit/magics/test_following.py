"""A cell that is interrupted or whose output is lost; without a service."""

import pickle
import threading
from types import SimpleNamespace

import pytest

from picloud_jupyter.cloud.outcomes import Outcome
from picloud_jupyter.magics.arguments import read_request
from picloud_jupyter.magics.cell import CellJobs, _Follower, follow
from picloud_jupyter.magics.commands import _jids
from picloud_jupyter.magics.feed import Ended, JobFeed
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
