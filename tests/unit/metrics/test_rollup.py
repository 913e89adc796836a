from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_services.metrics.rollup import rates, split_runs, thin


def sample(at: float, cpu: float = 0.0, memory: int = 0, **fields: Any) -> ResourceSample:
    return ResourceSample(at, 1, cpu, memory, **fields)


@st.composite
def histories(draw: st.DrawFn) -> list[ResourceSample]:
    """Samples in order of time with gaps and counters that now and then begin anew."""
    samples: list[ResourceSample] = []
    at = cpu = 0.0
    for _ in range(draw(st.integers(0, 80))):
        at += draw(st.sampled_from([0.5, 1.0, 1.0, 1.0, 30.0]))
        cpu = draw(st.floats(0, 2)) + (0.0 if draw(st.integers(0, 30)) == 0 else cpu)
        samples.append(sample(at, cpu, draw(st.integers(0, 1000))))
    return samples


@given(histories(), st.integers(2, 40))
def test_thin_when_anything_then_keeps_to_the_number_and_the_order(history, max_points):
    thinned = thin(history, max_points)
    assert len(thinned) <= max_points
    assert [s.at for s in thinned] == sorted(s.at for s in thinned)
    assert {s.at for s in thinned} <= {s.at for s in history}


@given(histories(), st.integers(2, 40))
def test_thin_when_anything_then_no_two_runs_become_one(history, max_points):
    runs = split_runs(history)
    kept = {s.at for s in thin(history, max_points)}
    newest = runs[-(max_points // 2) :] if len(history) > max_points else runs
    for run in newest:
        assert {run[0].at, run[-1].at} <= kept


@given(histories(), st.integers(2, 40))
def test_thin_when_anything_then_maxima_and_totals_stay(history, max_points):
    if len(split_runs(history)) > max_points // 2:
        return
    thinned = thin(history, max_points)
    assert max((s.memory_bytes for s in thinned), default=0) == max(
        (s.memory_bytes for s in history), default=0
    )
    if len(split_runs(history)) == 1:
        assert thinned[-1].cpu_seconds - thinned[0].cpu_seconds == (
            history[-1].cpu_seconds - history[0].cpu_seconds
        )


def test_thin_when_few_then_returns_them_all():
    history = [sample(1), sample(2), sample(3)]
    assert thin(history, 3) == history


def test_thin_when_max_points_is_one_then_refuses():
    with pytest.raises(ValueError, match="at least 2"):
        thin([], 1)


def test_thin_when_peak_is_between_kept_samples_then_it_is_carried():
    history = [sample(float(i), memory=999 if i == 37 else 1) for i in range(100)]
    thinned = thin(history, 10)
    assert max(s.memory_bytes for s in thinned) == 999
    assert len(thinned) == 10


def test_rates_when_counters_grow_then_gives_means():
    before = sample(10.0, 1.0, 50, disk_read_bytes=100, network_sent_bytes=10)
    after = sample(12.0, 4.0, 40, disk_read_bytes=300, network_sent_bytes=50, processes=3)
    [[point]] = rates([before, after])
    assert (point.at, point.seconds, point.cpu_cores, point.memory_bytes) == (
        12.0,
        2.0,
        1.5,
        50,
    )
    assert point.disk_read_bytes_per_second == 100.0
    assert point.network_sent_bytes_per_second == 20.0
    assert point.processes == 3


def test_rates_when_nobody_measured_for_a_while_then_the_gap_stays():
    history = [sample(1), sample(2), sample(60), sample(61)]
    assert [[p.at for p in run] for run in rates(history)] == [[2], [61]]


def test_rates_when_a_counter_began_anew_then_no_negative_rate():
    history = [sample(1, 5.0), sample(2, 6.0), sample(3, 0.1), sample(4, 0.6)]
    assert [[round(p.cpu_cores, 6) for p in run] for run in rates(history)] == [[1.0], [0.5]]


def test_rates_when_two_samples_share_a_moment_then_no_division_by_zero():
    assert rates([sample(1), replace(sample(1), cpu_seconds=1.0)]) == [[]]


def test_rates_when_any_reading_was_approximate_then_the_point_is():
    [[point]] = rates([replace(sample(1), approximate=True), sample(2)])
    assert point.approximate


@given(histories())
def test_rates_when_anything_then_never_negative(history):
    assert all(p.cpu_cores >= 0 for run in rates(history) for p in run)
