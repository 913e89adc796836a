import contextlib
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.frames import (
    PREFIX,
    FrameCounter,
    FrameError,
    FrameReader,
    Pack,
    pack_frame,
    pack_records,
    split_frame,
)

headers = st.dictionaries(
    st.text(max_size=10), st.integers() | st.text(max_size=10) | st.none()
)
frames = st.lists(st.tuples(headers, st.binary(max_size=200)), max_size=6)


@given(frames, st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(sent, data):
    stream = b"".join(pack_frame(h, b) for h, b in sent)
    reader, got, position = FrameReader(), [], 0
    while position < len(stream):
        size = data.draw(st.integers(1, len(stream) - position))
        got += list(reader.feed(stream[position : position + size]))
        position += size
    assert got == sent
    assert reader.pending_bytes == 0


@given(st.lists(st.binary(max_size=20), min_size=3, max_size=8), st.data())
def test_counted_frames_when_one_is_doubled_lost_or_overtaken_then_the_link_is_refused(
    bodies, data
):
    counter = FrameCounter()
    stream = [counter.number(pack_frame({}, body)) for body in bodies]
    assert [body for _, body in FrameReader(counted=True).feed(b"".join(stream))] == bodies
    at = data.draw(st.integers(0, len(stream) - 2))
    spoil = data.draw(st.sampled_from(["double", "lose", "swap"]))
    spoilt = {
        "double": [*stream[: at + 1], *stream[at:]],
        "lose": stream[:at] + stream[at + 1 :],
        "swap": [*stream[:at], stream[at + 1], stream[at], *stream[at + 2 :]],
    }[spoil]
    got: list[bytes] = []
    with pytest.raises(FrameError, match="lost, doubled or overtaken"):
        got.extend(body for _, body in FrameReader(counted=True).feed(b"".join(spoilt)))


def test_counted_frames_when_the_numbers_are_used_up_then_they_begin_again():
    counter, reader = FrameCounter(), FrameReader(counted=True)
    counter._last = reader._last = 2**32 - 2
    last, first = (counter.number(pack_frame({}, b"x")) for _ in range(2))
    assert [body for _, body in reader.feed(last + first)] == [b"x", b"x"]


def test_counted_frames_when_the_peer_does_not_count_then_they_are_taken():
    plain = pack_frame({"t": "hello"})
    reader = FrameReader(counted=True)
    assert len(list(reader.feed(plain + plain + FrameCounter().number(plain)))) == 3
    with pytest.raises(FrameError, match="frame 0 came where 2 was due"):
        list(reader.feed(plain))


@given(st.lists(st.binary(max_size=50), max_size=30), st.data())
def test_pack_gives_each_record_and_any_cut(records, data):
    pack = Pack(pack_records(records))
    assert list(pack) == records
    first = data.draw(st.integers(0, len(records)))
    stop = data.draw(st.integers(first, len(records)))
    assert list(Pack(pack.cut(first, stop))) == records[first:stop]


@given(st.binary(max_size=64))
def test_foreign_bytes_raise_frame_error_or_are_a_frame(junk):
    for read in (split_frame, Pack, lambda b: list(FrameReader(max_body_bytes=1000).feed(b))):
        with contextlib.suppress(FrameError):
            read(junk)


@pytest.mark.parametrize("prefix", [PREFIX.pack(2**31, 0), PREFIX.pack(2, 2**60)])
def test_lying_sizes_are_refused_before_anything_is_held(prefix):
    reader = FrameReader()
    with pytest.raises(FrameError, match="over the limit"):
        list(reader.feed(prefix))


@pytest.mark.parametrize("header", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_header_that_is_not_an_object_is_refused(header):
    with pytest.raises(FrameError):
        split_frame(PREFIX.pack(len(header), 0) + header)


def test_pack_when_it_says_more_records_than_are_wanted_then_refused_before_they_are_counted():
    many = pack_records([b""] * 3)
    assert len(Pack(many, most=3)) == 3
    with pytest.raises(FrameError, match="3 records, at most 2"):
        Pack(many, most=2)
    hostile = struct.pack(">I", 4_000_000) + bytes(4 * 4_000_000)
    tracemalloc.start()
    with pytest.raises(FrameError):
        Pack(hostile, most=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
