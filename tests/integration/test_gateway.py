"""The gateway over real sockets: who may ask, what is taken, what is answered."""

import asyncio
import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import DiskFull
from picloud_jupyter.protocol.frames import pack_frame, split_frame
from picloud_jupyter.protocol.users import Quota
from picloud_services.base import filesystem
from picloud_services.base.filesystem import DiskSpace
from picloud_services.jobs.words import ResultItem
from tests.tools.gateway_harness import (
    Peer,
    call_frame,
    start_gateway,
)


def code_of(answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


# ------------------------------------------------------------------------------------ who asks
async def test_api_socket_when_made_then_private(gateway):
    assert gateway.api.stat().st_mode & 0o777 == 0o600


async def test_jobs_socket_when_no_key_or_a_wrong_one_then_401(gateway):
    peer = await Peer.open(gateway.inside)
    keys = [
        None,
        "Bearer",
        "Bearer nonsense",
        "Basic " + gateway.job_key(),
        "Bearer " + gateway.job_key()[:-1] + "x",
        "Bearer " + gateway.job_key(jid=8),  # not what the lease runs
        "Bearer " + gateway.job_key(attempt=2),
        "Bearer " + gateway.job_key(lease="f" * 16),
    ]
    for key in keys:
        headers = {"Authorization": key} if key else {}
        answer = await peer.ask("GET", "/v1/service", **headers)
        assert (answer.status, code_of(answer)) == (401, "not_authenticated"), key
    await peer.close()


async def test_jobs_socket_when_the_jobs_own_key_then_it_acts_as_its_user_and_is_the_parent(
    gateway,
):
    peer = await Peer.open(gateway.inside)
    bearer = "Bearer " + gateway.job_key()
    answer = await peer.ask("POST", "/v1/calls", call_frame(b"f", b"a"), Authorization=bearer)
    assert answer.status == 200
    user_id, spec, *_ = gateway.jobs.calls[0]
    assert (user_id, spec.parent_jid) == (os.getuid(), 7)
    await peer.close()


async def test_stop_when_asked_by_a_job_then_403_and_by_the_owner_then_done(gateway, peer):
    inside = await Peer.open(gateway.inside)
    refused = await inside.ask(
        "POST", "/v1/stop", {}, Authorization="Bearer " + gateway.job_key()
    )
    assert refused.status == 403
    assert gateway.stops == []
    assert (await peer.ask("POST", "/v1/stop", {"kill_jobs": True})).status == 200
    assert gateway.stops == [{"kill_jobs": True, "purge": False}]
    await inside.close()


async def test_spec_when_a_parent_is_claimed_from_outside_then_it_is_dropped(gateway, peer):
    frame = call_frame(b"f", b"a")
    header, body = split_frame(frame)
    header["spec"]["parent_jid"] = 3
    assert (await peer.ask("POST", "/v1/calls", pack_frame(header, body))).status == 200
    assert gateway.jobs.calls[0][1].parent_jid is None


@pytest.mark.parametrize(
    ("wire", "status", "words"),
    [
        ("0", 426, "Upgrade"),
        ("2", 426, "up --replace"),
        ("x", 400, "whole number"),
        ("1", 200, "pid"),
    ],
)
async def test_wire_version_when_not_ours_then_426_with_words(peer, wire, status, words):
    answer = await peer.ask("GET", "/v1/service", X_PiCloud_Wire=wire)
    assert answer.status == status
    assert words in answer.body.decode()


# ------------------------------------------------------------------------------ what is taken
async def test_call_when_sent_then_payloads_arrive_as_bytes(gateway, peer):
    answer = await peer.ask("POST", "/v1/calls", call_frame(b"function", b"arguments"))
    assert json.loads(answer.body) == {
        "jid": 1,
        "cached": False,
        "repeated": False,
        "warnings": [],
    }
    _, _, key, function, arguments = gateway.jobs.calls[0]
    assert (key, function.payload, arguments) == ("0" * 32, b"function", b"arguments")
    assert function.digest == hashlib.sha256(b"function").hexdigest()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": ""}, "key is missing"),
        ({"spec": {"function_name": "f"}}, "host_python"),
        ({"function": {"size_bytes": 1, "digest": "0" * 64}}, "sha256"),
        ({"function": {"size_bytes": 99}}, "99 bytes"),
        ({"arguments": {"size_bytes": 0}}, "does not name"),
        ({"arguments": {"size_bytes": 70_000}}, "uploaded first"),
        ({"arguments": {"size_bytes": 1, "upload": "0" * 32}}, "no upload"),
    ],
)
async def test_call_when_a_part_is_wrong_then_refused_with_its_name(
    gateway, peer, changes, words
):
    answer = await peer.ask("POST", "/v1/calls", call_frame(b"f", b"a", **changes))
    assert 400 <= answer.status < 500
    assert words in answer.body.decode()
    assert gateway.jobs.calls == []


