"""The index of ranges and the image of unfinished jobs, against plain dictionaries."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.jobs import HostPython, JobSpec, Status
from picloud_services.jobs.gates import Gate
from picloud_services.jobs.live import Change, LiveJobs, Running
from picloud_services.jobs.spans import CODE_OF, SEALED, LiveBatch, Span, SpanIndex

SPEC = JobSpec("f", HostPython("/p", "/", "/", "3.11"))
QUEUED = CODE_OF[Status.QUEUED]


def batch(number: int = 1, state: str = SEALED) -> LiveBatch:
    return LiveBatch(number, 1, SPEC, "d", 5, None, state, None, 0.0)


def jobs(count: int, first: int = 1) -> tuple[LiveJobs, LiveBatch]:
    live, made = LiveJobs(), batch()
    live.add_batch(made)
    live.add_jobs(made, first, 0, bytes((QUEUED,)) * count)
    return live, made


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9_000)), min_size=1, max_size=12),
    st.integers(1, 60_000),
    st.integers(0, 20_000),
)
def test_index_finds_what_a_list_would(gaps_and_sizes, first, length):
    index: SpanIndex[Span] = SpanIndex()
    spans, at = [], 1
    for gap, size in gaps_and_sizes:
        at += gap
        spans.append(Span(at, bytearray(size), batch(), 0))
        at += size
    for span in spans[::2] + spans[1::2]:
        index.add(span)
    wanted = [s for s in spans if s.first_jid <= first + length and s.last_jid >= first]
    assert list(index.overlapping(first, first + length)) == wanted
    assert index.find(first) is next(
        (s for s in spans if s.first_jid <= first <= s.last_jid), None
    )
    for span in spans:
        index.remove(span)
    assert index.find(spans[0].first_jid) is None
    assert list(index.overlapping(1, at)) == []


def test_index_of_single_calls_when_each_is_asked_for_then_no_other_is_looked_at():
    looked_at = []

    class WatchedSpan(Span):
        @property
        def last_jid(self) -> int:
            looked_at.append(self.first_jid)
            return self.first_jid

    index: SpanIndex[Span] = SpanIndex()
    spans = [WatchedSpan(jid, bytearray(1), batch(), 0) for jid in range(1, 4_001)]
    for span in spans:
        index.add(span)
    looked_at.clear()
    for span in spans:
        assert list(index.overlapping(span.first_jid, span.first_jid)) == [span]
    assert len(looked_at) <= 2 * len(spans)


ENDS = [Status.DONE, Status.ERROR, Status.KILLED]


@given(st.lists(st.tuples(st.integers(0, 49), st.integers(1, 10), st.sampled_from(ENDS))))
def test_image_counts_and_runs_follow_random_changes(changes):
    live, _ = jobs(50)
    model = dict.fromkeys(range(1, 51), Status.QUEUED)
    span = live.find(1)
    assert span is not None
    opened = []
    gate = Gate(
        live, [(1, 50)], enough=lambda g: not g.unfinished, opened=lambda: opened.append(1)
    )
    for start, count, new in changes:
        jids = list(range(start + 1, min(start + count, 50) + 1))
        if not jids or any(model[j] is not Status.QUEUED for j in jids):
            continue
        live.apply([Change(1, jids[0], jids[-1], Status.QUEUED, new)])
        model |= dict.fromkeys(jids, new)
    unfinished = [j for j, s in model.items() if s is Status.QUEUED]
    assert gate.unfinished == len(unfinished)
    assert bool(opened) == (not unfinished)
    assert bool(live.batches) == bool(unfinished)
    runs = list(live.runs(span, 0, 50))
    assert {j: s for a, b, s in runs for j in range(a, b + 1)} == model
    assert all(left[2] is not right[2] for left, right in itertools.pairwise(runs))


def test_running_jobs_are_processing_until_they_end():
    live, _ = jobs(3)
    span = live.find(1)
    assert span is not None
    live.start(2, Running("l", "n", 1, 0.0))
    assert [live.status(j) for j in (1, 2, 3)] == ["queued", "processing", "queued"]
    assert live.count(span, 0, 3) == {Status.QUEUED: 2, Status.PROCESSING: 1}
    assert list(live.runs(span, 0, 3)) == [
        (1, 1, Status.QUEUED),
        (2, 2, Status.PROCESSING),
        (3, 3, Status.QUEUED),
    ]
    live.apply([Change(1, 2, 2, Status.QUEUED, Status.DONE)])
    assert live.running == {}


def test_reserved_jids_of_a_map_are_nobodys_until_their_part_comes():
    live, made = LiveJobs(), batch(state="open")
    live.add_batch(made)
    live.reserve(made, 10, 100)
    assert live.status(50) is None
    live.add_jobs(made, 40, 30, bytes((QUEUED,)) * 20)
    assert live.status(50) is Status.QUEUED
    assert live.status(39) is None
    assert made.open == 20


def test_parts_of_a_growing_map_share_a_span_where_they_touch():
    live, made = LiveJobs(), batch(state="open")
    live.add_batch(made)
    live.add_jobs(made, 1, 0, bytes((QUEUED,)) * 5_000)
    live.add_jobs(made, 5_001, 5_000, bytes((QUEUED,)) * 5_000)
    live.add_jobs(made, 20_000, 10_000, bytes((QUEUED,)))
    assert len(made.spans) == 2
    assert live.find(9_999) is made.spans[0]
    assert live.find(20_000) is made.spans[1]
