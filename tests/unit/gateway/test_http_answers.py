"""Answers as bytes."""

from hypothesis import given
from hypothesis import strategies as st

from picloud_services.blobs.store import PIECE_BYTES
from picloud_services.gateway.http_answers import cut_or_join, head_of, held_bytes
from picloud_services.gateway.words import Reply

SIZES = st.sampled_from([0, 1, 1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 600_000])


@given(st.lists(SIZES, max_size=6))
def test_pieces_when_cut_and_joined_then_all_bytes_in_order_and_none_too_large(sizes):
    parts = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    pieces = list(cut_or_join(parts))
    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) <= PIECE_BYTES for piece in pieces)
    if sum(sizes) <= PIECE_BYTES:
        assert len(pieces) <= 1


def test_head_when_version_and_keep_alive_vary_then_connection_says_what_is_not_default():
    reply = Reply((b"ab",), status=299, headers={"X-A": "b"})
    common = b"HTTP/1.1 299 Unknown\r\nContent-Type: application/json\r\nContent-Length: 2\r\nX-A: b\r\n"
    assert head_of(reply, "1.1", keep_alive=True) == common + b"\r\n"
    close = common + b"Connection: close\r\n\r\n"
    assert head_of(reply, "1.1", keep_alive=False) == close
    assert head_of(reply, "1.0", keep_alive=False) == close
    kept = common + b"Connection: keep-alive\r\n\r\n"
    assert head_of(reply, "1.0", keep_alive=True) == kept


async def _no_stream():
    yield b""


def test_held_bytes_when_nobody_reads_then_what_is_at_hand_and_a_piece_at_each_stage():
    assert held_bytes(Reply()) == 0
    assert held_bytes(Reply((b"x" * 1000,))) == 2000
    large = 100 * PIECE_BYTES
    assert held_bytes(Reply((b"x" * large,))) == large + PIECE_BYTES
    assert held_bytes(Reply(stream=_no_stream(), stream_bytes=1000)) == 2000
    assert held_bytes(Reply(stream=_no_stream(), stream_bytes=large)) == 2 * PIECE_BYTES
