"""A list of files that a container made is believed in nothing."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.frames import PREFIX, FrameError, encode_json
from picloud_jupyter.protocol.written_files import (
    Listing,
    WrittenFile,
    is_plain_path,
    listing_header,
    read_listing,
)


def read(header, body_bytes: int) -> Listing:
    data = encode_json(header)
    return read_listing(json.loads(data), len(data), PREFIX.size + len(data) + body_bytes)


def test_a_listing_says_where_each_file_begins():
    files = [WrittenFile("a", 3, 1.5), WrittenFile("b/c", 0, 2.0), WrittenFile("d", 4, 3.0)]
    header = listing_header(files, [("link", "it is a symbolic link")])
    found = read(header, 7)
    start = PREFIX.size + len(encode_json(header))
    assert [(f.path, f.size_bytes, f.offset - start) for f in found.files] == [
        ("a", 3, 0),
        ("b/c", 0, 3),
        ("d", 4, 3),
    ]
    assert found.left == (("link", "it is a symbolic link"),)
    assert found.find("b/c") == found.files[1]
    assert found.find("c") is None


@pytest.mark.parametrize(
    "entry",
    [
        *(["../a", 1, 0.0], ["/etc/passwd", 1, 0.0], ["a/../../b", 1, 0.0], ["a\0b", 1, 0.0]),
        *(["a", -1, 0.0], ["a", 1.0, 0.0], ["a", True, 0.0], ["a", 2, 0.0], ["a", 1]),
        *(
            [5, 1, 0.0],
            ["a", 1, "now"],
            ["a", 1, 1e300],
            ["a", 1, 10**400],
            "abc",
            None,
            ["a" * 5000, 1, 0.0],
        ),
    ],
)
def test_a_listing_with_a_bad_entry_is_refused(entry):
    with pytest.raises(FrameError):
        read({"files": [entry], "left": []}, 1)


@pytest.mark.parametrize(
    "header",
    [
        *({}, {"files": []}, {"files": 5, "left": []}, {"files": [], "left": [1]}),
        *({"files": [], "left": [["a", 5]]}, {"files": [], "left": [[["a"], "why"]]}),
    ],
)
def test_a_header_that_is_no_listing_is_refused(header):
    with pytest.raises(FrameError):
        read(header, 0)


def test_a_time_that_is_none_is_refused():
    with pytest.raises(FrameError):
        read_listing({"files": [["a", 0, math.nan]], "left": []}, 5, PREFIX.size + 5)


@given(st.text(max_size=30))
def test_a_plain_path_stays_below_its_folder(path):
    if is_plain_path(path):
        assert ".." not in path.split("/")
        assert not path.startswith("/")
        path.encode()
