import json

from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.frames import FrameReader, encode_json
from picloud_services.agent.desk import jid_at
from picloud_services.agent.outbox import Outbox, renumber, without_items

texts = st.text() | st.just('","n":7,"items":[') | st.just(',"items":')
items = st.lists(st.tuples(st.integers(), texts, st.dictionaries(texts, texts)).map(list))


@given(n=st.integers(0, 10**9), other=st.integers(0, 10**9), lease=texts, rows=items)
def test_header_when_renumbered_undecoded_then_only_its_number_differs(n, other, lease, rows):
    header = {"t": "batch", "n": n, "lease": lease, "end": True, "items": rows}
    assert json.loads(renumber(encode_json(header), other)) == {**header, "n": other}


@given(lease=texts, rows=items)
def test_header_when_items_are_left_out_then_the_rest_is_whole(lease, rows):
    header = {"t": "batch", "n": 1, "lease": lease, "end": True}
    # a lease comes from us and is hexadecimal; a text with a quote is escaped all the same
    assert without_items(encode_json({**header, "items": rows})) == header


def frames(outbox):
    return [header["n"] for frame in outbox.frames() for header, _ in FrameReader().feed(frame)]


def add(outbox, container="", container_n=0):
    return outbox.add(b'{"t":"x","n":0,"y":1}', container=container, container_n=container_n)


def test_acknowledge_when_some_are_known_then_the_others_stay_in_order():
    outbox = Outbox()
    for _ in range(4):
        add(outbox)
    outbox.acknowledge(2)
    assert frames(outbox) == [3, 4]
    outbox.acknowledge(1)
    assert frames(outbox) == [3, 4]
    outbox.acknowledge(9)
    assert (len(outbox), outbox.size_bytes) == (0, 0)


def test_acknowledge_when_events_are_of_containers_then_each_learns_its_highest_number():
    outbox = Outbox()
    add(outbox, "a", 1)
    add(outbox, "b", 5)
    add(outbox, "a", 2)
    add(outbox, "a", 3)
    assert outbox.acknowledge(3) == {"a": 2, "b": 5}
    assert outbox.acknowledge(4) == {"a": 3}


def test_silent_when_events_are_before_it_then_it_waits_for_these():
    outbox = Outbox()
    assert not outbox.add_silent("a", 1)
    add(outbox, "a", 2)
    assert outbox.add_silent("a", 3)
    add(outbox, "b", 1)
    assert frames(outbox) == [1, 2]
    assert outbox.acknowledge(1) == {"a": 3}
    assert outbox.acknowledge(2) == {"b": 1}


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 5)), min_size=1, max_size=5))
def test_jid_when_a_chunk_has_ranges_then_positions_count_through_them(pieces):
    ranges: list[tuple[int, int]] = []
    jids: list[int] = []
    start = 0
    for gap, more in pieces:
        first = start + gap
        ranges.append((first, first + more))
        jids += range(first, first + more + 1)
        start = first + more
    assert [jid_at(ranges, position) for position in range(len(jids))] == jids
