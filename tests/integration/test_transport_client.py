"""The HTTP client against a real server that misbehaves in every way we know."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import NotFound, Unavailable, Unreachable
from picloud_jupyter.transport import client as client_module
from picloud_jupyter.transport.client import Canceller, Client, RequestCancelledError
from picloud_jupyter.transport.connection import Connection
from picloud_jupyter.transport.endpoint import Endpoint
from picloud_jupyter.transport.retry import RetryLimits
from tests.tools.play_gateway import PlayedGateway

FAST = RetryLimits(attempts=3, first_seconds=0.001, longest_seconds=0.01)


@pytest.fixture
def gateway(tmp_path: Path):
    played = PlayedGateway(tmp_path / "api.sock", tmp_path)
    yield played
    played.close()


@pytest.fixture
def client(gateway, tmp_path):
    found = Client(Endpoint(socket_path=str(tmp_path / "api.sock")), limits=FAST)
    yield found
    found.close()


def test_requests_in_a_row_share_one_connection(gateway, client):
    for _ in range(5):
        assert client.get("/v1/service")["pid"] == 4711
    assert gateway.connections == 1


def test_answers_are_read_whole_whatever_their_size(gateway, client):
    for size in (0, 1, 65_000, 300_000, 5_000_000):
        jid = gateway.add(b"", b"x" * size, {})
        body = client.exchange("GET", f"/v1/jobs/{jid}/arguments").answer().body
        assert bytes(body) == b"x" * size


def test_large_bodies_of_many_parts_arrive_whole(gateway, client):
    parts = [bytes([i % 251]) * (i % 7 * 1000) for i in range(2000)]
    client.put_bytes("/v1/uploads/u1", parts)
    assert gateway.uploads["u1"] == b"".join(parts)


@pytest.mark.parametrize("fault", ["drop", "drop_after", "busy", "garbage"])
def test_request_is_sent_again_when_its_answer_is_lost(gateway, client, fault):
    gateway.faults.append((fault, "/v1/service"))
    assert client.get("/v1/service")["pid"] == 4711


def test_stale_connections_cost_no_try_and_no_pause(gateway, client):
    client.get("/v1/service")
    client.limits = RetryLimits(attempts=0)
    gateway.cut()
    assert client.get("/v1/service")["pid"] == 4711


def test_client_gives_up_with_words_after_its_limit(gateway, client):
    gateway.faults += [("drop", "/v1/service")] * 10
    with pytest.raises(Unreachable, match="GET /v1/service, tried 4 times"):
        client.get("/v1/service")


@pytest.mark.parametrize("used_before", [False, True])
def test_client_gives_up_soon_where_nobody_answers(tmp_path, monkeypatch, used_before):
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.05)
    client = Client(Endpoint(socket_path=str(tmp_path / "still.sock")), limits=RetryLimits())
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(tmp_path / "still.sock"))
        stopped.listen()
        for _ in range(used_before):
            client.give_back(client.take()[0])
        with pytest.raises(Unreachable, match="tried 3 times: timed out"):
            client.get("/v1/service")


def test_connection_that_is_given_back_while_the_client_closes_is_closed(client):
    class ClosedMeanwhile(list[Connection]):
        def append(self, connection: Connection) -> None:
            client.close()
            super().append(connection)

    connection, _ = client.take()
    client._idle = ClosedMeanwhile()
    client.give_back(connection)
    assert not connection.reusable
    assert client._idle == []


def test_busy_control_plane_is_named_after_the_limit(gateway, client):
    gateway.faults += [("busy", "/v1/service")] * 10
    with pytest.raises(Unavailable, match="busy"):
        client.get("/v1/service")


def test_nothing_listens_raises_unreachable_with_the_address(tmp_path):
    client = Client(Endpoint(socket_path=str(tmp_path / "none.sock")), limits=FAST)
    with pytest.raises(Unreachable, match=r"none\.sock"):
        client.get("/v1/service")


def test_revive_is_called_when_nothing_listens(tmp_path):
    started = []

    def revive() -> None:
        started.append(PlayedGateway(tmp_path / "late.sock", tmp_path))

    client = Client(
        Endpoint(socket_path=str(tmp_path / "late.sock")), revive=revive, limits=FAST
    )
    assert client.get("/v1/service")["pid"] == 4711
    client.close()
    started[0].close()


def test_errors_of_the_control_plane_are_raised_by_class(gateway, client):
    with pytest.raises(NotFound, match="99") as caught:
        client.post("/v1/status", {"jids": [[99, 99]]})
    assert caught.value.jid == 99


def test_threads_never_share_a_connection_in_use(gateway, client):
    jids = [gateway.add(b"", str(i).encode() * 1000, {}) for i in range(8)]
    wrong = []

    def ask(jid: int) -> None:
        for _ in range(50):
            body = client.exchange("GET", f"/v1/jobs/{jid}/arguments").answer().body
            if bytes(body) != gateway.jobs[jid]["arguments"]:
                wrong.append(jid)

    threads = [threading.Thread(target=ask, args=(jid,)) for jid in jids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert gateway.connections <= 8


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_forked_child_opens_connections_of_its_own(gateway, client):
    client.get("/v1/service")
    child = os.fork()
    if child == 0:
        ok = all(client.get("/v1/service")["pid"] == 4711 for _ in range(20))
        os._exit(0 if ok else 1)
    for _ in range(20):
        assert client.get("/v1/service")["pid"] == 4711
    assert os.waitpid(child, 0)[1] == 0
    assert gateway.connections == 2


def test_long_poll_ends_at_once_by_the_canceller(gateway, client):
    gateway.hold = True
    jid = gateway.add(b"", b"", {})
    canceller = Canceller()
    timer = threading.Timer(0.05, canceller.cancel)
    timer.start()
    started = time.monotonic()
    request = {"jids": [[jid, jid]], "timeout_seconds": 30, "until": "all"}
    with pytest.raises(RequestCancelledError):
        client.post("/v1/wait", request, wait_seconds=30, canceller=canceller)
    assert time.monotonic() - started < 5


def test_long_poll_ends_at_once_by_a_signal(gateway, client):
    gateway.hold = True
    jid = gateway.add(b"", b"", {})
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client.post(
                "/v1/wait",
                {"jids": [[jid, jid]], "timeout_seconds": 30, "until": "all"},
                wait_seconds=30,
            )
        assert time.monotonic() - started < 5
    finally:
        signal.signal(signal.SIGALRM, before)
    assert client.get("/v1/service")["pid"] == 4711  # the interrupted answer is not mixed up
