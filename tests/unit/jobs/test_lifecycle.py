"""The table that decides a job's life."""

import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, GIB, EndReason, RetryPolicy, Status
from picloud_services.jobs.lifecycle import (
    MAX_LOSSES,
    MAX_LOST_STARTS,
    Past,
    Terms,
    after_dependencies,
    classify_exit,
    decide,
    end,
    exit_text,
    longest_delay_seconds,
    may_become,
)
from picloud_services.jobs.reasons import REASONS, Facts, end_reasons_markdown, message

ONCE = Terms(restartable=False)


@pytest.mark.parametrize(
    ("wait_status", "oom_count", "asked", "reason"),
    [
        (signal.SIGKILL, 0, None, EndReason.LOST_WORKER),
        (signal.SIGKILL, 1, None, EndReason.OOM),
        (signal.SIGSEGV, 0, None, EndReason.CRASHED),
        (signal.SIGTERM, 0, None, EndReason.CRASHED),
        (3 << 8, 0, None, EndReason.CRASHED),
        (0, 0, None, EndReason.CRASHED),
        (signal.SIGKILL, 1, "killed", EndReason.KILLED),
        (signal.SIGKILL, 0, "timeout", EndReason.TIMEOUT),
        (signal.SIGKILL, 0, "oom", EndReason.OOM),
        (signal.SIGKILL, 0, "disk_full", EndReason.DISK_FULL),
        (signal.SIGKILL, 0, "shutdown", EndReason.NODE_LOST),
    ],
)
def test_exit_is_classified_by_status_oom_and_who_asked(wait_status, oom_count, asked, reason):
    assert classify_exit(int(wait_status), oom_count, asked) is reason


def test_exit_text_names_signal_or_code():
    assert exit_text(11) == "signal 11 (SIGSEGV)"
    assert exit_text(3 << 8) == "exit code 3"


def test_user_error_without_retries_ends_at_once():
    decision = decide(EndReason.ERROR, Terms(), Past())
    assert (decision.status, decision.again) == (Status.ERROR, False)
    assert decision.text == ""  # the failure frame has the words


def test_user_retries_count_down_and_only_for_the_reasons_named():
    terms = Terms(retries=RetryPolicy(count=1, delay_seconds=3.0))
    first = decide(EndReason.ERROR, terms, Past())
    assert first.again
    assert first.past == Past(attempt=2, retries=1)
    assert first.delay_seconds == 3.0
    assert not decide(EndReason.ERROR, terms, first.past).again
    only_oom = Terms(retries=RetryPolicy(count=5, reasons=(EndReason.OOM,)))
    assert not decide(EndReason.ERROR, only_oom, Past()).again
    assert decide(EndReason.OOM, only_oom, Past()).again


@pytest.mark.parametrize("reason", [EndReason.OOM, EndReason.CRASHED])
def test_crash_in_a_used_runner_is_run_again_once_in_a_fresh_one(reason):
    first = decide(reason, Terms(), Past(), reused=True)
    assert first.again
    assert first.past.fresh
    assert first.past.retries == 0
    assert not decide(reason, Terms(), first.past, reused=True).again
    assert not decide(reason, Terms(), Past(), reused=False).again
    assert decide(reason, ONCE, Past(), reused=True).reason is reason


def test_lost_container_is_run_again_free_until_it_is_poison():
    past = Past()
    for _ in range(MAX_LOSSES - 1):
        decision = decide(EndReason.LOST_WORKER, Terms(), past)
        assert decision.again
        past = decision.past
    last = decide(EndReason.LOST_WORKER, Terms(), past)
    assert (last.status, last.reason, last.again) == (Status.ERROR, EndReason.POISON, False)
    assert "3 times" in last.text


@pytest.mark.parametrize("reason", [EndReason.LOST_WORKER, EndReason.NODE_LOST])
def test_job_that_may_not_restart_stalls_when_its_machine_dies(reason):
    decision = decide(reason, ONCE, Past())
    assert (decision.status, decision.reason) == (Status.STALLED, reason)


def test_failed_start_is_tried_again_as_the_same_attempt_even_if_not_restartable():
    past = Past()
    delays = []
    while (decision := decide(EndReason.START_FAILED, ONCE, past)).again:
        delays.append(decision.delay_seconds)
        past = decision.past
    assert delays == sorted(delays)
    assert len(delays) == 2
    assert past.attempt == 1
    assert decision.status is Status.STALLED


def test_lost_start_costs_nothing_of_what_a_job_may_lose():
    past = Past(attempt=3, losses=MAX_LOSSES - 1, retries=1)
    lost = decide(EndReason.LOST_WORKER, ONCE, past, began=False)
    assert (lost.again, lost.status) == (True, Status.QUEUED)
    assert lost.past == replace(past, lost_starts=1)
    failed = decide(EndReason.START_FAILED, ONCE, replace(lost.past, losses=0))
    assert failed.again
    assert failed.past.lost_starts == 1
    assert decide(EndReason.NODE_LOST, Terms(), lost.past).past.lost_starts == 0  # it had begun


