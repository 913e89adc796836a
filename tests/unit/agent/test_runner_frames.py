"""What a runner says is checked to the last field."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.frames import PREFIX, pack_frame
from picloud_jupyter.protocol.jobs import INLINE_BYTES
from picloud_services.agent.runner_frames import (
    MAX_EXTRA_BYTES,
    REASONS,
    BrokenProtocol,
    ChunkEnd,
    Results,
    RunnerFrames,
    RunnerHello,
)

HELLO = {"t": "hello", "wire": 1, "oldest": 1, "pid": 7, "rss_bytes": 9, "role": "runner"}
END = {"t": "end", "lease": "a", "rss_bytes": 1, "threads": 2, "children": 0}


def result(position: int = 0, **fields) -> dict[str, Any]:
    plain = {"t": "result", "p": position, "r": "done", "at": 5, "s": 0.5, "u": 0.25, "y": 0}
    return {**plain, **fields}


def test_feed_groups_results_in_a_row():
    data = b"".join(
        (
            pack_frame(HELLO),
            pack_frame(result(0), b"ab"),
            pack_frame(result(1, r="error"), b"c"),
            pack_frame(END),
            pack_frame(result(0)),
        )
    )
    hello, first, end, second = RunnerFrames().feed(data)
    assert hello == RunnerHello(1, 1, 7, 9)
    assert isinstance(first, Results)
    assert first.items == [
        [0, "done", 5.0, 0.5, 0.25, 0.0, 2, None],
        [1, "error", 5.0, 0.5, 0.25, 0.0, 1, None],
    ]
    assert (first.bodies, first.size_bytes) == ([b"ab", b"c"], 3)
    assert end == ChunkEnd("a", 1, 2, 0)
    assert isinstance(second, Results)
    assert second.items[0][0] == 0


@given(st.lists(st.binary(max_size=30), max_size=10), st.data())
def test_feed_when_cut_anywhere_says_the_same(bodies, data):
    stream = b"".join(pack_frame(result(i), body) for i, body in enumerate(bodies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    frames, found = RunnerFrames(), []
    for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        for said in frames.feed(stream[a:b]):
            assert isinstance(said, Results)
            found += said.bodies
    assert found == bodies


def test_feed_when_a_result_has_more_to_say_keeps_what_is_known_and_clean():
    frames = RunnerFrames()
    digest = "0" * 64
    extra = {"file": "r-1", "size": 100_000, "digest": digest, "profile": "p", "exit": -9}
    (said,) = frames.feed(pack_frame(result(0, **extra, note="lone \ud800", more=1)))
    assert isinstance(said, Results)
    assert said.items[0][7] == {**extra, "note": "lone ?"}


def test_feed_when_a_chunk_brings_too_much_beside_its_results_refuses():
    frames = RunnerFrames()
    half = MAX_EXTRA_BYTES // 2 // 2**20
    for _ in range(2):  # each chunk has as much room
        for position in range(half + 1):
            frames.feed(pack_frame(result(position, profile="x" * 2**20)))
        frames.feed(pack_frame(END))
    profiles = (pack_frame(result(p, profile="x" * 2**20)) for p in range(2 * half + 1))
    with pytest.raises(BrokenProtocol):
        frames.feed(b"".join(profiles))


BAD = [
    result(1),
    result(-1),
    result(r="oom"),
    result(r="killed"),
    result(r=["done"]),
    result(r=None),
    result(at="now"),
    result(s=None),
    result(s=-1),
    result(u=1e300),
    result(y=10**400),
    result(file="../../etc/passwd", size=1, digest=""),
    result(file="..", size=1, digest=""),
    result(file=".hidden", size=1, digest=""),
    result(file="a/b", size=1, digest=""),
    result(file="", size=1, digest=""),
    result(file="a\n", size=1, digest=""),
    result(file=1, size=1, digest=""),
    result(file="a", size=-1, digest=""),
    result(file="a", size=True, digest=""),
    result(file="a", size=1, digest="xyz"),
    result(file="a", size=1),
    result(note="x" * 5000),
    result(profile=["x"]),
    result(exit=1.5),
    {**END, "threads": -1},
    {**END, "lease": 5},
    {**HELLO, "wire": "1"},
    {"t": "batch"},
    {"t": ["result"]},
    {},
]


@pytest.mark.parametrize("header", BAD, ids=repr)
def test_feed_when_a_field_is_wrong_refuses(header):
    with pytest.raises(BrokenProtocol):
        RunnerFrames().feed(pack_frame(header))


@pytest.mark.parametrize(
    "head", [b"[]", b"{", b"\xff", b"[" * 100_000, b'{"t":' * 50_000, b"1" * 5000]
)
def test_feed_when_the_header_is_no_object_refuses(head):
    with pytest.raises(BrokenProtocol):
        RunnerFrames().feed(PREFIX.pack(len(head), 0) + head)


def test_feed_when_words_are_broken_off_then_what_was_said_before_stands():
    with pytest.raises(BrokenProtocol) as caught:
        RunnerFrames().feed(pack_frame(result(), b"x") + b"\xff" * 12 + pack_frame(result(1)))
    (said,) = caught.value.said
    assert isinstance(said, Results)
    assert (said.bodies, [item[0] for item in said.items]) == ([b"x"], [0])


def test_feed_when_a_number_is_not_one_refuses():
    head = json.dumps(result(s=math.nan)).encode()
    with pytest.raises(BrokenProtocol):
        RunnerFrames().feed(PREFIX.pack(len(head), 0) + head)


@pytest.mark.parametrize(
    "sizes", [(2, INLINE_BYTES + 1), (3_000_000, 0), (2**32 - 1, 2**64 - 1)]
)
def test_feed_when_a_frame_is_too_large_refuses_before_it_came(sizes):
    with pytest.raises(BrokenProtocol):
        RunnerFrames().feed(PREFIX.pack(*sizes))


def test_feed_when_a_file_comes_with_a_body_refuses():
    with pytest.raises(BrokenProtocol):
        RunnerFrames().feed(pack_frame(result(file="a", size=1, digest=""), b"x"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
    ),
    st.sampled_from(
        [
            "t",
            "p",
            "r",
            "at",
            "s",
            "u",
            "y",
            "file",
            "size",
            "digest",
            "profile",
            "exit",
            "note",
        ]
    ),
)
def test_feed_when_any_field_is_anything_says_clean_values_or_refuses(value, name):
    head = json.dumps({**result(), "digest": "", "size": 0, name: value}).encode()
    try:
        (said,) = RunnerFrames().feed(PREFIX.pack(len(head), 0) + head)
    except BrokenProtocol:
        return
    assert isinstance(said, Results)
    ((position, reason, *numbers, size, extra),) = said.items
    assert (type(position), position, size) == (int, 0, 0)
    assert reason in REASONS
    assert all(type(number) is float and math.isfinite(number) for number in numbers)
    json.dumps(extra, allow_nan=False).encode()


def files(**fields) -> dict[str, Any]:
    return {"file": "f" * 32, "size": 9, "count": 1, "left": 0, **fields}


def test_what_an_element_wrote_is_named_in_its_result():
    (said,) = RunnerFrames().feed(pack_frame(result(files={**files(), "other": "x"})))
    assert isinstance(said, Results)
    assert said.items[0][7] == {"files": files()}
    (end,) = RunnerFrames().feed(pack_frame({**END, "spent": 3}))
    assert isinstance(end, ChunkEnd)
    assert end.spent == 3


@pytest.mark.parametrize(
    "bad",
    [
        *("x", [], 5, {}, files(file="../x"), files(file="/x"), files(file=5)),
        *(files(size=-1), files(count=1.5), files(left="3"), files(file="a" * 200)),
    ],
)
def test_written_files_that_are_named_wrongly_break_the_protocol(bad):
    with pytest.raises(BrokenProtocol):
        RunnerFrames().feed(pack_frame(result(files=bad)))
