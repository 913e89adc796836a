"""Payloads: bytes and back, small ones quickly, large ones without copies, PiCloud's rules."""

import dataclasses
import enum
import io
import itertools
import mmap
import os
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.frames import pack_frame
from picloud_jupyter.serialize.payload import (
    PayloadError,
    digest,
    dump,
    dump_bytes,
    dump_call,
    dump_function,
    load,
    load_call,
    load_function,
    read_function_header,
)
from picloud_jupyter.serialize.pickler import References

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=100,
)


@given(values)
def test_dump_when_loaded_gives_an_equal_value(value):
    assert load(dump_bytes(value)) == value


@given(st.lists(values, max_size=4), st.dictionaries(st.text(), values, max_size=3))
def test_dump_call_when_loaded_gives_args_and_kwargs(args, kwargs):
    assert load_call(b"".join(dump_call(args, kwargs))) == (tuple(args), kwargs)


@given(st.binary(max_size=40))
def test_load_when_bytes_are_foreign_says_so_or_unpickles(data):
    if data[:1] not in (b"\x01",):
        with pytest.raises((PayloadError, pickle.UnpicklingError, EOFError)):
            load(data)


def test_dump_when_arrays_are_large_refers_to_their_own_memory():
    array = np.arange(100_000.0)
    views = [part for part in dump(array) if isinstance(part, memoryview)]
    assert any(np.shares_memory(np.frombuffer(v, dtype=np.uint8), array) for v in views)


@pytest.mark.parametrize("make", [bytes, bytearray])
def test_load_when_large_array_came_as_bytes_is_writable(make):
    array = np.arange(100_000.0)
    back = load(make(dump_bytes({"a": array, "b": [array[:3]]})))
    assert (back["a"] == array).all()
    back["a"][0] = 5
    back["b"][0][0] = 5


def test_load_when_mapped_privately_is_in_place_aligned_and_leaves_the_file(tmp_path):
    array = np.arange(100_000.0)
    path = tmp_path / "payload"
    path.write_bytes(dump_bytes((1, array, array * 2)))
    before = path.read_bytes()
    with path.open("rb") as file:
        mapped = mmap.mmap(
            file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    _, first, second = load(memoryview(mapped))
    assert np.shares_memory(first, np.frombuffer(mapped, dtype=np.uint8))
    assert first.flags.aligned
    assert (second == array * 2).all()
    first[:] = 0
    assert path.read_bytes() == before


def test_load_when_the_array_was_read_only_keeps_it_so():
    array = np.arange(100_000.0)
    array.flags.writeable = False
    assert not load(dump_bytes(array)).flags.writeable


def test_load_when_payload_is_cut_says_so():
    data = dump_bytes(np.arange(100_000.0))
    with pytest.raises(PayloadError, match="should have"):
        load(data[:-8])


def test_dump_when_nested_beyond_the_recursion_limit_still_works():
    value: list[object] = []
    for _ in range(sys.getrecursionlimit() - 50):
        value = [value]
    before = sys.getrecursionlimit()
    assert load(dump_bytes(value))
    assert sys.getrecursionlimit() == before


def test_dump_when_nested_far_too_deep_says_so():
    value: list[object] = []
    for _ in range(20_000):
        value = [value]
    with pytest.raises(pickle.PicklingError, match="nested too deep"):
        dump(value)


def test_digest_is_of_the_joined_parts():
    assert digest([b"ab", b"c"]) == digest([b"abc"])


# ---------------------------------------------------------------------- what cannot travel


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: (i for i in [1]), "generator"),
        (itertools.count, "itertools.count"),
        (lambda: itertools.chain([1]), "itertools.chain"),
        (threading.Lock, "_thread.lock"),
        (lambda: sys.__stdin__, "value"),
    ],
)
def test_dump_when_value_cannot_travel_names_it(make, words):
    with pytest.raises(pickle.PicklingError, match=words):
        dump([make()])


def test_dump_when_file_is_open_for_writing_is_refused():
    with (
        open(os.devnull, "w") as file,
        pytest.raises(pickle.PicklingError, match="writing only"),
    ):
        dump([file])


def test_dump_when_file_is_not_regular_is_refused():
    with open(os.devnull) as file, pytest.raises(pickle.PicklingError, match="regular file"):
        dump([file])


def test_dump_when_file_is_too_large_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 101)
    with (
        (tmp_path / "f").open("rb") as file,
        pytest.raises(pickle.PicklingError, match="101 bytes"),
    ):
        dump(file, file_limit_bytes=100)


def test_dump_when_fast_is_2_is_plain_pickle():
    with pytest.raises(pickle.PicklingError):
        dump(lambda: 1, fast=2)


