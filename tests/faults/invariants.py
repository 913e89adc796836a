"""What must hold whatever was killed, cut or filled: pure, from journals and a picture of the system.

The numbers are those of docs/reliability.md. I6 (queues) joins with the queues themselves.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, EndReason
from tests.faults.journal import Event

COUNTED = ("waiting", "queued", "done", "error", "killed", "stalled")
ENDED = ("done", "error", "killed", "stalled")
NOT_OUR_DOING = {EndReason.LOST_WORKER, EndReason.NODE_LOST, EndReason.POISON}


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that was not kept."""

    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as the store has it."""

    jid: int
    batch: int
    status: str
    reason: str | None
    attempt: int
    result: int | None = None

    @property
    def end_reason(self) -> str:
        """The word for how it ended."""
        return self.reason or self.status


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A call or map as the store has it; ``counts`` are its counters."""

    batch: int
    label: str | None
    open: int
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """Work that is out: elements ``next`` .. ``count`` - 1 from ``first_jid`` on."""

    lease: int
    first_jid: int
    next: int
    count: int


@dataclass(slots=True)
class Picture:
    """All that a service left when its work was done; see `tests.faults.picture` for how it is taken."""

    jobs: dict[int, JobRow] = field(default_factory=dict)
    batches: dict[int, BatchRow] = field(default_factory=dict)
    user_counts: dict[str, int] = field(default_factory=dict)
    leases: list[LeaseRow] = field(default_factory=list)
    results: dict[int, int] = field(
        default_factory=dict
    )  # result -> how many jobs it says it has
    integrity: list[str] = field(default_factory=list)
    damaged_blobs: list[str] = field(default_factory=list)
    damaged_archives: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    secrets_found: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Figures:
    """Measured beside the journals. Seconds; None where a run did not measure it."""

    drain_seconds: float | None = None
    drain_limit_seconds: float = 10.0
    others_failed: int = 0
    others_p99_ratio: float | None = None
    explained: frozenset[str] = frozenset()  # ends that the fault itself explains


def check(
    events: Sequence[Event], effects: Sequence[Event], picture: Picture, figures: Figures
) -> list[Violation]:
    """Return each promise that was broken; none is what a healthy run gives."""
    story = _Story(events, effects)
    rules = (
        _i1_acked_is_kept(story, picture),
        _i2_one_end(story, picture),
        _i3_one_lease(story, picture),
        _i4_runs(story, picture),
        _i5_right_results(story, picture),
        (Violation("I7", text) for text in picture.leftovers),
        (Violation("I8", text) for text in picture.damaged_archives),
        _i9_drains(story, figures),
        _i10_others(figures),
        _i11_whole(picture),
        _i12_closed_list(story, picture, figures.explained),
        (Violation("I13", f"the secret stands in {path}") for path in picture.secrets_found),
    )
    return [violation for rule in rules for violation in rule]


class _Story:
    """The journals, by jid."""

    def __init__(self, events: Iterable[Event], effects: Iterable[Event]) -> None:
        self.acked: dict[int, str] = {}
        self.acked_by: dict[int, set[str]] = defaultdict(set)
        self.acked_count: dict[str, int] = {}
        self.submits: dict[str, Event] = {}
        self.kill_asked: set[int] = set()
        self.delete_asked: set[int] = set()
        self.ended: dict[int, list[Event]] = defaultdict(list)
        self.unread = 0
        for event in events:
            self._enter(event)
        self.starts: dict[int, set[tuple[int, str]]] = defaultdict(set)
        self.finishes: dict[int, set[int]] = defaultdict(set)
        self.start_count: Counter[int] = Counter()
        for effect in effects:
            if effect["what"] == "start":
                self.starts[effect["jid"]].add((effect["attempt"], effect["lease"]))
                self.start_count[effect["jid"]] += 1
            else:
                self.finishes[effect["jid"]].add(effect["attempt"])

    def _enter(self, event: Event) -> None:
        match event["do"]:
            case "submit":
                self.submits[event["token"]] = event
            case "acked":
                self.acked.update(dict.fromkeys(event["jids"], event["token"]))
                self.acked_count[event["token"]] = len(set(event["jids"]))
                for jid in event["jids"]:
                    self.acked_by[jid].add(event["token"])
            case "kill":
                self.kill_asked.update(event["jids"])
            case "delete":
                self.delete_asked.update(event["jids"])
            case "ended":
                self.ended[event["jid"]].append(event)
            case "settled":
                self.unread = event["unread"]  # the last one speaks: it read what others left

    def fact(self, jid: int, name: str, default: object) -> object:
        """Return what was noted of the submit that made ``jid``."""
        return self.submits[self.acked[jid]].get(name, default)