async def test_call_when_its_python_is_not_here_then_env_missing_names_the_path(peer):
    frame = call_frame(b"f", b"a")
    header, body = split_frame(frame)
    header["spec"]["host_python"]["paths"] = ["/nowhere/lib"]
    answer = await peer.ask("POST", "/v1/calls", pack_frame(header, body))
    error = json.loads(answer.body)["error"]
    assert error["reason"] == "env_missing"
    assert "/nowhere/lib" in error["message"]


async def test_call_when_the_disk_is_down_to_its_floor_then_507_and_reading_goes_on(
    gateway, peer, monkeypatch
):
    monkeypatch.setattr(filesystem, "disk_space", lambda _folder: DiskSpace(2**40, 1))
    gateway.disk.refresh()
    answer = await peer.ask("POST", "/v1/calls", call_frame(b"f", b"a"))
    assert (answer.status, code_of(answer)) == (507, "disk_full")
    assert (await peer.ask("GET", "/v1/service")).status == 200


async def test_error_when_raised_by_a_service_then_json_with_status_and_hint(gateway, peer):
    gateway.jobs.raises = DiskFull("full", hint="free some")
    answer = await peer.ask("POST", "/v1/calls", call_frame(b"f", b"a"))
    error = json.loads(answer.body)["error"]
    assert answer.status == 507
    assert (error["code"], error["hint"], error["retry"]) == ("disk_full", "free some", True)


async def test_error_when_nobody_expected_it_then_500_without_its_text(gateway, peer, caplog):
    gateway.jobs.raises = RuntimeError("secret detail")
    answer = await peer.ask("POST", "/v1/calls", call_frame(b"f", b"a"))
    assert (answer.status, code_of(answer)) == (500, "internal_error")
    assert b"secret detail" not in answer.body
    assert "secret detail" in caplog.text


# -------------------------------------------------------------------------------------- HTTP
async def test_requests_when_pipelined_then_answered_in_order(peer):
    for path in ("/v1/service", "/v1/nowhere", "/v1/nodes"):
        peer.send("GET", path)
    answers = [await peer.receive() for _ in range(3)]
    assert [a.status for a in answers] == [200, 404, 200]


async def test_body_when_it_comes_in_single_bytes_then_taken(gateway, peer):
    frame = call_frame(b"f", b"a")
    head = f"POST /v1/calls HTTP/1.1\r\nHost: x\r\nContent-Length: {len(frame)}\r\n\r\n"
    for byte in head.encode() + frame:
        peer.writer.write(bytes([byte]))
        await peer.writer.drain()
    assert (await peer.receive()).status == 200


async def test_body_when_chunked_then_taken(peer):
    body = b'{"kill_jobs":false}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    peer.writer.write(b"POST /v1/stop HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert (await peer.receive()).status == 200
    assert (await peer.ask("GET", "/v1/service")).status == 200


