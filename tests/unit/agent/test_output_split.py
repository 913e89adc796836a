"""Output is cut at markers wherever the reads happened to end."""

from hypothesis import given
from hypothesis import strategies as st

from picloud_services.agent.output_split import OutputSplitter

MARKER = b"ABAC" * 4


def collect(parts: list[bytes]) -> list[bytes]:
    splitter = OutputSplitter(MARKER)
    elements = [b""]
    for part in parts:
        first, *rest = splitter.feed(part)
        elements[-1] += first
        elements += rest
    elements[-1] += splitter.finish()
    return elements


OUTPUT = st.lists(
    st.sampled_from([b"A", b"B", b"C", b"ABA", b"\n", b"\xff\x00"]), max_size=8
).map(b"".join)


@given(st.lists(OUTPUT, min_size=1, max_size=6), st.data())
def test_any_cut_of_the_stream_gives_the_same_elements(elements, data):
    stream = MARKER.join(elements)
    expected = stream.split(MARKER)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert collect(parts) == expected


def test_feed_when_there_is_no_output_counts_the_markers():
    assert OutputSplitter(MARKER).feed(MARKER * 3) == [b""] * 4


def test_feed_when_a_line_is_complete_keeps_nothing_back():
    assert OutputSplitter(MARKER).feed(b"a line\n") == [b"a line\n"]


def test_feed_when_a_marker_may_have_begun_keeps_only_that_back():
    splitter = OutputSplitter(MARKER)
    assert splitter.feed(b"textABA") == [b"text"]
    assert splitter.feed(b"x") == [b"ABAx"]
