"""A job's life, told from facts and lines of logs."""

from typing import Any

import pytest

from picloud_jupyter.protocol.jobs import Status
from picloud_services.jobs.live import Running
from picloud_services.jobs.story_facts import Attempt, StoryFacts
from picloud_services.jobs.story_words import concerns, tell

NOW = 1000.0


def facts(**changes):
    given: dict[str, Any] = {
        "jid": 7,
        "user_id": 1,
        "status": "queued",
        "reason": None,
        "message": "",
        "attempt": 1,
        "created_at": 100.0,
        "finished_at": None,
        "function": "f",
        "label": None,
        "batch": 7,
        "is_map": False,
        "index": 0,
        "size": 1,
        "parent_jid": None,
        "kill_wished": False,
        "retry_at": None,
    }
    return StoryFacts(**(given | changes))


def story(known, status=Status.QUEUED, *, running=None, why="", lines=(), logs_since=0.0):
    return tell(
        known,
        status=status,
        running=running,
        why=why,
        printed={"stdout": 12, "stderr": 0} if known.finished_at else {},
        lines=lines,
        logs_since=logs_since,
        now_at=NOW,
    )


def texts(found):
    return [step.text for step in found.steps]


def ended(number=1, given_at=101.0, **changes):
    given: dict[str, Any] = {
        "lease": f"{number:016x}",
        "attempt": number,
        "node": "here",
        "given_at": given_at,
        "started_at": given_at + 1,
        "ended_at": given_at + 3,
        "runtime_seconds": 2.0,
        "reason": "done",
        "container": f"c{number}",
    }
    return Attempt(**(given | changes))


def test_queued_job_when_told_then_its_wait_is_the_last_step_and_the_summary():
    found = story(facts(), why="queued because 2 of 2 cores are busy")
    assert texts(found) == ["submitted as a call", "queued because 2 of 2 cores are busy"]
    assert found.summary == "It is queued because 2 of 2 cores are busy."


def test_finished_job_when_told_then_the_steps_are_in_order_and_say_where():
    known = facts(
        status="done", finished_at=104.0, attempts=[ended(fresh=False, others=3)], is_map=True
    )
    found = story(known, Status.DONE)
    assert texts(found) == [
        "submitted as element 0 of map 7 of 1 elements",
        "given to node here after 1.000 s in the queue, with 3 others of its map (attempt 1)",
        "started in a warm runner",
        "returned after 2.000 s",
        "it had printed 12 bytes to stdout",
        "done",
    ]
    assert found.steps[2].container == "c1"
    assert found.not_known == ()
    assert found.next_step == "Fetch the result."


def test_lost_attempt_when_another_followed_then_both_are_told():
    lost = ended(reason="node_lost", started_at=0.0, detail="gone")
    known = facts(status="done", attempt=2, finished_at=204.0, attempts=[lost, ended(2, 201.0)])
    found = texts(story(known, Status.DONE))
    assert "brought nothing back: node_lost: gone; it is run again" in found
    assert found.index("returned after 2.000 s") > 3


def test_running_job_when_told_then_since_when_and_in_which_container():
    out = Attempt("0a", 1, "here", 101.0)
    running = Running("0a", "here", 0, 990.0, "c9")
    found = story(facts(out=out), Status.PROCESSING, running=running)
    assert found.summary == "It runs since 10.0 s on node here."
    assert any(step.container == "c9" and step.text == "started" for step in found.steps)
    assert "logs -f 7" in found.next_step


def test_job_with_dependencies_when_told_then_when_they_were_met():
    found = story(facts(depends_on=[(3, 5)], met_at=150.0), why="queued because ...")
    assert texts(found)[:3] == [
        "submitted as a call",
        "waits for jobs 3-5",
        "jobs 3-5 have finished",
    ]
    alone = story(facts(depends_on=[(3, 3)], met_at=150.0), why="queued because ...")
    assert texts(alone)[1:3] == ["waits for job 3", "job 3 has finished"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record_gone": True}, "older than is kept"),
        ({"attempt": 2, "attempts": [ended(2)]}, "when and where attempt 1 ran"),
    ],
)
def test_what_is_kept_no_more_is_said(changes, words):
    found = story(facts(status="done", finished_at=104.0, **changes), Status.DONE)
    assert words in found.not_known[0]
    assert f"not known: {found.not_known[0]}" in str(found)


def test_logs_when_they_begin_after_the_job_then_that_is_said():
    assert "begun new files" in story(facts(), logs_since=500.0).not_known[0]


def test_job_of_a_cache_when_told_then_it_did_not_run():
    known = facts(status="done", finished_at=100.0, cached_from=3)
    found = story(known, Status.DONE)
    assert "not run: the kept result of job 3" in texts(found)
    assert found.not_known == ()


def test_wished_end_when_not_over_then_it_is_told():
    assert "it is to end by request" in texts(story(facts(kill_wished=True)))


# -------------------------------------------------------------------------------- lines of logs
@pytest.mark.parametrize(
    ("line", "is_ours"),
    [
        ({"jid": 7}, True),
        ({"jid": 8}, False),
        ({"jids": [[3, 9]]}, True),
        ({"jids": [[8, 9]], "lease": "a"}, False),
        ({"lease": "a"}, True),
        ({"lease": "b", "container": "c"}, False),
        ({"leases": ["b", "a"]}, True),
        ({"leases": ["b"], "container": "c"}, False),
        ({"container": "c"}, True),
        ({"container": "d"}, False),
        ({"about": "service"}, True),
        ({"about": "waits", "user": 1}, True),
        ({"about": "waits", "user": 2}, False),
        ({"jids": [[7, 7]], "user": 2}, False),
        ({"message": "of nobody"}, False),
    ],
)
def test_line_when_it_names_another_job_or_user_then_it_is_not_told(line, is_ours):
    assert concerns(line, facts(), {"a"}, {"c"}) is is_ours


def test_lines_when_told_then_at_their_place_and_marked():
    lines = [
        (
            100.5,
            {"about": "waits", "message": "queued because", "component": "control", "jid": 3},
        ),
        (102.5, {"about": "waits", "message": "later, of others", "jid": 9}),
        (102.6, {"container": "c1", "message": "the runner is ready", "component": "agent"}),
        (900.0, {"container": "c1", "message": "of another job", "component": "agent"}),
    ]
    known = facts(status="done", finished_at=104.0, attempts=[ended()])
    found = story(known, Status.DONE, lines=lines)
    assert texts(found)[1] == "control: queued because (job 3, the next of its user)"
    assert "agent: the runner is ready" in texts(found)
    assert not any("of another job" in text or "later" in text for text in texts(found))
    assert "| agent: the runner is ready" in str(found)


def test_text_when_a_name_or_a_log_line_has_control_characters_then_they_forge_no_step():
    known = facts(function="f\x1b[2J", label="x\n2026-01-01 done")
    lines = [(200.0, {"jid": 7, "message": "ended\nwith a line", "component": "control"})]
    text = str(story(known, lines=lines))
    assert "\x1b" not in text
    assert len(text.splitlines()) == 5
