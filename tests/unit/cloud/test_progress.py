"""The line of progress, and the guards of waiting."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.cloud import waiting
from picloud_jupyter.cloud.outcomes import read_outcomes, slices
from picloud_jupyter.cloud.progress import describe, format_seconds, remaining_seconds
from picloud_jupyter.cloud.waiting import DEADLOCK_SECONDS, Deadline, DeadlockCheck
from picloud_jupyter.protocol.errors import CloudTimeoutError, InternalError


def test_line_counts_and_ends_with_the_time():
    line = describe({"done": 7, "error": 2, "killed": 1}, 10, 75.0, None)
    assert line == "[####################] 7/10 done, 3 failed, in 1 min 15 s"
    assert describe({}, 4, 0.0, None) == "[....................] 0/4 done"
    assert "1,000/2,000 done, 5 waiting" in describe(
        {"done": 1000, "waiting": 5}, 2000, 1.0, 2.0
    )


@given(
    st.dictionaries(
        st.sampled_from(["done", "error", "queued", "processing"]), st.integers(0, 10**6)
    )
)
def test_bar_is_always_as_wide(counts):
    total = sum(counts.values())
    assert describe(counts, total, 1.0, None).index("]") == 21


def test_remaining_time_is_unknown_before_the_first_end():
    assert remaining_seconds(10, 0, 5.0) is None
    assert format_seconds(3725) == "1 h 2 min"


def test_deadlock_is_seen_after_a_minute_without_movement():
    check = DeadlockCheck(0.0)
    assert not check.observe(3, 1.0)
    assert not check.observe(2, DEADLOCK_SECONDS + 1)  # it moved
    assert not check.observe(2, 2 * DEADLOCK_SECONDS)
    assert check.observe(2, 2 * DEADLOCK_SECONDS + 1)
    assert not check.observe(0, 9 * DEADLOCK_SECONDS)
    assert not check.observe(0, 99 * DEADLOCK_SECONDS)


def test_deadlock_in_a_job_ends_the_wait_soon_after_the_minute(monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def post(_path, body, **_rest):
        clock.now += body["timeout_seconds"]
        return {"finished": False, "counts": {"queued": 1}}

    monkeypatch.setattr(
        waiting, "session", lambda: SimpleNamespace(client=SimpleNamespace(post=post))
    )
    monkeypatch.setattr(waiting, "running_on_cloud", lambda: True)
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with pytest.raises(CloudTimeoutError, match="have not moved for 60 seconds"):
        waiting.wait_finished([(1, 1)], Deadline(None), ignore_errors=True)
    assert DEADLOCK_SECONDS <= clock.now <= 1.2 * DEADLOCK_SECONDS


@pytest.mark.parametrize("never", [None, 0])
def test_no_timeout_is_never_over(never):
    deadline = Deadline(never)
    assert not deadline.over
    assert deadline.slice_seconds() == 60.0


def test_negative_timeout_is_refused():
    with pytest.raises(ValueError, match="negative"):
        Deadline(-1)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6), st.integers(1, 7))
def test_slices_keep_order_and_size(gaps, count):
    ranges, at = [], 0
    for gap, length in gaps:
        ranges.append((at + gap, at + gap + length - 1))
        at += gap + length
    jids = [jid for first, last in ranges for jid in range(first, last + 1)]
    found = [[j for a, b in part for j in range(a, b + 1)] for part in slices(ranges, count)]
    assert [jid for part in found for jid in part] == jids
    assert all(len(part) == count for part in found[:-1])


def test_outcomes_are_cut_by_their_sizes():
    items = [
        {"jid": 1, "status": "done", "size": 3},
        {"jid": 2, "status": "done", "size": 9, "file": "/f"},
        {"jid": 3, "status": "done", "size": 2},
        {"jid": 4, "status": "done", "size": 9, "blob": True},
    ]
    found = read_outcomes({"items": items}, memoryview(b"abcde"))
    assert [outcome.body for outcome in found] == [b"abc", None, b"de", None]
    assert found[1].path == "/f"
    with pytest.raises(InternalError, match="5 bytes"):
        read_outcomes({"items": items}, memoryview(b"abcdef"))
