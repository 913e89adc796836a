import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol import ids

jids = st.lists(st.integers(1, 60), max_size=40)


@given(jids)
def test_ranges_hold_each_jid_once_in_order(values):
    ranges = ids.to_ranges(values)
    assert list(ids.iterate_ranges(ranges)) == sorted(set(values))
    assert ids.count_ranges(ranges) == len(set(values))
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(ranges))


@given(jids.filter(bool))
def test_text_form_is_read_back(values):
    ranges = ids.to_ranges(values)
    assert ids.parse_jids(ids.format_jids(ranges)) == ranges


def test_overlapping_and_unordered_ranges_are_merged():
    assert ids.merge_ranges(ids.parse_jids("5-9,1-4,7-12,20")) == [(1, 12), (20, 20)]


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "4-1", "0", "1,,2", "1.5", "9" * 30, "9" * 5000]
)
def test_text_that_is_no_jids_says_what_to_write(text):
    with pytest.raises(ValueError, match="job id"):
        ids.parse_jids(text)


@pytest.mark.parametrize("text", ["0", "0-3", str(ids.MAX_JID + 1)])
def test_number_that_no_job_can_have_says_which_ones_can(text):
    with pytest.raises(ValueError, match=f"'{text}' is no job id; they go from 1 to"):
        ids.parse_jids(text)


def test_range_from_high_to_low_says_so():
    with pytest.raises(ValueError, match="'4-1' .* lower one first"):
        ids.parse_jids("4-1")


def test_python_range_is_one_pair_without_counting():
    assert ids.to_ranges(range(1, 10**9)) == [(1, 10**9 - 1)]
