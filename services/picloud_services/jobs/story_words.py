"""Tells a job's life from what is known of it. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

from picloud_jupyter.protocol.ids import format_jids
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, EndReason, Status
from picloud_jupyter.protocol.story import LOG, NOW, Step, Story
from picloud_services.jobs.live import Running
from picloud_services.jobs.reasons import REASONS
from picloud_services.jobs.story_facts import Attempt, StoryFacts

MAX_SERVICE_STEPS = 20  # starts of the service itself that are told, the newest
SLACK_SECONDS = 2.0  # a container's lines so soon after an attempt belong to that
Line = dict[str, Any]


def tell(
    facts: StoryFacts,
    *,
    status: Status,
    running: Running | None,
    why: str,
    printed: dict[str, int | None],
    lines: Sequence[tuple[float, Line]],
    logs_since: float,
    now_at: float,
) -> Story:
    """Return the story: what the store knows, what the logs say beside, how it stands now.

    ``why`` is why it does not run yet, ``printed`` how much there is of each stream.
    """
    steps = [*_beginning(facts), *_runs(facts, running, now_at), *_end(facts, printed)]
    steps += [Step(at, _log_text(line), LOG, **_ids(line)) for at, line in _told(facts, lines)]
    ordered = sorted(steps, key=lambda step: now_at if step.at is None else step.at)
    if why:
        ordered.append(Step(now_at, why, NOW))
    if facts.kill_wished and status not in FINISHED_STATUSES:
        ordered.append(Step(None, "it is to end by request", NOW))
    reason = facts.reason or ("done" if facts.status == "done" else None)
    return Story(
        jid=facts.jid,
        status=str(status),
        reason=reason,
        function=facts.function,
        label=facts.label,
        attempt=facts.attempt,
        summary=_summary(facts, status, running, why, now_at),
        next_step=_next_step(facts, status, reason),
        steps=tuple(ordered),
        not_known=tuple(_not_known(facts, logs_since)),
    )


# ------------------------------------------------------------------------------------- the steps
def _beginning(facts: StoryFacts) -> Iterator[Step]:
    text = "submitted as a call"
    if facts.is_map:
        size = f" of {facts.size:,} elements" if facts.size is not None else ""
        text = f"submitted as element {facts.index:,} of map {facts.batch}{size}"
    if facts.parent_jid is not None:
        text += f", by job {facts.parent_jid}"
    yield Step(facts.created_at, text)
    if facts.cached_from is not None:
        yield Step(facts.created_at, f"not run: the kept result of job {facts.cached_from}")
    if facts.depends_on:
        jids = format_jids(facts.depends_on)
        one = jids.isdecimal()
        yield Step(facts.created_at, f"waits for {'job' if one else 'jobs'} {jids}")
        if facts.met_at is not None and facts.met_at > facts.created_at:
            finished = f"job {jids} has finished" if one else f"jobs {jids} have finished"
            yield Step(facts.met_at, finished)


def _runs(facts: StoryFacts, running: Running | None, now_at: float) -> Iterator[Step]:
    ready_at = max(facts.created_at, facts.met_at or 0.0)
    for found in facts.attempts:
        yield from _run(facts, found, ready_at)
        ready_at = found.ended_at
    if facts.out is None:
        return
    out = facts.out
    yield _given(out, ready_at)
    if running is not None and running.lease == out.lease:
        seconds = max(now_at - running.started_at, 0.0)
        yield Step(
            running.started_at, "started", **_place(out) | {"container": running.container}
        )
        yield Step(now_at, f"runs since {seconds:.3f} s", NOW)
    else:
        yield Step(now_at, "waits for its turn in the runner that it was given to", NOW)


def _given(found: Attempt, ready_at: float) -> Step:
    waited_seconds = max(found.given_at - ready_at, 0.0)
    text = f"given to node {found.node} after {waited_seconds:.3f} s in the queue"
    if found.others:
        text += f", with {found.others:,} others of its map"
    return Step(found.given_at, f"{text} (attempt {found.attempt})", **_place(found))


def _run(facts: StoryFacts, found: Attempt, ready_at: float) -> Iterator[Step]:
    yield _given(found, ready_at)
    if found.started_at:
        kinds = {True: " in a fresh runner", False: " in a warm runner", None: ""}
        yield Step(found.started_at, f"started{kinds[found.fresh]}", **_place(found))
    if found.reason == EndReason.DONE:
        text = f"returned after {found.runtime_seconds:.3f} s"
    elif found.started_at:
        text = f"ended after {found.runtime_seconds:.3f} s: {found.reason}"
    else:
        text = f"brought nothing back: {found.reason}"
    if found.detail:
        text += f": {found.detail}"
    is_last = facts.finished_at is not None and found.ended_at >= facts.finished_at
    again = "" if is_last or found.reason == EndReason.DONE else "; it is run again"
    ended_at = found.started_at + found.runtime_seconds if found.started_at else found.ended_at
    yield Step(ended_at, text + again, **_place(found))


def _end(facts: StoryFacts, printed: dict[str, int | None]) -> Iterator[Step]:
    told = [f"{size:,} bytes to {stream}" for stream, size in printed.items() if size]
    if told and facts.finished_at is not None:
        yield Step(facts.finished_at, f"it had printed {' and '.join(told)}")
    elif told:
        yield Step(None, f"it has printed {' and '.join(told)} so far", NOW)
    if facts.finished_at is not None:
        why = facts.reason or facts.status
        text = facts.status if why == facts.status else f"{facts.status} ({why})"
        yield Step(facts.finished_at, text)


def _place(found: Attempt) -> dict[str, Any]:
    return {
        "lease": found.lease,
        "attempt": found.attempt,
        "node": found.node,
        "container": found.container,
    }


# -------------------------------------------------------------------------------------- the logs
def concerns(line: Line, facts: StoryFacts, leases: set[str], containers: set[str]) -> bool:
    """Return whether a line of a log is about the job, its leases, its containers or the service.

    What the log says of others' jobs is not told: a line that names a user must name this one.
    """
    about = line.get("about")
    if about == "service":
        return True
    if line.get("user", facts.user_id) != facts.user_id:
        return False
    if about == "waits":
        return True
    if line.get("jids"):
        return names(line, facts.jid)
    if named := {str(line.get("lease") or ""), *(line.get("leases") or ())} - {""}:
        return not leases.isdisjoint(named)
    return line.get("jid") == facts.jid or line.get("container") in containers


def names(line: Line, jid: int) -> bool:
    """Return whether ``line`` is about ``jid``."""
    ranges = line.get("jids") or ()
    return line.get("jid") == jid or any(first <= jid <= last for first, last in ranges)


def _told(facts: StoryFacts, lines: Sequence[tuple[float, Line]]) -> list[tuple[float, Line]]:
    """Leave out what does not belong to the times when the job waited, or its containers worked."""
    out = [facts.out] if facts.out else []
    spans = [(a.given_at, a.ended_at or float("inf")) for a in [*facts.attempts, *out]]
    kept, service = [], []
    for at, line in lines:
        inside = any(a <= at <= b + SLACK_SECONDS for a, b in spans)
        waits = not any(given <= at <= ended for given, ended in spans)
        if line.get("about") == "service":
            service.append((at, line))
        elif line.get("about") == "waits":
            kept += [(at, line)] if waits or line.get("jid") == facts.jid else []
        elif inside or not line.get("container") or names(line, facts.jid):
            kept.append((at, line))
    return kept + service[-MAX_SERVICE_STEPS:]


def _log_text(line: Line) -> str:
    text = f"{line.get('component') or 'log'}: {line.get('message')}"
    if line.get("about") == "waits" and line.get("jid"):
        text += f" (job {line['jid']}, the next of its user)"
    return text


def _ids(line: Line) -> dict[str, Any]:
    found = {name: line[name] for name in ("lease", "node", "container") if line.get(name)}
    return {name: str(value) for name, value in found.items()}


# ----------------------------------------------------------------------------------- in one line
def _summary(
    facts: StoryFacts, status: Status, running: Running | None, why: str, now_at: float
) -> str:
    if status in FINISHED_STATUSES:
        if facts.message:
            return facts.message
        if facts.status == "done":
            return "The function returned."
        return REASONS[EndReason(facts.reason or "error")].what
    if running is not None:
        return f"It runs since {max(now_at - running.started_at, 0.0):.1f} s on node {running.node}."
    return f"It is {why}." if why else f"It is {status}."


def _next_step(facts: StoryFacts, status: Status, reason: str | None) -> str:
    if status in FINISHED_STATUSES:
        step = REASONS[EndReason(reason or "done")].next_step
        return "" if step in facts.message else step
    if status is Status.PROCESSING:
        return f"follow its output with picloud logs -f {facts.jid}"
    return ""


def _not_known(facts: StoryFacts, logs_since: float) -> Iterator[str]:
    known = {found.attempt for found in facts.attempts}
    finished = facts.finished_at is not None
    last = facts.attempt if finished else facts.attempt - 1
    missing = [n for n in range(1, last + 1) if n not in known]
    if facts.record_gone:
        yield "what came back of it, when and where it ran: that was older than is kept"
    elif missing and facts.cached_from is None and (known or facts.attempt > 1):
        numbers = ", ".join(map(str, missing))
        yield f"when and where attempt {numbers} ran: neither the store nor the logs say so any more"
    if logs_since > facts.created_at:
        yield "what the logs said in its first time: they have begun new files since"
