import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_services.agent.proxy_head import HeadError, ProxyHead, read_head


def test_read_head_when_connect_then_is_a_tunnel():
    head = read_head(b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n")
    assert head == ProxyHead("pypi.org", 443, tunnel=True)


def test_read_head_when_connect_to_ipv6_then_host_has_no_brackets():
    assert read_head(b"CONNECT [2001:db8::1]:22 HTTP/1.1\r\n\r\n").host == "2001:db8::1"


def test_read_head_when_plain_http_then_rewrites_for_the_server():
    head = read_head(
        b"GET http://user:pw@example.org:81/a/b?c=d HTTP/1.1\r\nHost: example.org:81\r\n"
        b"Proxy-Connection: keep-alive\r\nProxy-Authorization: secret\r\nAccept: */*\r\n\r\n"
    )
    assert (head.host, head.port, head.tunnel) == ("example.org", 81, False)
    assert head.forward == (
        b"GET /a/b?c=d HTTP/1.1\r\nHost: example.org:81\r\nAccept: */*\r\n"
        b"Connection: close\r\n\r\n"
    )


def test_read_head_when_address_has_no_path_then_asks_for_the_root():
    assert read_head(b"GET http://a HTTP/1.0\r\n\r\n").forward.startswith(b"GET / HTTP/1.0\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1",
        b"GET https://a/ HTTP/1.1",
        b"GET ftp://a/ HTTP/1.1",
        b"CONNECT pypi.org HTTP/1.1",
        b"CONNECT :443 HTTP/1.1",
        b"CONNECT a:99999 HTTP/1.1",
        b"CONNECT a:0 HTTP/1.1",
        b"CONNECT [::1 HTTP/1.1",
        b"GET http://[ HTTP/1.1",
        b"SSH-2.0-x",
        b"",
    ],
)
def test_read_head_when_not_for_a_proxy_then_refuses(line):
    with pytest.raises(HeadError):
        read_head(line + b"\r\n\r\n")


@given(st.binary(max_size=200))
def test_read_head_when_given_anything_then_answers_or_refuses(data):
    try:
        head = read_head(data)
    except HeadError:
        return
    assert head.host
    assert 0 < head.port < 65536
