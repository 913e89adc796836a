"""HTTP requests out of bytes, wherever they are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_services.gateway.http_parser import MAX_HEAD_BYTES, RequestParser


def feed(parser: RequestParser, data: bytes, cuts=()) -> None:
    previous = 0
    for cut in [*sorted(cuts), len(data)]:
        parser.feed(memoryview(data)[previous:cut])
        previous = max(previous, cut)


def parse(data: bytes, cuts=()) -> RequestParser:
    parser = RequestParser()
    feed(parser, data, cuts)
    return parser


@given(st.lists(st.integers(0, 300), max_size=12))
def test_requests_when_cut_anywhere_then_every_part_is_read(cuts):
    data = (
        b"PUT /v1/uploads/ab?x=1 HTTP/1.1\r\nHost: localhost\r\nX-PiCloud-Wire:  1 \t\r\nContent-Length: 5\r\n\r\nhello"
        b"POST /v1/stop HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;note=1\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        b"GET / HTTP/1.0\r\n\r\n"
    )
    parser = parse(data, [min(cut, len(data)) for cut in cuts])
    assert parser.error is None
    put, post, get = parser.requests
    assert (put.head.method, put.head.path, put.head.query) == ("PUT", "/v1/uploads/ab", "x=1")
    assert put.head.headers == {
        "host": "localhost",
        "x-picloud-wire": "1",
        "content-length": "5",
    }
    assert (put.head.length_bytes, put.take(), put.whole) == (5, b"hello", True)
    assert (post.head.length_bytes, post.take(), post.whole) == (None, b"abcde", True)
    assert (get.head.length_bytes, get.take(), get.whole) == (0, b"", True)
    assert [r.keep_alive for r in (put, post, get)] == [True, True, False]
    assert not parser.head_open


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_bytes_when_arbitrary_then_nothing_is_raised(pieces):
    parser = RequestParser()
    for piece in pieces:
        parser.feed(memoryview(piece))


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_body_when_its_chunks_are_arbitrary_then_nothing_is_raised(pieces):
    parser = parse(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in pieces:
        parser.feed(memoryview(piece))
    assert parser.requests


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.1", "Connection: other, Close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: Keep-Alive\r\n", True),
    ],
)
def test_keep_alive_when_version_and_connection_vary_then_it_follows(
    version, connection, keep_alive
):
    (request,) = parse(f"GET / HTTP/{version}\r\n{connection}\r\n".encode()).requests
    assert request.keep_alive is keep_alive


def test_requests_before_an_error_are_kept_and_none_follows():
    parser = parse(b"GET /a HTTP/1.1\r\n\r\nnonsense\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
    feed(parser, b"GET /c HTTP/1.1\r\n\r\n")
    assert [r.head.path for r in parser.requests] == ["/a"]
    assert parser.error is not None


def test_header_when_it_is_none_of_a_request_then_no_later_one_has_it():
    """httptools gives trailers away as it gives headers."""
    parser = parse(
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: x\r\n\r\n"
        b"GET / HTTP/1.1\r\n\r\n"
    )
    assert len(parser.requests) == 1
    assert "trailers" in str(parser.error)


@pytest.mark.parametrize("size_bytes", [MAX_HEAD_BYTES - 100, MAX_HEAD_BYTES])
@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
@pytest.mark.parametrize("piece_bytes", [1000, 10**6])
def test_head_when_longer_than_allowed_then_refused_ended_or_not(size_bytes, end, piece_bytes):
    data = b"GET / HTTP/1.1\r\nA:" + b"x" * size_bytes + end
    parser = parse(data, range(0, len(data), piece_bytes))
    assert (parser.error is None) is (size_bytes < MAX_HEAD_BYTES)
    assert parser.error is None or parser.error.status == 431


def test_head_when_it_has_many_short_headers_then_refused_too():
    assert parse(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 20_000).error is not None


@pytest.mark.parametrize("endless", [b"0\r\nA: ", b"1;"])
def test_body_when_framing_never_ends_then_refused(endless):
    parser = parse(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + endless)
    for _ in range(70):
        feed(parser, b"x" * 1000)
    assert parser.error is not None
    assert parser.error.status == 431


def test_head_when_it_begins_behind_a_large_body_then_only_its_own_bytes_count():
    body = b"x" * 200_000
    parser = parse(b"POST / HTTP/1.1\r\nContent-Length: 200000\r\n\r\n" + body + b"GET /next")
    feed(parser, b" HTTP/1.1\r\n\r\n")
    assert [r.head.path for r in parser.requests] == ["/", "/next"]
