"""Chunk sizes: each element once, balance at the tail, little overhead."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_services.dispatch.chunking import MAX_CHUNK, chunk_size, overdue, worth_queueing
from picloud_services.dispatch.estimate import Estimate, Estimates


@given(
    st.none() | st.builds(Estimate, st.floats(0, 100), st.integers(1, 1000)),
    st.integers(1, 10**6),
    st.integers(1, 64),
)
def test_size_is_within_its_limits(estimate, remaining, parallel):
    size = chunk_size(estimate, remaining, parallel)
    assert 1 <= size <= min(remaining, MAX_CHUNK)
    if estimate is None or estimate.seconds > 1:
        assert size == 1


@given(st.integers(1, 5000), st.floats(0, 0.5), st.integers(1, 8))
def test_chunks_cover_each_element_exactly_once(count, seconds, parallel):
    estimates, at = Estimates(), 0
    key = ("f", "c1")
    while at < count:
        size = chunk_size(estimates.get(key), count - at, parallel)
        assert size >= 1
        at += size
        estimates.learn(key, size, size * seconds)
    assert at == count


@pytest.mark.parametrize(
    ("count", "element", "overhead", "least"),
    [(10_000, 0.001, 0.002, 0.95), (10_000, 0.0, 0.002, 0.0), (20, 1.0, 0.002, 0.95)],
)
def test_two_runners_share_a_map_evenly(count, element, overhead, least):
    """Play a map on two runners: chunk after chunk, each costing its elements and a pause."""
    estimates, key, at, chunks = Estimates(), ("f", "c1"), 0, 0
    runners = [(0.0, 0), (0.0, 1)]  # (free at, number)
    ending = [0, 0]
    while at < count:
        now, runner = heapq.heappop(runners)
        estimates.learn(key, ending[runner], ending[runner] * element)
        size = chunk_size(estimates.get(key), count - at, 2)
        at += size
        chunks += 1
        ending[runner] = size
        heapq.heappush(runners, (now + size * max(element, 20e-6) + overhead, runner))
    end = max(now for now, _ in runners)
    assert count * element / 2 / end >= least
    assert chunks < 100


def test_average_follows_a_function_that_changes():
    estimates = Estimates()
    estimates.learn(("f", "c1"), 100, 0.1)
    for _ in range(10):
        estimates.learn(("f", "c1"), 10, 10.0)
    found = estimates.get(("f", "c1"))
    assert found is not None
    assert found.seconds == pytest.approx(1.0, rel=0.05)
    assert found.grown == 100


def test_queue_behind_only_what_ends_soon():
    assert worth_queueing(Estimate(0.001, 100), 250)
    assert not worth_queueing(Estimate(1.0, 1), 1)
    assert not worth_queueing(None, 1)


def test_overdue_is_four_times_the_estimate():
    assert not overdue(Estimate(1.0, 1), 3.9)
    assert overdue(Estimate(1.0, 1), 4.1)
    assert not overdue(None, 0.2)
    assert overdue(None, 0.3)
