"""Displays in the output: whole ones come back, cut ones become words, text is never lost."""

import base64
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol import displays
from picloud_jupyter.protocol.displays import (
    END,
    START,
    Display,
    DisplayTooLargeError,
    DisplayType,
    Splitter,
    as_words,
    encode,
    text_for_terminal,
)

PNG = Display(
    DisplayType.DISPLAY_DATA,
    {"text/plain": "<Figure>", "image/png": "QUJD" * 100},
    {"image/png": {"width": 3}},
    {"display_id": "a"},
)
MARK = b"\n[picloud: 77 bytes were dropped here]\n"


def split(data, sizes=(), **options):
    """Feed ``data`` in pieces of ``sizes``; neighbouring texts joined."""
    splitter = Splitter(**options)
    pieces, at = [], 0
    for size in (*sizes, len(data) or 1):
        pieces += splitter.feed(data[at : at + size])
        at += size
    pieces += splitter.finish()
    joined: list[Any] = []
    for piece in pieces:
        if isinstance(piece, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
some_displays = st.builds(
    Display,
    st.sampled_from(DisplayType),
    st.dictionaries(st.text(), json_values, max_size=3),
    st.dictionaries(st.text(), json_values, max_size=2),
    st.dictionaries(st.text(), json_values, max_size=2),
    st.none() | st.integers(),
    st.booleans(),
)
some_bytes = st.binary(max_size=30) | st.sampled_from(
    [START, END, START[:4], b"\x1b", MARK, MARK[:9], b"QUJD", START + b"QUJD", b"{}\n"]
)
sizes = st.lists(st.integers(min_value=1, max_value=40), max_size=40)


@given(some_displays)
def test_a_display_comes_back(display):
    assert split(encode(display)) == [display]


@given(st.lists(some_bytes | some_displays.map(encode), max_size=8), sizes)
def test_any_split_of_the_bytes_gives_the_same(parts, sizes):
    data = b"".join(parts)
    assert split(data, sizes) == split(data)
    assert split(data, sizes, begins_within=True) == split(data, begins_within=True)


@given(st.binary(max_size=200), sizes)
def test_text_without_a_display_passes_unchanged(data, sizes):
    if START not in data:
        assert b"".join(split(data, sizes)) == data


def test_order_is_kept():
    data = b"one\n" + encode(PNG) + b"two" + encode(PNG) + b"\xff"
    assert split(data) == [b"one\n", PNG, b"two", PNG, b"\xff"]


def test_text_passes_at_once_and_only_a_begun_display_is_held():
    splitter = Splitter()
    assert splitter.feed(b"line\n\x1b_pic") == [b"line\n"]
    assert splitter.feed(b"ture") == [b"\x1b_picture"]
    assert splitter.feed(b"12%\r") == [b"12%\r"]


@pytest.mark.parametrize("cut", [1, 15, 200])
def test_text_within_a_display_is_kept_and_the_display_said(cut):
    sequence = encode(PNG)
    data = sequence[: len(START) + cut] + b" 50% done\n" + sequence[len(START) + cut :]
    text = b"".join(split(data))
    assert b"display of %d bytes was cut or damaged here]\n 50%% done\n" % cut in text


def test_what_is_no_display_becomes_words():
    for payload in (b"", b"QUJD", b"A", base64.b64encode(b'{"type":"nonsense"}')):
        assert b"was cut or damaged here" in b"".join(split(START + payload + END))
    value: dict[str, Any] = {
        "type": "display_data",
        "data": [],
        "metadata": {},
        "transient": {},
        "execution_count": None,
        "wait": False,
    }
    for change in ({}, {"data": {}, "metadata": 3}, {"data": {}, "execution_count": "x"}):
        payload = base64.b64encode(json.dumps({**value, **change}).encode())
        assert b"was cut or damaged here" in b"".join(split(START + payload + END))
    deep = base64.b64encode(b"[" * 100_000)
    assert b"was cut or damaged here" in b"".join(split(START + deep + END))


def test_an_unfinished_display_becomes_words_at_the_end():
    splitter = Splitter()
    assert splitter.feed(encode(PNG)[:-1]) == []
    (words,) = splitter.finish()
    assert isinstance(words, bytes)
    assert b"was cut or damaged here" in words
    assert splitter.feed(b"on") == [b"on"]


def test_the_rest_behind_a_drop_is_words_and_text_behind_it_stays():
    sequence = encode(PNG)
    data = b"a" + sequence[:50] + MARK + sequence[90:] + b"b\n" + MARK + b"rest of a line\n"
    text = b"".join(split(data))
    assert text.startswith(b"a[picloud: a display of ")
    assert text.count(b"was cut or damaged here") == 2
    assert b"QUJDQUJD" not in text
    assert text.endswith(b"b\n" + MARK + b"rest of a line\n")


def test_a_tail_may_begin_within_a_display():
    rest = encode(PNG)[60:] + b"after\n"
    assert b"".join(split(rest, begins_within=True)).endswith(b"damaged here]\nafter\n")
    assert split(b"plain text\n", begins_within=True) == [b"plain text\n"]
    assert split(b"plain", begins_within=True) == [b"plain"]


def test_what_is_too_large_is_refused_and_never_held(monkeypatch):
    monkeypatch.setattr(displays, "MAX_SEQUENCE_BYTES", 1000)
    with pytest.raises(DisplayTooLargeError, match="more than the 1,000"):
        encode(Display(DisplayType.RESULT, {"text/plain": "x" * 1000}))
    splitter = Splitter()
    splitter.feed(START)
    for _ in range(10):
        splitter.feed(b"QUJD" * 200)
    assert len(splitter._held) <= 2000
    data = START + b"QUJD" * 500 + END + b"text"
    for step in (1, 7, 5000):
        assert split(data, [step] * 2100) == split(data)
    assert split(data)[-1].endswith(b"text")


def test_content_that_json_does_not_know_becomes_text():
    (found,) = split(encode(Display(DisplayType.RESULT, {"image/png": b"ABC", "x": 1j})))
    assert found.data == {"image/png": "QUJD", "x": "1j"}


def test_words_for_a_terminal():
    assert as_words(PNG) == "[figure image/png 300 B]\n"
    table = Display(DisplayType.RESULT, {"text/html": "<table>", "text/plain": "  a\n0 1"})
    assert as_words(table) == "  a\n0 1\n"
    assert as_words(Display(DisplayType.RESULT, {"text/html": "<b>"})) == "[text/html 3 B]\n"
    assert as_words(Display(DisplayType.CLEAR)) == ""
    text = f"é\n{encode(PNG).decode()}after \ud800"
    assert text_for_terminal(text) == "é\n[figure image/png 300 B]\nafter \ud800"


def test_many_displays_at_once_cost_as_much_as_one_by_one():
    one = encode(Display(DisplayType.CLEAR))
    many = one * 20_000
    splitter = Splitter()
    begun = time.process_time()
    assert sum(len(splitter.feed(one)) for _ in range(20_000)) == 20_000
    single = time.process_time() - begun
    begun = time.process_time()
    assert len(Splitter().feed(many)) == 20_000
    assert time.process_time() - begun < 3 * single  # each display once copied what follows it
