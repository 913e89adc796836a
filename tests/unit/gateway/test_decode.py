"""Checked values out of requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.frames import encode_json, pack_frame
from picloud_jupyter.protocol.jobs import PayloadRef
from picloud_jupyter.protocol.requests import MAX_RANGES
from picloud_services.gateway.decode import (
    read_as,
    read_byte_range,
    read_flag,
    read_int,
    read_json,
    read_ranges,
    read_seconds,
    read_text,
    split_frame,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=4))
def test_json_when_plain_values_then_read_back(value):
    assert read_json(encode_json(value)) == value


def test_json_when_empty_then_no_fields():
    assert read_json(b"") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"1",
        b"{",
        b"\xff",
        b'{"a":1,"a":2}',
        b'{"b":{"a":1,"a":2}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":9223372036854775808}',
        b'{"a":' + b"9" * 5_000 + b"}",
        b'{"a":"\\ud800"}',
        b'{"\\uDFFF":1}',
        b'{"a":[' + b"1," * 600_000 + b"1]}",
        b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    ],
)
def test_json_when_not_strict_then_refused(data):
    with pytest.raises(InvalidRequest):
        read_json(data)


def test_json_when_at_its_limits_then_read():
    text = '{"a":[9223372036854775807,-9223372036854775808,1e308],"b":"\\ud83d\\ude00"}'
    assert read_json(text.encode()) == {"a": [2**63 - 1, -(2**63), 1e308], "b": "\U0001f600"}
    ranges = [[n, n] for n in range(1, MAX_RANGES + 1)]
    assert len(read_ranges(read_json(encode_json({"jids": ranges}))["jids"])) == MAX_RANGES


def test_frame_when_whole_then_header_and_body():
    header, body = split_frame(pack_frame({"a": 1}, b"xy"))
    assert read_json(header) == {"a": 1}
    assert bytes(body) == b"xy"


@given(st.binary(max_size=60))
def test_frame_when_arbitrary_bytes_then_nothing_but_our_error(data):
    try:
        header, _ = split_frame(data)
        read_json(header)
    except InvalidRequest:
        return


@pytest.mark.parametrize("cut", [1, -1])
def test_frame_when_cut_or_extended_then_refused(cut):
    data = pack_frame({"a": 1}, b"xy")
    with pytest.raises(InvalidRequest):
        split_frame(data[:-1] if cut < 0 else data + b"z")


@pytest.mark.parametrize(
    "value",
    [None, [[2, 1]], [[0, 1]], [[1]], [[1, 2, 3]], [["1", 2]], [[1, 2**53]], [[True, 1]], 5],
)
def test_ranges_when_wrong_then_refused(value):
    with pytest.raises(InvalidRequest, match="jids"):
        read_ranges(value)


def test_ranges_when_unsorted_then_order_is_kept():
    assert read_ranges([[5, 6], [1, 1]]) == [(5, 6), (1, 1)]


@pytest.mark.parametrize("value", [None, "x", "", 1.5, True, -1, "-1", "--5", 11, "²", "1e3"])
def test_int_when_wrong_then_the_name_is_said(value):
    with pytest.raises(InvalidRequest, match="limit"):
        read_int({"limit": value}, "limit", high=10)


def test_int_when_text_of_a_query_then_number():
    assert read_int({"limit": "7"}, "limit", high=10) == 7
    assert read_int({}, "limit", 3) == 3


@pytest.mark.parametrize("value", ["x", "nan", "inf", -1, 61, True, [1]])
def test_seconds_when_wrong_then_the_name_is_said(value):
    with pytest.raises(InvalidRequest, match="wait"):
        read_seconds({"wait": value}, "wait")


def test_seconds_when_text_of_a_query_then_number():
    assert read_seconds({"wait": "1.5"}, "wait") == 1.5


def test_text_and_flag_when_of_another_kind_then_refused():
    with pytest.raises(InvalidRequest):
        read_text({"key": 1}, "key")
    with pytest.raises(InvalidRequest):
        read_text({"key": "x" * 9}, "key", longest=8)
    with pytest.raises(InvalidRequest):
        read_flag({"local": "yes"}, "local")
    assert read_flag({}, "local") is False


def test_word_when_a_field_is_wrong_then_its_place_is_said():
    with pytest.raises(InvalidRequest, match=r"function: .*size_bytes"):
        read_as(PayloadRef, {"size_bytes": "5"}, "function")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-99", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=1-2,4-5", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
        ("bytes=-", None),
    ],
)
def test_byte_range_when_given_then_start_and_stop(header, expected):
    assert read_byte_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=5-4", "bytes=-0"])
def test_byte_range_when_outside_then_416(header):
    with pytest.raises(InvalidRequest) as caught:
        read_byte_range(header, 10)
    assert caught.value.status == 416
