"""What of a job's output a cell shows, and a background job's transcript."""

import base64

from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.magics.outputs import TextWindow
from picloud_jupyter.magics.transcript import MAX_TEXT_CHARACTERS, Transcript
from picloud_jupyter.protocol.displays import Display, DisplayType, encode


def shown(window, pieces):
    text = "".join(window.pass_on(piece) for piece in pieces)
    return text + window.finish(lambda count: f"<{count}>")


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_little_output_passes_unchanged_however_it_is_cut(pieces):
    whole = b"".join(pieces)
    assert shown(TextWindow(10_000, 100), pieces) == whole.decode("utf-8", "replace")


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_much_output_shows_its_ends_and_counts_the_rest(sizes):
    lines = b"".join(b"%03d\n" % (i % 1000) for i in range(300))
    pieces, at = [], 0
    for size in [*sizes, 10_000]:
        pieces.append(lines[at : at + size])
        at += size
    text = shown(TextWindow(100, 50), pieces)
    head, _, rest = text.partition("<")
    count, _, tail = rest.partition(">")
    assert lines.startswith(head.encode())
    assert lines.endswith(tail.encode())
    assert len(head) + int(count) + len(tail) == len(lines)
    assert len(head) <= 100
    assert 0 < len(tail) <= 100


def test_the_end_of_one_long_line_is_shown():
    text = shown(TextWindow(10, 6), [b"a" * 10, b"b" * 20 + b"\n"])
    assert text == "a" * 10 + "<15>" + "b" * 5 + "\n"


def test_characters_that_are_cut_in_two_are_whole_again():
    data = "äöü€".encode()
    assert shown(TextWindow(), [data[:1], data[1:5], data[5:]]) == "äöü€"


def test_a_transcript_shows_text_and_displays_safely():
    transcript = Transcript()
    image = Display(
        DisplayType.DISPLAY_DATA,
        {"text/plain": "<F>", "image/png": base64.b64encode(b"x").decode()},
    )
    transcript.add("stdout", b"<script>\x1b[31mred\x1b[0m\n" + encode(image))
    transcript.add("stderr", b"bad & worse\n")
    bundle = transcript.bundle("job 7 runs", 7)
    assert "&lt;script&gt;red" in bundle["text/html"]
    assert '<img src="data:image/png;base64,eA==">' in bundle["text/html"]
    assert "bad &amp; worse" in bundle["text/html"]
    assert bundle["text/plain"].startswith("job 7 runs\n<script>red\n[figure image/png")


def test_a_transcript_keeps_the_end():
    transcript = Transcript()
    for i in range(5_000):
        transcript.add("stdout", f"line {i} {'.' * 40}\n".encode())
    bundle = transcript.bundle("t", 7)
    assert "picloud logs 7" in bundle["text/plain"]
    assert "line 4999" in bundle["text/plain"]
    assert len(bundle["text/plain"]) < MAX_TEXT_CHARACTERS + 100


def test_a_transcript_says_what_it_leaves_out_of_one_long_text():
    transcript = Transcript()
    transcript.add("stdout", b"x" * (MAX_TEXT_CHARACTERS + 1))
    assert "picloud logs 7" in transcript.bundle("t", 7)["text/plain"]


def test_a_transcript_mends_characters_that_are_cut_in_two():
    transcript = Transcript()
    for stream in ("stdout", "stderr"):
        for byte in "äö€\n".encode():
            transcript.add(stream, bytes([byte]))
    assert transcript.bundle("t", 7)["text/plain"] == "t\näö€\näö€\n"


def test_a_transcript_is_cleared():
    transcript = Transcript()
    transcript.add("stdout", b"old\n" + encode(Display(DisplayType.CLEAR)) + b"new\n")
    assert "old" not in transcript.bundle("t", 7)["text/plain"]