def test_dump_when_fast_is_1_does_not_search_for_the_part():
    with pytest.raises(pickle.PicklingError) as caught:
        dump({"a": threading.Lock()}, fast=1)
    assert "['a']" not in str(caught.value)


# ---------------------------------------------------------------------- what can


def test_text_files_travel_at_their_position(tmp_path):
    (tmp_path / "f.txt").write_text("äbc\ndef\n")
    with (tmp_path / "f.txt").open() as file:
        assert file.read(2) == "äb"
        back = load(dump_bytes(file))
        assert back.read() == "c\ndef\n"
        assert back.name == str(tmp_path / "f.txt")
        assert file.read() == "c\ndef\n"  # ours has not moved


@pytest.mark.parametrize("buffering", [-1, 0])
def test_binary_files_travel_at_their_position(tmp_path, buffering):
    (tmp_path / "f").write_bytes(b"abcdef")
    with (tmp_path / "f").open("rb", buffering=buffering) as file:
        file.seek(2)
        assert load(dump_bytes(file)).read() == b"cdef"


def test_closed_files_travel_closed(tmp_path):
    (tmp_path / "f").write_text("")
    with (tmp_path / "f").open() as file:
        pass
    assert load(dump_bytes(file)).closed


def test_files_in_memory_travel_as_pickle_does_it():
    file = io.StringIO("abc")
    file.read(1)
    assert load(dump_bytes([file]))[0].read() == "bc"


def test_standard_streams_travel_by_reference(monkeypatch):
    stand_in = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stand_in)
    assert load(dump_bytes([stand_in]))[0] is stand_in


def test_transient_attributes_stay_here():
    class Thing:
        __transient__ = ("lock",)

        def __init__(self):
            self.lock = threading.Lock()
            self.x = 4

    class Slotted:
        __slots__ = ("lock", "x")
        __transient__ = "lock"

    slotted: Any = Slotted()
    slotted.lock, slotted.x = threading.Lock(), 5
    back, back_slotted = load(dump_bytes([Thing(), slotted]))
    assert vars(back) == {"x": 4}
    assert back_slotted.x == 5
    assert not hasattr(back_slotted, "lock")


def test_classes_come_back_as_themselves():
    @dataclasses.dataclass
    class Point:
        x: int

    class Colour(enum.Enum):
        RED = 1

    point, colour = load(dump_bytes((Point(3), Colour.RED)))
    assert point == Point(3)
    assert colour is Colour.RED


def test_unbound_variable_of_a_closure_is_named():
    def outer():
        def inner():
            return later

        dump_function(inner)
        later = 1
        return later

    with pytest.raises(pickle.PicklingError, match="'later'"):
        outer()


# ---------------------------------------------------------------------- functions


def test_function_payload_says_who_made_it_and_brings_its_source():
    def area(width):
        return np.pi * width

    data = dump_function(area)
    header = read_function_header(data)
    assert header.name.endswith("area")
    assert header.python.startswith("3.")
    assert header.packages["numpy"] == np.__version__
    assert any("np.pi * width" in source.text for source in header.sources)
    assert load_function(data).call(1) == np.pi


def test_function_payload_when_made_again_is_the_same():
    def area(width):
        return width

    assert dump_function(area) == dump_function(area)


def test_function_payload_when_damaged_says_so():
    data = dump_function(len)
    for bad in (b"", b"\x01abc", data[:9], data[:-1]):
        with pytest.raises(PayloadError):
            load_function(bad)


def test_references_collect_modules_and_code():
    found = References()

    def use():
        return np.ndarray, dataclasses.fields

    dump_function(use, references=found)
    assert {"numpy", "dataclasses"} <= found.modules
    assert use.__code__ in found.code


def test_open_file_when_it_cannot_be_read_is_left_where_it_was(tmp_path):
    path = tmp_path / "latin"
    path.write_bytes(b"ok\n" * 10_000 + b"\xff")
    with path.open(encoding="utf-8") as file:
        file.readline()
        with pytest.raises(pickle.PicklingError, match="cannot be read"):
            dump([file])
        assert file.tell() == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("packages", 5), ("packages", ["ab", "c"]), ("sources", 5), ("sources", [["f", 1]])),
        *(
            ("sources", [[1, 1, "x"]]),
            ("sources", [["f", "1", "x"]]),
            ("sources", [["f", 1, 2]]),
        ),
        *(("sources", [["f", 10**12, "x"]]), ("sources", [["f", -5, "x"]])),
    ],
)
def test_function_header_when_a_stranger_wrote_it_is_refused_in_words(field, value):
    header = {"name": "f", "python": "3.11.2", "packages": {}, "sources": [], field: value}
    with pytest.raises(PayloadError, match="damaged"):
        read_function_header(b"\x10" + pack_frame(header))
