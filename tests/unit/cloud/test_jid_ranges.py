"""Sequences of jids behave like the lists they stand for."""

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.cloud.jid_ranges import (
    JidRanges,
    describe,
    is_single_jid,
    ordered_ranges,
    read_jids,
)

jid_lists = st.lists(st.integers(1, 60), max_size=30)


def of_list(jids):
    return JidRanges(range(jid, jid + 1) for jid in jids)


@given(jid_lists, st.integers(-40, 40))
def test_items_are_those_of_the_list(jids, index):
    found = of_list(jids)
    assert list(found) == jids
    assert len(found) == len(jids)
    assert bool(found) == bool(jids)
    if -len(jids) <= index < len(jids):
        assert found[index] == jids[index]
    else:
        with pytest.raises(IndexError):
            found[index]


@given(
    jid_lists,
    st.one_of(st.none(), st.integers(-40, 40)),
    st.one_of(st.none(), st.integers(-40, 40)),
    st.one_of(st.none(), st.integers(-4, 4).filter(bool)),
)
def test_slices_are_those_of_the_list(jids, start, stop, step):
    assert list(of_list(jids)[start:stop:step]) == jids[start:stop:step]


@given(jid_lists)
def test_equality_hash_and_pickle_follow_the_list(jids):
    found = of_list(jids)
    assert found == jids
    assert found == of_list(jids)
    assert found != [*jids, 5]
    assert list(pickle.loads(pickle.dumps(found))) == jids
    assert all(jid in found for jid in jids)


def test_contiguous_jids_are_like_a_range():
    found = JidRanges([range(5, 8), range(8, 11)])
    assert found.ranges == (range(5, 11),)
    assert found == range(5, 11)
    assert hash(found) == hash(range(5, 11))
    assert found[1:-1] == range(6, 10)
    assert pickle.loads(pickle.dumps(found)) == range(5, 11)
    assert found != "5-10"
    assert JidRanges() == []


def test_description_is_short():
    assert describe(JidRanges([range(1, 5), range(7, 8)])) == "1-4,7"
    assert describe(JidRanges([range(1, 100, 2)])) == "1-99 by 2"
    assert describe(JidRanges(range(n, n + 1) for n in range(1, 99, 2))).endswith(",...")


@given(jid_lists)
def test_any_mixture_is_read_in_order(jids):
    mixed: list[Any] = []
    for jid in jids:
        pair = range(jid, jid + 2)
        mixed.append([pair, JidRanges([pair]), jid, jid][jid % 4])
    flat = [n for item in mixed for n in ([item] if isinstance(item, int) else item)]
    pairs = ordered_ranges(mixed)
    assert [n for first, last in pairs for n in range(first, last + 1)] == flat
    assert {n for first, last in read_jids(mixed) for n in range(first, last + 1)} == set(flat)


@pytest.mark.parametrize("wrong", ["5", b"5", 1.5, None, [1, "2"], True, [None], [True]])
def test_what_is_no_jid_raises_type_error(wrong):
    with pytest.raises(TypeError, match="job id"):
        ordered_ranges(wrong)


@pytest.mark.parametrize("wrong", [0, -1, [1, 0], range(4), range(-3, 1), 2**53])
def test_numbers_that_are_no_jids_raise_value_error(wrong):
    with pytest.raises(ValueError, match="job id"):
        ordered_ranges(wrong)


def test_ranges_with_steps_and_empty_ones_are_taken():
    assert ordered_ranges(range(7, 1, -2)) == [(7, 7), (5, 5), (3, 3)]
    assert ordered_ranges(range(5, 5)) == []
    assert ordered_ranges(JidRanges([range(2, 4)])) == [(2, 3)]


def test_single_jids_are_told_from_several():
    assert is_single_jid(5)
    assert not is_single_jid([5])
    assert not is_single_jid(range(3))
    assert not is_single_jid(True)
