"""Failures: words for everybody, the exception for the client, never more than a body holds."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.frames import FrameError, split_frame
from picloud_jupyter.serialize.failure import (
    MAX_FRAME_BYTES,
    dump_failure,
    load_failure,
    read_failure,
)


def raised(make):
    try:
        make()
    except BaseException as exc:
        return exc
    raise AssertionError


def test_failure_when_loadable_brings_the_exception_and_its_cause():
    def make():
        try:
            raise KeyError("k")
        except KeyError as exc:
            raise ValueError("v") from exc

    found = load_failure(dump_failure(raised(make), "the text"))
    assert (found.type_name, found.module, found.message) == ("ValueError", "builtins", "v")
    assert found.traceback == "the text"
    assert isinstance(found.exception, ValueError)
    assert isinstance(found.exception.__cause__, KeyError)


def test_failure_when_context_is_implicit_keeps_it():
    def make():
        try:
            raise KeyError("k")
        except KeyError:
            raise ValueError("v")  # noqa: B904

    found = load_failure(dump_failure(raised(make), "")).exception
    assert found is not None
    assert isinstance(found.__context__, KeyError)


def test_failure_when_exception_does_not_pickle_keeps_the_words():
    class Odd(Exception):
        def __reduce__(self):
            raise TypeError("never")

    found = load_failure(dump_failure(Odd("what"), "text"))
    assert found.exception is None
    assert found.message == "what"
    assert "could not be pickled" in found.why_not


def test_failure_when_exception_does_not_load_there_is_not_sent():
    class TwoArguments(Exception):
        def __init__(self, a, b):
            super().__init__(a)

    header, body = split_frame(dump_failure(TwoArguments(1, 2), ""))
    assert header["loadable"] is False
    assert not body


def test_failure_when_body_is_foreign_does_not_raise():
    import pickle

    from picloud_jupyter.protocol.frames import pack_frame

    gone = b"\x01" + pickle.dumps(1)[:-1] + b"cno_such_module\nX\n."
    found = load_failure(pack_frame({"type": "X", "message": "m"}, gone))
    assert found.exception is None
    assert "no_such_module" in found.why_not


def test_failure_when_exit_is_raised_brings_no_exception():
    assert load_failure(dump_failure(SystemExit(3), "")).exception is None


def test_failure_when_text_of_exception_fails_still_works():
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    assert "cannot be made" in read_failure(dump_failure(Odd(), "")).message


@given(st.integers(0, 300_000), st.integers(0, 300_000), st.sampled_from("a\nä\U0001f40d\x00"))
def test_failure_when_anything_is_long_fits_one_body(message, text, character):
    data = dump_failure(ValueError(character * message), character * text)
    assert len(data) <= MAX_FRAME_BYTES
    assert read_failure(data).type_name == "ValueError"


def test_failure_when_bytes_are_foreign_says_so():
    with pytest.raises(FrameError):
        load_failure(b"abc")


def test_failure_when_the_names_of_its_class_are_endless_then_they_are_cut():
    kind = type("A" * 200_000, (Exception,), {"__module__": "m\0" * 100_000})
    data = dump_failure(kind("what"), "text")
    assert len(data) <= MAX_FRAME_BYTES
    found = read_failure(data)
    assert found.type_name.startswith("AAA")
    assert (found.message, found.traceback) == ("what", "text")


def test_failure_when_the_exception_holds_much_data_then_that_is_not_copied():
    class Holder:
        loaded = 0

        def __setstate__(self, state):
            Holder.loaded += 1

        def __getstate__(self):
            return bytearray(8_000_000)

    error = ValueError("what")
    error.data = Holder()  # type: ignore[attr-defined]
    tracemalloc.start()
    data = dump_failure(error, "text")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000  # the data and its pickle, and nothing that was loaded from it
    assert Holder.loaded == 0
    assert load_failure(data).exception is None