def test_starts_that_are_always_lost_end_in_words_after_minutes():
    facts, past, delays = Facts(detail="the launcher ended"), Past(), []
    while (
        decision := decide(EndReason.LOST_WORKER, ONCE, past, began=False, facts=facts)
    ).again:
        delays.append(decision.delay_seconds)
        past = decision.past
    assert delays == sorted(delays)
    assert delays[0] < 1
    assert max(delays) <= longest_delay_seconds(RetryPolicy())
    assert 180 < sum(delays) < 360
    assert (past.attempt, past.losses) == (1, 0)
    assert (decision.status, decision.reason) == (Status.STALLED, EndReason.START_FAILED)
    assert f"{MAX_LOST_STARTS} starts in a row were lost" in decision.text
    assert "because the launcher ended" in decision.text


def test_messages_have_figures_and_a_next_step():
    text = message(EndReason.OOM, Facts(memory_limit_bytes=2 * GIB, memory_peak_bytes=2 * GIB))
    assert "2.0 of 2.0 GiB" in text
    assert "_cores" in text
    assert "30 minutes" in message(EndReason.TIMEOUT, Facts(max_runtime_seconds=1800))
    assert "SIGSEGV" in message(EndReason.CRASHED, Facts(exit_text=exit_text(11)))


def test_every_reason_has_words_and_is_documented():
    assert set(REASONS) == set(EndReason)
    page = end_reasons_markdown()
    for reason in EndReason:
        assert f"`{reason}`" in page
        assert message(reason, Facts())


def test_dependencies_decide_the_first_status():
    assert after_dependencies(1, unfinished=3, ignore_errors=False) is Status.STALLED
    assert after_dependencies(1, unfinished=3, ignore_errors=True) is Status.WAITING
    assert after_dependencies(1, unfinished=0, ignore_errors=True) is Status.QUEUED


terms = st.builds(
    Terms,
    restartable=st.booleans(),
    retries=st.builds(
        RetryPolicy,
        count=st.integers(0, 3),
        reasons=st.lists(st.sampled_from(list(EndReason)), max_size=3).map(tuple),
    ),
)


LOST_STARTS = st.tuples(st.just(EndReason.LOST_WORKER), st.just("lost start"))
EVENTS = st.tuples(st.sampled_from(list(EndReason)), st.sampled_from(["", "reused"]))


@given(terms, st.lists(EVENTS | LOST_STARTS, max_size=40))
def test_random_lives_end_once_and_never_forbidden(terms, events):
    """Whatever happens in whatever order: allowed transitions, bounded runs, one end."""
    past, status, runs, free = Past(), Status.QUEUED, 1, 0
    for reason, how in events:
        is_start = how == "lost start"
        decision = decide(reason, terms, past, reused=how == "reused", began=not is_start)
        assert may_become(status, decision.status)
        if not decision.again:
            assert decision.status in FINISHED_STATUSES
            assert decision.status is REASONS[decision.reason].status
            assert not any(may_become(decision.status, s) for s in Status)
            break
        assert decision.status is Status.QUEUED
        if is_start:
            assert decision.past.attempt == past.attempt
            assert decision.past.lost_starts < MAX_LOST_STARTS
        elif reason is not EndReason.START_FAILED:
            assert decision.past.attempt == past.attempt + 1
            runs += 1
            free += reason in (EndReason.NODE_LOST, EndReason.SPOT_RECLAIMED)
        past = decision.past
    assert past.retries <= terms.retries.count
    assert past.losses <= MAX_LOSSES + 2
    # everything but lost machines is bounded: retries, two losses, one free run in a fresh runner
    assert runs - free <= 1 + terms.retries.count + (MAX_LOSSES - 1) + 1
    if not terms.restartable:
        assert runs <= 1 + terms.retries.count


def test_end_names_the_status_of_the_reason():
    assert end(EndReason.ABANDONED, Past()).status is Status.STALLED


def test_start_that_found_no_room_waits_and_costs_nothing():
    past = Past(attempt=2, losses=1)
    found = decide(EndReason.DISK_FULL, ONCE, past, began=False)
    assert (found.again, found.past, found.status) == (True, past, Status.QUEUED)
    assert found.delay_seconds > 0
    assert not decide(EndReason.DISK_FULL, ONCE, past).again


def test_a_container_that_we_ended_for_what_its_runner_said_is_a_loss_whatever_its_exit():
    assert {classify_exit(*how, "broken") for how in ((9, 0), (0, 0), (9, 1))} == {
        EndReason.LOST_WORKER
    }


@pytest.mark.parametrize("terms", [Terms(), ONCE])
def test_a_lost_container_is_told_with_what_it_was_ended_for(terms):
    facts = Facts(loss="the runner broke the protocol: it sent noise")
    past = Past(attempt=3, losses=2)
    text = decide(EndReason.LOST_WORKER, terms, past, facts=facts).text
    assert "lost" in text
    assert ": the runner broke the protocol: it sent noise. " in text
    assert "SIGKILL" in decide(EndReason.LOST_WORKER, terms, past).text
