"""Every decoder of foreign bytes, with bytes nobody meant: its declared error or a value, soon, in little memory."""

import contextlib
import struct
import tracemalloc
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picloud_jupyter.protocol.frames import PREFIX
from tests.security.decoders import DECODERS

EXAMPLES = 60
MOST_BYTES = 24 * 1024**2
DEEP = 100_000

BOMBS = {
    "nothing": b"",
    "deep": b"[" * DEEP + b"]" * DEEP,
    "deep and open": b'{"a":' * DEEP,
    "deep in a frame": PREFIX.pack(2 * DEEP, 0) + b"[" * DEEP + b"]" * DEEP,
    "deep behind a byte": b"\x03" + PREFIX.pack(2 * DEEP, 0) + b"[" * DEEP + b"]" * DEEP,
    "a size that lies": PREFIX.pack(2**32 - 1, 2**64 - 1) + b"{}",
    "a count that lies": struct.pack(">I", 2**32 - 1) + b"\xff" * 100,
    "a long number": b'{"pid":' + b"9" * 5000 + b',"start_time":1}',
    "a number of 4,000 digits": b'{"pid":' + b"9" * 4000 + b',"start_time":1}',
    "a large float": b'{"pid":1e999,"start_time":1e999}',
    "not a number": b'{"pid":NaN,"start_time":Infinity}',
    "wrong types": b'{"pid":[],"start_time":{},"cgroups":1,"init_pid":"x","error":[],"t":null}',
    "an array": b"[1,2,3]",
    "null": b"null",
    "a text": b'"text"',
    "half a character": b'{"error":{"code":"\\ud800","message":"\\udfff"}}',
    "a megabyte of one byte": b"a" * 1024**2,
    "a megabyte of escapes": b"\x1b_picloud;" * 100_000,
    "a megabyte of braces": b"{" * 1024**2,
    "a megabyte of commas": b"," * 1024**2,
    "a megabyte of lines": b"a: b\r\n" * 170_000,
    "zeros": bytes(1024**2),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", DECODERS)
def test_a_bomb_is_refused_as_declared_in_little_memory(name: str, bomb: str) -> None:
    decoder = DECODERS[name]
    tracemalloc.start()
    try:
        with contextlib.suppress(*decoder.refused):
            decoder.read(BOMBS[bomb])
    finally:
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most_bytes < MOST_BYTES


def changed(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Return what becomes of one of ``seeds`` when pieces are cut, changed and repeated."""

    @st.composite
    def draw_changed(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data)))
            until = draw(st.integers(at, min(len(data), at + 8)))
            data[at:until] = draw(st.binary(max_size=8) | st.just(bytes(data[at:until]) * 3))
        return bytes(data)

    return draw_changed()


@pytest.mark.parametrize("name", DECODERS)
def test_bytes_nobody_meant_are_refused_as_declared(name: str) -> None:
    decoder = DECODERS[name]

    @settings(
        max_examples=EXAMPLES,
        deadline=timedelta(seconds=2),
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(changed(decoder.seeds) | st.binary(max_size=200))
    def read(data: bytes) -> None:
        with contextlib.suppress(*decoder.refused):
            decoder.read(data)

    read()


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_takes_what_it_is_for(name: str) -> None:
    """Else only its first check would be tried."""
    decoder = DECODERS[name]
    for seed in decoder.seeds[:1]:
        decoder.read(seed)
