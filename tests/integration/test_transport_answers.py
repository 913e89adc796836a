"""What a server sends back, byte by byte: answers that lie are refused, none answers the next request."""

import socket
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.transport.connection import BadAnswerError, Connection
from picloud_jupyter.transport.endpoint import Endpoint

HEAD = b"HTTP/1.1 200 OK\r\n"


def receive(answer: bytes):
    """Return the response to ``answer`` and its connection; the peer then closes."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(answer)
    connection = Connection(ours)
    try:
        return connection.receive(5), connection
    finally:
        connection._socket.close()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabcdefgh\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
    ],
)
def test_answer_when_its_size_is_none_then_refused(answer):
    with pytest.raises(BadAnswerError):
        receive(answer)


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 2\r\n\r\nok" + HEAD + b"Content-Length: 0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + HEAD,
    ],
)
def test_connection_when_more_came_than_was_asked_for_then_not_used_again(answer):
    response, connection = receive(answer)
    assert bytes(response.body) == b"ok"
    assert not connection.reusable


def test_connection_when_an_answer_is_whole_then_used_again():
    for body in (
        b"Content-Length: 2\r\n\r\nok",
        b"Transfer-Encoding: chunked\r\n\r\n2 ;x=y\r\nok\r\n0\r\n\r\n",
    ):
        response, connection = receive(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + body)
        assert (response.status, bytes(response.body)) == (200, b"ok")
        assert connection.reusable


def test_connection_when_the_certificates_cannot_be_read_then_their_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PICLOUD_CA_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(InvalidRequest, match=r"PICLOUD_CA_FILE.*none\.pem"):
        Connection.open(Endpoint(host="127.0.0.1", port=9, tls=True))
