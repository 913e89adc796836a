"""What the log says of leases, and what it does not."""

import logging

import pytest

from picloud_jupyter.protocol.jobs import Status
from picloud_services.dispatch.engine import EngineEvent
from picloud_services.dispatch.telling import Telling
from picloud_services.jobs.live import Change, Ready
from picloud_services.jobs.outcomes import Outcome

LEASE_AT = 1_700_000_000.0
LEASE = f"{int(LEASE_AT * 1e9):016x}"


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def lines():
    log, handler = logging.getLogger("picloud_services.dispatch.telling"), Lines()
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield handler.records
    log.removeHandler(handler)
    log.setLevel(before)


def event(name="batch", **fields):
    return EngineEvent("here", name, 1, LEASE, fields)


def ended(status, **more):
    change = Change(5, 7, 8, Status.QUEUED, status)
    return Outcome(LEASE, 5, 1000, changes=[change], lease_over=True, **more)


def test_lease_when_all_returned_within_a_second_then_nothing_is_written(lines):
    telling = Telling()
    telling.tell(event(), ended(Status.DONE), None, LEASE_AT + 0.5)
    assert lines == []
    assert telling.ended["batch"] == 1


def test_lease_when_it_took_long_then_one_line_with_its_ids(lines):
    usage = {"container": "ab12"}
    Telling().tell(event(usage=usage), ended(Status.DONE), None, LEASE_AT + 2)
    (line,) = lines
    assert line.getMessage() == "the lease is over after 2.000 s, ended: 2 done"
    assert (line.lease, line.jids, line.container, line.user) == (LEASE, [[7, 8]], "ab12", 1000)


def test_lease_when_a_job_failed_then_told_however_short_it_was(lines):
    Telling().tell(event(), ended(Status.ERROR), None, LEASE_AT + 0.001)
    assert "ended: 2 error" in lines[0].getMessage()


def test_lease_when_its_container_was_killed_then_cause_and_next_attempt_are_told(lines):
    outcome = Outcome(LEASE, 5, 1000, ready=[Ready(5, 7, 1, attempt=2)], lease_over=True)
    gone = event("exited", position=0, wait_status=9, oom_count=0, asked=None, message="")
    Telling().tell(gone, outcome, None, LEASE_AT + 0.1)
    first, second = (line.getMessage() for line in lines)
    assert "its container ended with signal 9 (SIGKILL)" in first
    assert second.startswith("queued again, attempt 2: its container ended with signal 9")
    assert lines[1].jids == [[7, 7]]


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("returned", {}, "given back before it was started"),
        ("lease_lost", {}, "its node holds it no more"),
        ("start_failed", {"reason": "oom", "message": "no room"}, "(oom): no room"),
        ("exited", {"lost": True, "message": "its supervisor"}, "its supervisor"),
    ],
)
def test_again_when_the_lease_brought_no_result_then_its_cause_is_told(
    lines, name, fields, words
):
    outcome = Outcome(LEASE, 5, 1000, ready=[Ready(5, 7, 1)], lease_over=True)
    Telling().tell(event(name, **fields), outcome, None, LEASE_AT)
    assert words in lines[-1].getMessage()


def test_report_when_its_lease_was_over_then_counted(lines):
    telling = Telling()
    telling.tell(event(), Outcome(LEASE, late=True), None, LEASE_AT)
    assert telling.late == 1
    assert "dropped" in lines[0].getMessage()
