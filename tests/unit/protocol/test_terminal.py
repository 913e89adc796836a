"""What jobs print, where it reaches a terminal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.cloud.job_table import format_columns
from picloud_jupyter.protocol.terminal import TerminalFilter, one_line, safe_text

HARMFUL = [
    *("\x1b]8;;http://evil\x07click\x1b]8;;\x07", "\x1b]52;c;ZXZpbA==\x07", "\x1b]0;title\x07"),
    *("\x1b[2J", "\x1b[1;1H", "\x1b[6n", "\x1bP+q544e\x1b\\", "\x1b_Gf=24;AAAA\x1b\\"),
    *("\x9b2J", "\x9d0;t\x07", "\x1bc", "\x0e", "\x7f"),
]


@pytest.mark.parametrize("text", HARMFUL)
def test_what_steers_a_terminal_is_made_visible(text: str) -> None:
    for shown in (safe_text(text), one_line(text)):
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", shown), shown
    assert "^" in safe_text(text)
    assert "\\x" in one_line(text)


@pytest.mark.parametrize(
    "text", ["\x1b[1;31mred\x1b[0m", "50 %\r\x1b[K60 %\n", "a\tb", "ab\bc", "é ß 中 \U0001f600"]
)
def test_colours_and_progress_bars_pass(text: str) -> None:
    assert safe_text(text) == text


@given(
    st.lists(
        st.sampled_from(
            [b"\x1b", b"[", b"3", b"1", b"m", b"J", b"\xc2", b"\x9b", b"\xc3\xa9", b"\n", b"x"]
        )
    ),
    st.integers(0, 30),
)
def test_bytes_that_are_cut_anywhere_are_shown_the_same(pieces: list[bytes], at: int) -> None:
    data = b"".join(pieces)
    whole, cut = TerminalFilter(), TerminalFilter()
    expected = whole.feed(data) + whole.finish()
    assert cut.feed(data[:at]) + cut.feed(data[at:]) + cut.finish() == expected
    rest = re.sub(rb"\x1b\[[0-9;:]*[mK]", b"", expected)
    assert b"\x1b" not in rest


def test_a_table_shows_names_in_one_line_as_they_are_spelt() -> None:
    rows = format_columns([("jid", "label"), (1, "a\x1b[2J\u202egnp.exe\0\nsecond")])
    assert rows[1] == "1      a\\x1b[2J\\u202egnp.exe\\x00 ..."
