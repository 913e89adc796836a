"""Which control plane is meant, and how long to wait before asking it again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.transport import connection, inside
from picloud_jupyter.transport.endpoint import find_endpoint, parse_url
from picloud_jupyter.transport.retry import RetryLimits, delay_seconds


def test_nothing_named_is_the_embedded_service(monkeypatch, tmp_path):
    monkeypatch.setenv("PICLOUD_HOME", str(tmp_path))
    found = find_endpoint(environment={})
    assert found.local
    assert found.socket_path.endswith("/api.sock")


def test_environment_names_a_remote_one():
    found = find_endpoint(
        environment={"PICLOUD_URL": "https://lab:8443/pi/", "PICLOUD_API_KEY": "k"}
    )
    assert (found.host, found.port, found.tls, found.base_path) == ("lab", 8443, True, "/pi")
    assert found.key == "k"
    assert not found.local
    assert found.address == "https://lab:8443/pi"
    assert "'k'" not in repr(found)


def test_job_goes_before_the_environment_and_an_explicit_address_before_the_job():
    inside.set_current_job(inside.CurrentJob(1, 1, "l", 0, "00", "/run/picloud/api.sock"))
    try:
        environment = {"PICLOUD_URL": "https://lab"}
        assert find_endpoint(environment=environment).socket_path == "/run/picloud/api.sock"
        assert find_endpoint("https://other", environment=environment).host == "other"
    finally:
        inside.set_current_job(None)


@pytest.mark.parametrize(
    "url",
    [
        *("lab:80", "ftp://lab", "https://", "http://lab", "https://lab:99999", "unix://"),
        *("https://[::1", "https://lab/a b", "https://lab/\u00e9", "https://lab/\nX-Evil: 1"),
    ],
)
def test_wrong_or_unsafe_addresses_are_refused_with_a_hint(url):
    with pytest.raises(InvalidRequest):
        parse_url(url, "")


@pytest.mark.parametrize("key", ["k\n", "k1 k2", "\u20ac", "k\r\nX-Evil: 1"])
def test_keys_that_would_break_a_request_are_refused_and_not_shown(key):
    with pytest.raises(InvalidRequest) as caught:
        parse_url("https://lab", key)
    assert key not in str(caught.value)


def test_addresses_of_version_6_are_written_in_brackets():
    found = parse_url("http://[::1]:7/pi", "k")
    assert (found.authority, found.address) == ("[::1]:7", "http://[::1]:7/pi")


@pytest.mark.parametrize("url", ["http://127.0.0.1:80", "http://localhost", "http://[::1]:7"])
def test_plain_http_is_for_this_machine(url):
    assert not parse_url(url, "k").tls


@given(st.integers(1, 40), st.floats(0, 0.999))
def test_pauses_grow_to_their_limit_and_end(failures, dice):
    limits = RetryLimits(attempts=20)
    pause = delay_seconds(limits, failures, dice)
    if failures > 20:
        assert pause is None
    else:
        step = min(5.0, 0.05 * 2 ** (failures - 1))
        assert step / 2 <= pause <= step


def test_heads_are_parsed_and_what_is_none_is_refused():
    head = connection._parse_head(b"HTTP/1.1 404 Not Found\r\nX-A: b: c\r\nContent-Length:5")
    assert (head.status, head.headers) == (404, {"x-a": "b: c", "content-length": "5"})
    assert (head.body_bytes, head.chunked, head.closes) == (5, False, False)
    for wrong in (
        *(b"HELLO", b"HTTP/2 200", b"HTTP/1.1 abc", b""),
        b"HTTP/1.1 200 OK\r\nContent-Length: -1",
    ):
        with pytest.raises(connection.BadAnswerError):
            connection._parse_head(wrong)


@pytest.mark.parametrize(
    ("head", "body_bytes", "chunked", "closes"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", None, True, False),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0", 0, False, True),
        (b"HTTP/1.1 200 OK", None, False, True),
        (b"HTTP/1.1 100 Continue", 0, False, False),
        (b"HTTP/1.1 204 No Content", 0, False, False),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7", 0, False, False),
    ],
)
def test_heads_say_where_the_body_ends(head, body_bytes, chunked, closes):
    found = connection._parse_head(head)
    assert (found.body_bytes, found.chunked, found.closes) == (body_bytes, chunked, closes)