async def test_body_when_continue_is_expected_then_said_first(peer):
    peer.writer.write(
        b"POST /v1/stop HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    assert await peer.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.writer.write(b"{}")
    assert (await peer.receive()).status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_when_over_its_limit_then_413_and_the_connection_goes_on(peer, chunked):
    body = b"x" * 5000
    if chunked:
        head = b"POST /v1/stop HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        peer.writer.write(head + b"1388\r\n" + body + b"\r\n0\r\n\r\n")
        answer = await peer.receive()
    else:
        answer = await peer.ask("POST", "/v1/stop", body)
    assert (answer.status, code_of(answer)) == (413, "payload_too_large")
    assert (await peer.ask("GET", "/v1/service")).status == 200


async def test_close_when_asked_for_then_done_after_the_answer(peer):
    answer = await peer.ask("GET", "/v1/service", Connection="close")
    assert answer.status == 200
    assert await peer.reader.read() == b""


# ------------------------------------------------------------------------------------- waiting
async def test_wait_when_the_client_goes_then_the_waiting_ends(gateway):
    peer = await Peer.open(gateway.api)
    peer.send("POST", "/v1/wait", b'{"jids":[[1,1]],"timeout_seconds":60}')
    await peer.writer.drain()
    await peer.close()
    async with asyncio.timeout(10):
        await gateway.jobs.cancelled.wait()


async def test_wait_when_asked_inside_a_job_then_its_cores_are_free_meanwhile(gateway):
    peer = await Peer.open(gateway.inside)
    bearer = "Bearer " + gateway.job_key()
    body = b'{"jids":[[1,1]],"timeout_seconds":60}'
    peer.send("POST", "/v1/wait", body, Authorization=bearer)
    async with asyncio.timeout(10):
        while gateway.blocked != [7]:
            await asyncio.sleep(0.01)
    gateway.jobs.finished.set()
    assert (await peer.receive()).status == 200
    assert gateway.blocked == [7, -7]
    await peer.ask("POST", "/v1/wait", body, Authorization=bearer)
    assert gateway.blocked == [7, -7]  # finished already: nothing was given back
    await peer.close()


async def test_log_when_followed_then_new_output_comes_as_it_is_printed(gateway, peer):
    gateway.output.text = b"one"
    first = await peer.ask("GET", "/v1/jobs/1/logs/stdout?offset=0&wait_seconds=30")
    assert (first.body, first.headers["x-picloud-next"]) == (b"one", "3")
    peer.send("GET", "/v1/jobs/1/logs/stdout?offset=3&wait_seconds=30")
    await peer.writer.drain()
    gateway.output.text = b"one two"
    gateway.events.publish("jobs.output", None)
    second = await peer.receive()
    assert (second.body, second.headers["x-picloud-finished"]) == (b" two", "0")
    gateway.jobs.finished.set()
    last = await peer.ask("GET", "/v1/jobs/1/logs/stdout?offset=7&wait_seconds=30")
    assert (last.body, last.headers["x-picloud-finished"]) == (b"", "1")
    tail = await peer.ask("GET", "/v1/jobs/1/logs/stderr?tail_bytes=3")
    assert tail.body == b"two"
    assert (await peer.ask("GET", "/v1/jobs/1/logs/stdin")).status == 400


# ------------------------------------------------------------------------------------- payloads
async def upload(peer: Peer, content: bytes) -> str:
    begun = json.loads(
        (await peer.ask("POST", "/v1/uploads", {"size_bytes": len(content)})).body
    )
    answer = await peer.ask("PUT", f"/v1/uploads/{begun['upload']}", content)
    assert json.loads(answer.body) == {
        "size_bytes": len(content),
        "digest": hashlib.sha256(content).hexdigest(),
    }
    return str(begun["upload"])


async def test_log_when_nothing_is_printed_while_other_jobs_change_then_seldom_looked_for(
    gateway, peer, monkeypatch
):
    looks = []
    read = gateway.output.read_output

    async def counted(*place):
        looks.append(place)
        return await read(*place)

    monkeypatch.setattr(gateway.output, "read_output", counted)
    following = asyncio.create_task(peer.ask("GET", "/v1/jobs/7/logs/stdout?wait_seconds=1"))
    while not following.done():
        gateway.events.publish("jobs.changed", [])
        await asyncio.sleep(0.005)
    assert (await following).body == b""
    assert 3 <= len(looks) <= 10  # 20, 40, 80, 160, 250, 250 ms


async def test_upload_when_streamed_then_a_blob_that_a_call_may_name(gateway, peer):
    content = os.urandom(3_000_000)
    name = await upload(peer, content)
    arguments = {"size_bytes": len(content), "upload": name}
    header, body = split_frame(call_frame(b"f", b""))
    frame = pack_frame({**header, "arguments": arguments}, body)
    assert (await peer.ask("POST", "/v1/calls", frame)).status == 200
    ref = gateway.jobs.calls[0][4]
    assert (await gateway.blobs.local_path(ref)).read_bytes() == content
    wrong = {"size_bytes": 5, "upload": name}
    assert (
        await peer.ask("POST", "/v1/calls", pack_frame({**header, "arguments": wrong}, body))
    ).status == 400


async def test_upload_when_local_then_the_client_writes_the_file(gateway, peer):
    content = os.urandom(100_000)
    begun = json.loads(
        (await peer.ask("POST", "/v1/uploads", {"size_bytes": len(content)})).body
    )
    Path(begun["path"]).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    finish = {"size_bytes": len(content), "digest": digest}
    path = f"/v1/uploads/{begun['upload']}"
    assert (await peer.ask("POST", path, finish)).status == 200
    assert (await peer.ask("POST", path, finish)).status == 200  # a repeated request
    assert await gateway.blobs.find(begun["upload"]) is not None


async def test_upload_when_begun_inside_a_job_then_no_path_is_given(gateway):
    peer = await Peer.open(gateway.inside)
    bearer = "Bearer " + gateway.job_key()
    answer = await peer.ask("POST", "/v1/uploads", {"size_bytes": 5}, Authorization=bearer)
    assert json.loads(answer.body)["path"] is None
    await peer.close()


async def test_upload_when_not_given_by_us_then_404_and_no_file(gateway, peer):
    for name in ("0" * 32, "..%2F..%2Fx", "x"):
        assert (await peer.ask("PUT", f"/v1/uploads/{name}", b"abc")).status == 404
    assert list((gateway.root / "blobs" / "incoming").iterdir()) == []


async def test_upload_when_it_is_nobodys_then_finishing_it_takes_nothing_of_the_quota(tmp_path):
    limited = await start_gateway(tmp_path, Quota(disk_bytes=1000))
    peer = await Peer.open(limited.api)
    answer = await peer.ask("POST", "/v1/uploads/" + "0" * 32, {"size_bytes": 900})
    assert answer.status == 404
    assert (await peer.ask("POST", "/v1/uploads", {"size_bytes": 900})).status == 200
    await peer.close()
    await limited.gateway.close()


async def test_upload_when_the_client_dies_then_nothing_is_left(gateway, peer):
    begun = json.loads((await peer.ask("POST", "/v1/uploads", {"size_bytes": 10**6})).body)
    other = await Peer.open(gateway.api)
    other.writer.write(
        f"PUT /v1/uploads/{begun['upload']} HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n".encode()
    )
    other.writer.write(b"x" * 500_000)
    await other.writer.drain()
    incoming = gateway.root / "blobs" / "incoming"
    async with asyncio.timeout(10):
        while not list(incoming.iterdir()):
            await asyncio.sleep(0.01)
        await other.close()
        while list(incoming.iterdir()):
            await asyncio.sleep(0.01)


async def test_upload_when_the_disk_would_fill_then_507(gateway, peer):
    space = os.statvfs(gateway.root)
    too_much = space.f_bavail * space.f_frsize
    answer = await peer.ask("POST", "/v1/uploads", {"size_bytes": too_much})
    assert (answer.status, code_of(answer)) == (507, "disk_full")


async def test_upload_when_over_the_services_limit_then_413(peer):
    answer = await peer.ask("POST", "/v1/uploads", {"size_bytes": 2 * 10**15})
    assert (answer.status, code_of(answer)) == (413, "payload_too_large")


async def test_code_when_sent_then_kept_under_its_digest_alone(peer):
    content = b"PK archive"
    digest = hashlib.sha256(content).hexdigest()
    assert (await peer.ask("GET", f"/v1/code/{digest}")).status == 404
    assert (await peer.ask("PUT", f"/v1/code/{'0' * 64}", content)).status == 400
    assert (await peer.ask("PUT", f"/v1/code/{digest}", content)).status == 200
    assert (await peer.ask("PUT", f"/v1/code/{digest}", content)).status == 200
    assert (await peer.ask("GET", f"/v1/code/{digest}")).status == 200
    assert (await peer.ask("PUT", "/v1/code/..%2fx", content)).status == 400
    assert (await peer.ask("PUT", f"/v1/code/{'1' * 64}", b"x" * 2_000_000)).status == 413


async def test_results_when_large_and_local_then_a_path_else_ranges_over_http(gateway, peer):
    content = os.urandom(2_000_000)
    ref = await gateway.uploads.take(
        os.getuid(), _payload(len(content), await upload(peer, content))
    )
    gateway.jobs.results_by_jid = {
        1: ResultItem(1, "done", "done", body=b"small"),
        2: ResultItem(2, "done", "done", size_bytes=ref.size_bytes, blob=ref),
    }
    asked = {"jids": [[1, 1], [2, 2]], "local": True}
    header, body = split_frame((await peer.ask("POST", "/v1/results", asked)).body)
    small, large = header["items"]
    assert bytes(body) == b"small"
    assert (small["size"], small["file"], small["blob"]) == (5, None, False)
    assert Path(large["file"]).read_bytes() == content

    whole = await peer.ask("GET", "/v1/jobs/2/result")
    assert (whole.status, whole.body) == (200, content)
    part = await peer.ask("GET", "/v1/jobs/2/result", Range="bytes=10-19")
    assert (part.status, part.body) == (206, content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    beyond = await peer.ask("GET", "/v1/jobs/1/result", Range="bytes=5-")
    assert beyond.status == 416


async def test_results_when_asked_inside_a_job_then_never_a_path(gateway, peer):
    content = os.urandom(70_000)
    ref = await gateway.uploads.take(
        os.getuid(), _payload(len(content), await upload(peer, content))
    )
    gateway.jobs.results_by_jid = {2: ResultItem(2, "done", "done", size_bytes=1, blob=ref)}
    inside = await Peer.open(gateway.inside)
    asked = {"jids": [[2, 2]], "local": True}
    bearer = "Bearer " + gateway.job_key()
    header, _ = split_frame(
        (await inside.ask("POST", "/v1/results", asked, Authorization=bearer)).body
    )
    assert header["items"][0]["file"] is None
    await inside.close()


async def test_download_when_the_client_is_slow_then_little_is_held(gateway, peer):
    content = os.urandom(8_000_000)
    ref = await gateway.uploads.take(
        os.getuid(), _payload(len(content), await upload(peer, content))
    )
    gateway.jobs.results_by_jid = {2: ResultItem(2, "done", "done", size_bytes=1, blob=ref)}
    slow = socket.socket(socket.AF_UNIX)
    slow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(slow, str(gateway.api))
    await asyncio.get_running_loop().sock_sendall(
        slow, b"GET /v1/jobs/2/result HTTP/1.1\r\n\r\n"
    )
    (server, *_) = gateway.gateway._servers
    async with asyncio.timeout(10):
        while not (held := _held_bytes(server)):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    held = max(held, _held_bytes(server))
    assert 0 < held <= 500_000
    slow.close()


def _held_bytes(server) -> int:
    transports = [connection.transport for connection in server.connections]
    return max((t.get_write_buffer_size() for t in transports), default=0)


def _payload(size_bytes: int, name: str):
    from picloud_jupyter.protocol.jobs import PayloadRef

    return PayloadRef(size_bytes, upload=name)