def _i1_acked_is_kept(story: _Story, picture: Picture) -> Iterator[Violation]:
    for jid, token in story.acked.items():
        if jid not in picture.jobs and jid not in story.delete_asked:
            yield Violation("I1", f"job {jid} ({token}) was promised and is gone")
    for jid, tokens in story.acked_by.items():
        if len(tokens) > 1:
            yield Violation("I1", f"job {jid} was given out for {', '.join(sorted(tokens))}")
    for token, found in story.acked_count.items():
        wanted = story.submits[token].get("count", 1)
        if found != wanted:
            yield Violation("I1", f"the submit {token} of {wanted} jobs was given {found}")
    labels = Counter(b.label for b in picture.batches.values() if b.label in story.submits)
    for label, count in labels.items():
        if count > 1:
            yield Violation("I1", f"the submit {label} was entered {count} times")


def _i2_one_end(story: _Story, picture: Picture) -> Iterator[Violation]:
    for jid, job in picture.jobs.items():
        if job.status not in FINISHED_STATUSES:
            yield Violation("I2", f"job {jid} has no end: it is {job.status}")
    for jid, ended in story.ended.items():
        reasons = {event["reason"] for event in ended}
        if jid in picture.jobs:
            reasons.add(picture.jobs[jid].end_reason)
        if len(reasons) > 1:
            yield Violation("I2", f"job {jid} ended more than once: {sorted(reasons)}")
    yield from _wrong_counters(picture)


def _wrong_counters(picture: Picture) -> Iterator[Violation]:
    by_batch: dict[int, Counter[str]] = defaultdict(Counter)
    for job in picture.jobs.values():
        by_batch[job.batch][job.status] += 1
    for batch in picture.batches.values():
        found = by_batch[batch.batch]
        if any(batch.counts[s] != found[s] for s in COUNTED):
            yield Violation(
                "I2", f"batch {batch.batch} counts {batch.counts}, its jobs are {dict(found)}"
            )
    total = Counter(job.status for job in picture.jobs.values())
    if any(picture.user_counts.get(s, 0) != total[s] for s in ENDED):
        yield Violation("I2", f"its user counts {picture.user_counts}, jobs are {dict(total)}")
    linked = Counter(j.result for j in picture.jobs.values() if j.result is not None)
    for result, links in picture.results.items():
        if linked[result] != links:
            yield Violation(
                "I2", f"result {result} says {links} jobs, {linked[result]} name it"
            )
    for result in linked.keys() - picture.results.keys():
        yield Violation("I2", f"result {result} is named by a job and is not there")


def _i3_one_lease(story: _Story, picture: Picture) -> Iterator[Violation]:
    held: Counter[int] = Counter()
    for lease in picture.leases:
        held.update(range(lease.first_jid + lease.next, lease.first_jid + lease.count))
    for jid, count in held.items():
        job = picture.jobs.get(jid)
        if job is None or job.status in FINISHED_STATUSES:
            yield Violation("I3", f"job {jid} is over and still leased")
        elif count > 1:
            yield Violation("I3", f"job {jid} is leased {count} times")
    for jid, job in picture.jobs.items():
        done_by_one_of_ours = job.end_reason == "done" and jid in story.starts
        if done_by_one_of_ours and job.attempt not in story.finishes[jid]:
            yield Violation(
                "I3",
                f"job {jid} is done by attempt {job.attempt}, which never came to its end"
                f" (ended: {sorted(story.finishes[jid])})",
            )


