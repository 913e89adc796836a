"""Negative test 28, and 4: bytes that two readers of HTTP may cut differently, on both sockets.

Each is refused, the connection ends, and the request that hides behind it is never served.
"""

import json
import socket
import time

import pytest

from picloud_jupyter.protocol import routes
from tests.security.conftest import Attacked
from tests.tools.unix_requests import BASE_URL

HIDDEN = b"PUT /v1/secrets/SMUGGLED HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"
POST = b"POST /v1/status HTTP/1.1\r\n"
MOST_BYTES = 120 * 1024**2
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(HIDDEN)

SMUGGLED = {
    "CL.TE": CHUNKED + LENGTH + b"\r\n0\r\n\r\n",
    "TE.CL": POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CL.CL": POST + b"Content-Length: 0\r\n" + LENGTH + b"\r\n",
    "CL list": POST + b"Content-Length: 0, 0\r\n\r\n",
    "CL sign": POST + b"Content-Length: +0\r\n\r\n",
    "CL minus": POST + b"Content-Length: -1\r\n\r\n",
    "CL hexadecimal": POST + b"Content-Length: 0x0\r\n\r\n",
    "CL space": POST + b"Content-Length : 0\r\n\r\n",
    "CL overflow": POST + b"Content-Length: 18446744073709551616\r\n\r\n",
    "TE xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE twice": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "TE list": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "TE tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "TE 1.0": CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n",
    "bare LF": POST.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n",
    "bare LF behind a header": POST + b"A: b\nContent-Length: 0\r\n\r\n",
    "bare CR": POST + b"A: b\rContent-Length: 0\r\n\r\n",
    "folded": POST + b"A: b\r\n Content-Length: 0\r\n\r\n",
    "NUL": POST + b"A: b\0c\r\n\r\n",
    "no colon": POST + b"Content-Length 0\r\n\r\n",
    "space first": b" " + POST + b"\r\n",
    "HTTP/0.9": b"GET /v1/service\r\n\r\n",
    "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "upgrade": POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\n\r\n",
    "host twice": POST + b"Host: a\r\nHost: b\r\n\r\n",
    "authorization twice": POST + b"Authorization: a\r\nAuthorization: b\r\n\r\n",
    "chunk size wrong": CHUNKED + b"\r\n1\r\n0\r\n\r\n",
    "chunk size minus": CHUNKED + b"\r\n-1\r\n\r\n",
    "chunk size endless": CHUNKED + b"\r\n" + b"0" * 100_000,
    "chunk bare LF": CHUNKED + b"\r\n0\n\n",
    "chunk extension LF": CHUNKED + b'\r\n0;a="\n"\r\n\r\n',
    "trailer": CHUNKED + b"\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
    "header of 64 KiB": POST + b"A: " + b"x" * 70_000 + b"\r\n\r\n",
    "10,000 headers": POST + b"A: b\r\n" * 12_000 + b"\r\n",
    "target of 64 KiB": b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


def say(path: str, data: bytes, seconds: float = 20.0) -> bytes:
    """Return all that is answered to ``data`` until the service hangs up."""
    found = b""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(seconds)
        peer.connect(path)
        try:
            peer.sendall(data)
            while piece := peer.recv(65536):
                found += piece
        except ConnectionError:
            pass  # it hung up before we had said all
    return found


@pytest.mark.parametrize("way", SMUGGLED)
@pytest.mark.parametrize("where", ["users", "jobs"])
def test_28_a_request_that_can_be_read_in_two_ways_hides_no_other(
    attacked: Attacked, way: str, where: str
) -> None:
    path = attacked.socket if where == "users" else attacked.jobs_socket
    answer = say(str(path), SMUGGLED[way] + HIDDEN)
    statuses = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/")]
    assert statuses in ([b"400"], [b"401"], [b"431"], [b"505"]), answer[:500]
    listed = attacked.http.get(BASE_URL + routes.SECRETS, timeout=20).json()
    assert "SMUGGLED" not in [line["name"] for line in listed["secrets"]]


def test_4_a_body_that_ends_early_does_nothing(attacked: Attacked) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(attacked.socket))
        peer.sendall(b"PUT /v1/secrets/CUT HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf")
        peer.shutdown(socket.SHUT_WR)
        peer.settimeout(20)
        assert b"200" not in peer.recv(1000)[:20]
    listed = attacked.http.get(BASE_URL + routes.SECRETS, timeout=20).json()
    assert "CUT" not in [line["name"] for line in listed["secrets"]]


def test_4_a_body_without_end_is_refused_at_its_limit(attacked: Attacked) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(30)
        peer.connect(str(attacked.socket))
        peer.sendall(b"POST /v1/status HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        sent_bytes = 0
        try:
            while sent_bytes < MOST_BYTES:
                peer.sendall(piece)
                sent_bytes += len(piece)
        except ConnectionError:
            pass  # it hung up; what it said before can still be read
        answer = peer.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
    assert sent_bytes < MOST_BYTES


@pytest.mark.parametrize("size_bytes", [10**10, 10**13, 2**53 - 1, 2**63])
def test_4_an_upload_for_which_there_is_no_room_is_refused_before_it_comes(
    attacked: Attacked, size_bytes: int
) -> None:
    answer = attacked.http.post(
        BASE_URL + routes.UPLOADS, json={"size_bytes": size_bytes}, timeout=20
    )
    free = attacked.free_bytes()
    assert answer.status_code in ((200, 507, 413) if size_bytes < free else (400, 413, 507))


def test_4_a_client_that_never_ends_its_head_holds_up_nobody(attacked: Attacked) -> None:
    slow = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    try:
        for peer in slow:
            peer.connect(str(attacked.socket))
            peer.sendall(b"GET /v1/service HTTP/1.1\r\nA: ")
        began = time.monotonic()
        answer = attacked.http.get(BASE_URL + routes.NODES, timeout=20)
        assert answer.status_code == 200
        assert time.monotonic() - began < 5
    finally:
        for peer in slow:
            peer.close()


def test_28_two_requests_in_one_write_are_two_answers_in_order(attacked: Attacked) -> None:
    first = b"GET /v1/nodes HTTP/1.1\r\n\r\n"
    second = b"GET /v1/nowhere HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = say(str(attacked.socket), first + second)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    error = rest[rest.index(b"HTTP/1.1 404") :].partition(b"\r\n\r\n")[2]
    assert json.loads(error)["error"]["code"] == "not_found"
