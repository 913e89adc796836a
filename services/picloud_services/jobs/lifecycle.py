"""Where a job's life is decided: (what happened, what the job may) -> (status, reason, run again?).

Pure. Transitions: waiting -> queued | stalled | killed; queued -> done | error | killed | stalled, or
queued again with the next attempt. Final statuses never change.
"""

import signal
from dataclasses import dataclass, replace

from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, EndReason, RetryPolicy, Status
from picloud_services.jobs.reasons import REASONS, Facts, message

MAX_LOSSES = 3  # a container lost three times while a job ran in it: the job is poison
MAX_START_FAILURES = 3
START_RETRY_SECONDS = 2.0
# A start that was lost (who made the container, or it itself, was killed from outside) says nothing of
# the job, so it has many: twelve over four minutes outlive what kills at random, and a machine that is
# short of memory for a while. A job whose starts are lost in a row for longer is what kills them.
MAX_LOST_STARTS = 12
LOST_START_SECONDS = 0.25  # doubled each time
LONGEST_LOST_START_SECONDS = 60.0
ROOM_RETRY_SECONDS = 5.0
_NO_RETRIES = RetryPolicy()
RETRIED_BY_DEFAULT = frozenset(
    {EndReason.ERROR, EndReason.EXIT_CODE, EndReason.OOM, EndReason.TIMEOUT, EndReason.CRASHED}
)
_ASKED = {
    "killed": EndReason.KILLED,
    "timeout": EndReason.TIMEOUT,
    "oom": EndReason.OOM,
    "disk_full": EndReason.DISK_FULL,
    # Its runner said what none of ours does, in whoever's name: it had to be given up.
    "broken": EndReason.LOST_WORKER,
    "shutdown": EndReason.NODE_LOST,  # the service went down: to be run when it is back
}
_FREE = frozenset({EndReason.NODE_LOST, EndReason.SPOT_RECLAIMED})
_TRANSITIONS = {
    Status.WAITING: {Status.QUEUED, Status.STALLED, Status.KILLED},
    Status.QUEUED: {Status.PROCESSING, Status.QUEUED, *FINISHED_STATUSES},
    Status.PROCESSING: {Status.QUEUED, *FINISHED_STATUSES},
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a job's spec allows."""

    restartable: bool = True
    retries: RetryPolicy = _NO_RETRIES


@dataclass(frozen=True, slots=True)
class Past:
    """What happened to a job so far.

    ``losses``: containers lost or not started under it; ``retries``: runs by the user's wish;
    ``fresh``: it runs in a fresh runner from now on, so a crash is its own; ``lost_starts``: in a row,
    of this attempt.
    """

    attempt: int = 1
    losses: int = 0
    retries: int = 0
    fresh: bool = False
    lost_starts: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a job.

    ``again``: queue it as ``past`` says, ``delay_seconds`` from now; else it ends with ``status``,
    ``reason`` and ``text`` (empty: the failure frame has the words).
    """

    status: Status
    reason: EndReason
    text: str
    past: Past
    again: bool = False
    delay_seconds: float = 0.0


def may_become(old: Status, new: Status) -> bool:
    """Return whether a job may go from ``old`` to ``new``."""
    return new in _TRANSITIONS.get(old, ())


def classify_exit(wait_status: int, oom_count: int, asked: str | None) -> EndReason:
    """Return why a container ended while an element ran in it.

    ``wait_status`` is as from waitpid, ``asked`` why we ended it ourselves, if we did.

    >>> [str(classify_exit(9, *how)) for how in ((0, None), (1, None), (0, "broken"))]
    ['lost_worker', 'oom', 'lost_worker']
    """
    if asked in _ASKED:
        return _ASKED[asked]
    if oom_count > 0:
        return EndReason.OOM
    if wait_status & 0x7F == signal.SIGKILL:
        return EndReason.LOST_WORKER
    return EndReason.CRASHED


def exit_text(wait_status: int) -> str:
    """Return how a process ended, in words.

    >>> exit_text(11), exit_text(3 << 8)
    ('signal 11 (SIGSEGV)', 'exit code 3')
    """
    number = wait_status & 0x7F
    if number:
        names = {s.value: s.name for s in signal.Signals}
        return f"signal {number} ({names.get(number, 'unknown')})"
    return f"exit code {wait_status >> 8 & 0xFF}"


def decide(
    reason: EndReason,
    terms: Terms,
    past: Past,
    *,
    reused: bool = False,
    began: bool = True,
    facts: Facts | None = None,
) -> Decision:
    """Return what becomes of a job whose attempt ended for ``reason``.

    ``reused``: its interpreter had run other jobs before, so it may not be to blame. It was not
    ``began`` if it is sure that nothing of it ran.
    """
    facts = facts or Facts()
    if reason is EndReason.DISK_FULL and not began:  # not its doing: it waits for room
        return _start_again(reason, past, ROOM_RETRY_SECONDS)
    if reason is EndReason.START_FAILED:
        return _after_start_failure(past, facts)
    if reason is EndReason.LOST_WORKER and not began:
        return _after_lost_start(past, facts)
    if reason in _FREE and terms.restartable:
        return _again(reason, past)
    if reason is EndReason.LOST_WORKER:
        return _after_loss(terms, past, facts)
    if (
        reason in (EndReason.OOM, EndReason.CRASHED)
        and reused
        and terms.restartable
        and not past.fresh
    ):
        return _again(reason, past, fresh=True)
    if _user_wants_retry(reason, terms.retries, past):
        return _again(
            reason, past, retries=past.retries + 1, delay_seconds=terms.retries.delay_seconds
        )
    return end(reason, past, facts)


def end(reason: EndReason, past: Past, facts: Facts | None = None) -> Decision:
    """Return the decision that ends a job for ``reason``, whatever it may."""
    text = (
        "" if reason in (EndReason.DONE, EndReason.ERROR) else message(reason, facts or Facts())
    )
    return Decision(REASONS[reason].status, reason, text, past)


def _again(
    reason: EndReason,
    past: Past,
    *,
    losses: int | None = None,
    retries: int | None = None,
    fresh: bool = False,
    delay_seconds: float = 0.0,
) -> Decision:
    following = Past(
        attempt=past.attempt + 1,
        losses=past.losses if losses is None else losses,
        retries=past.retries if retries is None else retries,
        fresh=past.fresh or fresh,
    )
    return Decision(
        Status.QUEUED, reason, "", following, again=True, delay_seconds=delay_seconds
    )


def _after_loss(terms: Terms, past: Past, facts: Facts) -> Decision:
    losses = past.losses + 1
    if not terms.restartable:
        return end(EndReason.LOST_WORKER, past, facts)
    if losses >= MAX_LOSSES:
        told = Facts(losses=losses, loss=facts.loss, node=facts.node)
        return end(EndReason.POISON, Past(past.attempt, losses, past.retries, past.fresh), told)
    return _again(EndReason.LOST_WORKER, past, losses=losses, fresh=True)


def _after_start_failure(past: Past, facts: Facts) -> Decision:
    """Nothing of the job ran, so even one that may not restart is tried again, as the same attempt."""
    losses = past.losses + 1
    following = replace(past, losses=losses)
    if losses >= MAX_START_FAILURES:
        return end(EndReason.START_FAILED, following, facts)
    return _start_again(EndReason.START_FAILED, following, START_RETRY_SECONDS * losses)


def _after_lost_start(past: Past, facts: Facts) -> Decision:
    """Nobody says that the job is to blame: only in the end, where it always happens to this one."""
    lost = past.lost_starts + 1
    following = replace(past, lost_starts=lost)
    if lost >= MAX_LOST_STARTS:
        told = f"{lost} starts in a row were lost, the last one because {facts.detail}"
        return end(EndReason.START_FAILED, following, replace(facts, detail=told))
    delay_seconds = LOST_START_SECONDS * 2 ** (lost - 1)
    return _start_again(
        EndReason.LOST_WORKER, following, min(delay_seconds, LONGEST_LOST_START_SECONDS)
    )


def _start_again(reason: EndReason, past: Past, delay_seconds: float) -> Decision:
    return Decision(Status.QUEUED, reason, "", past, again=True, delay_seconds=delay_seconds)


def longest_delay_seconds(policy: RetryPolicy) -> float:
    """Return how long a job may have to wait for its next attempt."""
    own = (START_RETRY_SECONDS * MAX_START_FAILURES, LONGEST_LOST_START_SECONDS)
    return max(policy.delay_seconds, *own)


def _user_wants_retry(reason: EndReason, policy: RetryPolicy, past: Past) -> bool:
    if past.retries >= policy.count or reason is EndReason.DONE:
        return False
    wanted = frozenset(policy.reasons) or RETRIED_BY_DEFAULT
    return reason in wanted and reason is not EndReason.KILLED


def after_dependencies(failed: int, *, unfinished: int, ignore_errors: bool) -> Status:
    """Return the status of a job whose dependencies are as counted.

    >>> after_dependencies(0, unfinished=0, ignore_errors=False)
    <Status.QUEUED: 'queued'>
    """
    if failed and not ignore_errors:
        return Status.STALLED
    return Status.WAITING if unfinished else Status.QUEUED
