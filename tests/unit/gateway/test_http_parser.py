"""HTTP requests out of bytes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.errors import CloudException, InvalidRequest
from picloud_services.gateway.http_parser import ChunkedBody, LengthBody, parse_head


def test_head_when_whole_then_every_part_is_read():
    head = parse_head(
        b"PUT /v1/uploads/ab?x=1 HTTP/1.1\r\nHost: localhost\r\nX-PiCloud-Wire:  1 \r\nContent-Length: 12"
    )
    assert (head.method, head.path, head.query) == ("PUT", "/v1/uploads/ab", "x=1")
    assert head.headers == {"host": "localhost", "x-picloud-wire": "1", "content-length": "12"}
    assert (head.length_bytes, head.keep_alive) == (12, True)


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: Keep-Alive\r\n", True),
    ],
)
def test_head_when_version_and_connection_vary_then_keep_alive_follows(
    version, connection, expected
):
    head = parse_head(f"GET / HTTP/{version}\r\n{connection}Host: x".encode())
    assert head.keep_alive is expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET",
        b"GET  / HTTP/1.1",
        b"BREW / HTTP/1.1",
        b"GET http://other/ HTTP/1.1",
        b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\n: empty",
        b"GET / HTTP/1.1\r\nbad name: x",
        b"GET / HTTP/1.1\r\na: x\r\n folded",
        b"GET / HTTP/1.1\r\na: 1\nb: 2",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
        b"GET / HTTP/1.1\r\nContent-Length: +1",
        b"GET / HTTP/1.1\r\nContent-Length: 1_0",
        b"GET / HTTP/1.1\r\nContent-Length: \xb2",
        b"GET / HTTP/1.1\r\nContent-Length: " + b"9" * 19,
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked",
    ],
)
def test_head_when_ambiguous_or_broken_then_refused(data):
    with pytest.raises(InvalidRequest):
        parse_head(data)


def test_head_when_too_many_headers_then_431():
    lines = b"".join(b"\r\nh%d: x" % n for n in range(101))
    with pytest.raises(CloudException) as caught:
        parse_head(b"GET / HTTP/1.1" + lines)
    assert caught.value.status == 431


def test_head_when_http_2_then_505():
    with pytest.raises(CloudException) as caught:
        parse_head(b"GET / HTTP/2")
    assert caught.value.status == 505


@given(st.binary(max_size=200))
def test_head_when_arbitrary_bytes_then_nothing_but_our_error(data):
    with contextlib.suppress(InvalidRequest):
        parse_head(data)


def _take_all(body, stream, cuts, limit=1000):
    buffer = bytearray()
    found = bytearray()
    previous = 0
    for cut in [*sorted(cuts), len(stream)]:
        buffer += stream[previous:cut]
        previous = max(previous, cut)
        while piece := body.take(buffer, limit):
            assert len(piece) <= limit
            found += piece
    return bytes(found), bytes(buffer)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 400), max_size=8),
    st.integers(1, 50),
)
def test_chunked_body_when_cut_anywhere_then_content_and_rest_are_exact(chunks, cuts, limit):
    stream = b"".join(b"%x;note=1\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    body = ChunkedBody()
    cuts = [cut for cut in cuts if cut <= len(stream)]
    content, rest = _take_all(body, stream + b"NEXT", cuts, limit)
    assert content == b"".join(chunks)
    assert body.done
    assert rest == b"NEXT"


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5))
def test_length_body_when_cut_anywhere_then_content_and_rest_are_exact(content, cuts):
    body = LengthBody(len(content))
    cuts = [cut for cut in cuts if cut <= len(content)]
    assert _take_all(body, content + b"NEXT", cuts, 7) == (content, b"NEXT")
    assert body.done


@pytest.mark.parametrize(
    "stream",
    [
        b"xyz\r\n",
        b"-1\r\n",
        b"1\r\naXX2\r\n",
        b"0\r\nTrailer: x\r\n\r\n",
        b"1" * 200,
        b"\r\n\r\n",
    ],
)
def test_chunked_body_when_broken_then_refused(stream):
    body = ChunkedBody()
    with pytest.raises(InvalidRequest):
        _take_all(body, stream, [])


@given(st.binary(max_size=200))
def test_chunked_body_when_arbitrary_bytes_then_nothing_but_our_error(data):
    body = ChunkedBody()
    buffer = bytearray(data)
    try:
        while body.take(buffer, 16):
            pass
    except InvalidRequest:
        return