def _i4_runs(story: _Story, picture: Picture) -> Iterator[Violation]:
    for jid in story.acked:
        job = picture.jobs.get(jid)
        if job is None:
            continue
        starts, kind = story.start_count[jid], story.fact(jid, "kind", "")
        if not story.fact(jid, "restartable", True) and starts > 1:
            yield Violation("I4", f"job {jid} may not restart and started {starts} times")
        if job.end_reason == "done" and kind != "nested" and not starts:
            yield Violation("I4", f"job {jid} is done and never started")
    for jid, starts in story.start_count.items():
        job = picture.jobs.get(jid)
        if job is not None and starts > job.attempt:
            yield Violation("I4", f"job {jid} started {starts} times in {job.attempt} attempts")


def _i5_right_results(story: _Story, picture: Picture) -> Iterator[Violation]:
    for jid, ended in story.ended.items():
        if any(event.get("right") is False for event in ended):
            yield Violation("I5", f"job {jid} gave another value than its function returned")
    for text in picture.damaged_blobs:
        yield Violation("I5", text)


def _i9_drains(story: _Story, figures: Figures) -> Iterator[Violation]:
    if story.unread:
        yield Violation("I9", f"{story.unread} submits were not finished when time was up")
    if (
        figures.drain_seconds is not None
        and figures.drain_seconds > figures.drain_limit_seconds
    ):
        yield Violation(
            "I9",
            f"work was over {figures.drain_seconds:.1f} s after the last fault,"
            f" not within {figures.drain_limit_seconds:.1f} s",
        )


def _i10_others(figures: Figures) -> Iterator[Violation]:
    if figures.others_failed:
        yield Violation("I10", f"{figures.others_failed} requests of others failed")
    if figures.others_p99_ratio is not None and figures.others_p99_ratio > 2:
        yield Violation(
            "I10",
            f"the p99 submit of others was {figures.others_p99_ratio:.1f} times that alone",
        )


def _i11_whole(picture: Picture) -> Iterator[Violation]:
    for line in picture.integrity:
        yield Violation("I11", f"the store is damaged: {line}")


def _i12_closed_list(
    story: _Story, picture: Picture, explained: frozenset[str]
) -> Iterator[Violation]:
    words = {str(reason) for reason in EndReason} | {"stalled"}
    for jid, job in picture.jobs.items():
        if job.status not in FINISHED_STATUSES:
            continue
        if job.end_reason not in words:
            yield Violation("I12", f"job {jid} ended by {job.end_reason!r}, not a word of ours")
        elif jid in story.acked and job.end_reason not in explained:
            yield from _unexplained(story, job)


def _unexplained(story: _Story, job: JobRow) -> Iterator[Violation]:
    """Say when a job ended in a way that nobody asked for and no fault explains."""
    allowed = {"done"}
    if story.fact(job.jid, "fails", False):
        allowed = {"error"}
    if story.fact(job.jid, "kind", "") == "nested":
        allowed |= {"error"}  # its children may have been killed below it
    if job.jid in story.kill_asked:
        allowed |= {"killed"}
    if not story.fact(job.jid, "restartable", True):
        allowed |= NOT_OUR_DOING | {"stalled"}
    elif job.attempt >= 3:
        allowed |= {EndReason.POISON}
    if job.end_reason not in allowed:
        yield Violation(
            "I12",
            f"job {job.jid} ({story.acked[job.jid]}) ended by {job.end_reason!r} after"
            f" {job.attempt} attempts; that should have been {' or '.join(sorted(allowed))}",
        )
