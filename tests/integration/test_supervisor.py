"""The supervisor with real processes: what the agent hears, whatever the runner does."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from picloud_jupyter.protocol.frames import pack_frame
from picloud_services.agent import launcher
from picloud_services.agent.orders import start_frame
from picloud_services.agent.output_files import read
from tests.tools.supervisor_harness import (
    Box,
    Peer,
    Station,
    chunk_header,
    closed_links,
    covered,
    fake_bundle,
    items,
    pack,
    station,
)

__all__ = ["closed_links", "fake_bundle", "station"]


@pytest.fixture(scope="module")
def shared_box(station):
    """A container that the tests which do not end it share."""
    return station.start()


def printed(box: Box, lease: str, position: int, stream: str = "stdout") -> bytes:
    return read(box.logs, lease, position, stream, 0, 1 << 20).data


TOLD_TO_LEAVE = """
import json, os, signal, socket, sys
from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent.agent_door import listen
from picloud_services.agent.container import ContainerError
from picloud_services.agent.orders import read_start_frame
from picloud_services.agent.supervisor import Supervisor

order = read_start_frame(json.loads(sys.argv[1]))

class Refusing:
    kind = ContainerKind.PLAIN
    def inside_paths(self, request):
        return dict.fromkeys(("home", "run_dir", "out_dir", "bundle"), "")
    def start(self, request):
        os.kill(os.getpid(), signal.SIGTERM)
        raise ContainerError("not today")
    def clean(self, request, running):
        print(os.path.exists(f"{order.folder}/status.json"))

listener = listen(f"{order.folder}/supervisor.sock")
moved = socket.socket(fileno=os.dup2(listener.fileno(), 100))
listener.close()
Supervisor(order, Refusing(), moved, 1).run()
print(os.path.exists(f"{order.folder}/status.json"))
"""


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_at, "it did not come about in time"
        time.sleep(0.005)


def forged(**fields) -> str:
    header = {"t": "result", "p": 0, "r": "done", "at": 1.0, "s": 0.0, "u": 0.0, "y": 0.0}
    return "raw:" + pack_frame({**header, **fields}).hex()


def test_run_when_all_is_well_reports_one_batch_with_bodies_and_usage(shared_box):
    frames = shared_box.run("out:hello result:3", "result:2 err:oops", "", lease="0")
    (header, body) = frames[-1]
    assert [item[:2] + item[6:] for item in header["items"]] == [
        [0, "done", 3, None],
        [1, "done", 2, None],
        [2, "done", 0, None],
    ]
    assert body == b"xxxxx"
    assert header["end"] is True
    assert header["running"] is None
    assert list(header)[-1] == "items"
    assert header["usage"]["rss_bytes"] == 2000
    assert header["usage"]["shared"] is True
    assert header["usage"]["memory_peak_bytes"] > 0
    lease = "0" * 16
    assert printed(shared_box, lease, 0) == b"hello"
    assert printed(shared_box, lease, 1, "stderr") == b"oops"
    assert printed(shared_box, lease, 2) == b""


def test_run_when_elements_are_long_each_has_a_peak_of_its_own(shared_box):
    frames = shared_box.run("eat:60000000", "sleep:0.06", lease="1")
    eaten, slept = (item[7]["memory_peak_bytes"] for item in items(frames))
    assert eaten > slept + 30_000_000
    usage = frames[-1][0]["usage"]
    assert usage["memory_peak_bytes"] >= eaten
    assert usage["shared"] is True
    assert usage["disk_read_bytes"] >= 0


def test_run_when_two_chunks_are_given_the_second_follows_by_itself(shared_box):
    first = shared_box.chunk("2", "sleep:0.02", "sleep:0.02")
    second = shared_box.chunk("3", "out:second")
    frames = shared_box.until_end() + shared_box.until_end()
    assert covered(frames, first) == [0, 1]
    assert covered(frames, second) == [0]
    assert printed(shared_box, second, 0) == b"second"


def test_run_when_a_third_chunk_comes_it_is_returned(shared_box):
    shared_box.chunk("4", "sleep:0.1")
    shared_box.chunk("5", "")
    third = shared_box.chunk("6", "", "")
    header, _ = shared_box.peer.receive()
    assert (header["t"], header["lease"], header["count"]) == ("returned", third, 2)
    assert header["over"] is True
    shared_box.until_end()
    shared_box.until_end()


def test_run_when_the_chunk_is_slow_says_started_output_and_results_on_the_way(shared_box):
    lease = shared_box.chunk("7", "out:abc sleep:0.3", "sleep:0.3")
    frames = shared_box.until_end()
    names = [header["t"] for header, _ in frames]
    assert names.count("started") == 1
    assert {"t": "started", "lease": lease, "position": 0} in [header for header, _ in frames]
    output = next(header for header, _ in frames if header["t"] == "output")
    assert (output["position"], output["out_bytes"]) == (0, 3)
    batches = [header for header, _ in frames if header["t"] == "batch"]
    assert [(len(b["items"]), b["running"], b["end"]) for b in batches] == [
        (1, 1, False),
        (1, None, True),
    ]


def test_run_when_payloads_are_files_hands_over_descriptors_in_order(shared_box, tmp_path):
    files = []
    for i in range(450):  # more than fit in one message
        path = tmp_path / str(i)
        path.write_text(f"<{i}>")
        files.append([0, str(path), 3, ""])
    lease = shared_box.chunk("8", "fds", files=files)
    frames = shared_box.until_end()
    assert covered(frames, lease) == [0]
    assert frames[-1][1].decode() == "|".join(f"<{i}>" for i in range(450))


def test_run_when_a_payload_is_a_link_or_missing_fails_the_lease_alone(shared_box, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    for path in (link, tmp_path / "missing"):
        lease = shared_box.chunk("9", "", files=[[0, str(path), 1, ""]])
        header, _ = shared_box.peer.receive()
        assert (header["t"], header["lease"]) == ("start_failed", lease)
        assert str(path) in header["message"]
    assert covered(shared_box.run("", lease="a"), "a" * 16) == [0]


def test_revoke_when_elements_have_not_started_returns_exactly_those(shared_box):
    lease = shared_box.chunk("b", *["sleep:0.15"] * 5)
    while shared_box.peer.receive()[0]["t"] != "started":
        pass
    shared_box.peer.send({"t": "revoke", "lease": lease})
    frames = shared_box.until_end()
    assert covered(frames, lease) == [0, 1, 2, 3, 4]
    returned = next(header for header, _ in frames if header["t"] == "returned")
    assert (returned["first"], returned["count"]) == (1, 4)


def test_output_when_it_is_large_and_has_no_end_of_line_is_kept_whole(shared_box):
    shared_box.run("flood:3000000", "out:next", lease="c")
    assert read(shared_box.logs, "c" * 16, 0, "stdout", 0, 10_000_000).data == b"y" * 3_000_000
    assert printed(shared_box, "c" * 16, 1) == b"next"


def test_reconnect_when_frames_were_not_acknowledged_sends_them_again(shared_box):
    shared_box.acknowledge_all()
    first = shared_box.run("result:5", lease="d")[-1]
    again = shared_box.chunk("e", "sleep:0.2")
    hello = shared_box.reconnect()
    assert hello["ready"] is True
    assert hello["leases"] == [[again, "slot"]]
    assert hello["elements"] > 0
    assert shared_box.peer.receive() == first
    shared_box.until_end()
    shared_box.acknowledge_all()
    shared_box.reconnect()
    assert shared_box.run("", lease="f")[-1][0]["lease"] == "f" * 16


def test_connect_when_the_wire_version_is_unknown_is_refused(station):
    box = station.start()
    link = socket.socket(socket.AF_UNIX)
    link.connect(f"{box.order.folder}/supervisor.sock")
    stranger = Peer(link)
    stranger.send({"t": "hello", "wire": 99, "oldest": 98, "role": "agent"})
    header, _ = stranger.receive()
    assert header["t"] == "refused"
    assert "99" in header["message"]
    assert stranger.is_closed()


@pytest.mark.parametrize(
    ("program", "status"),
    [("exit:3", 3 << 8), ("exit:0", 0), (f"kill:{signal.SIGSEGV:d}", signal.SIGSEGV)],
)
def test_run_when_the_runner_dies_names_its_element_and_returns_the_rest(
    station, program, status
):
    box = station.start()
    waiting_frames = box.run("", f"out:last_words {program}", "", "", lease="a")
    exited = waiting_frames[-1][0]
    assert (exited["t"], exited["position"], exited["asked"]) == ("exited", 1, None)
    assert exited["wait_status"] & ~0x80 == status
    assert covered(waiting_frames, "a" * 16) == [0, 1, 2, 3]
    assert printed(box, "a" * 16, 1) == b"last_words"
    late = box.chunk("b", "", "")
    header, _ = box.peer.receive()
    assert (header["t"], header["lease"], header["count"]) == ("returned", late, 2)
    box.acknowledge_all()
    box.wait_gone()
    assert not Path(box.order.folder, "supervisor.sock").exists()
    assert not Path(box.order.folder, "status.json").exists()


def test_run_when_the_runner_dies_with_a_chunk_waiting_returns_all_of_it(station):
    box = station.start()
    box.chunk("a", "sleep:0.05 exit:1")
    waiting = box.chunk("b", "", "")
    frames = box.until_end()
    assert covered(frames, "a" * 16) == [0]
    assert covered(frames, waiting) == [0, 1]


@pytest.mark.parametrize("asked", ["killed", "oom", "shutdown"])
def test_kill_when_asked_ends_the_container_within_a_second(station, asked):
    box = station.start()
    lease = box.chunk("a", "sleep:60", "")
    while box.peer.receive()[0]["t"] != "started":
        pass
    began = time.monotonic()
    box.peer.send({"t": "kill", "asked": asked, "lease": None, "position": None})
    frames = box.until_end()
    assert time.monotonic() - began < 1
    exited = frames[-1][0]
    assert (exited["asked"], exited["position"], exited["wait_status"]) == (asked, 0, 9)
    assert covered(frames, lease) == [0, 1]


def test_kill_when_the_position_is_not_the_running_one_spares_it(station):
    box = station.start()
    lease = box.chunk("a", "sleep:0.2", "", "")
    while box.peer.receive()[0]["t"] != "started":
        pass
    box.peer.send({"t": "kill", "asked": "killed", "lease": lease, "position": 2})
    frames = box.until_end()
    assert [item[0] for item in items(frames)] == [0]
    assert covered(frames, lease) == [0, 1, 2]
    box.chunk("b", "sleep:60")
    while box.peer.receive()[0]["t"] != "started":
        pass
    box.peer.send({"t": "kill", "asked": "killed", "lease": "b" * 16, "position": 0})
    assert box.until_end()[-1][0]["position"] == 0


def test_run_when_an_element_is_over_its_max_runtime_kills_it_alone(station):
    box = station.start()
    lease = box.chunk("a", "sleep:0.2", "sleep:60", "", max_runtime_seconds=0.5)
    began = time.monotonic()
    frames = box.until_end()
    assert 0.6 < time.monotonic() - began < 2
    exited = frames[-1][0]
    assert (exited["asked"], exited["position"]) == ("timeout", 1)
    assert covered(frames, lease) == [0, 1, 2]


PROFILES = "".join(
    forged(p=position, profile="x" * 2**20)[len("raw:") :] for position in range(1, 10)
)
BREAKERS = {
    "a wrong position": forged(p=5),
    "a reason of ours": forged(r="killed"),
    "a path": forged(file="../../status.json", size=1, digest=""),
    "a huge frame": "raw:" + struct.pack(">IQ", 10, 2**40).hex(),
    "no frame": "raw:" + (b"GET / HTTP/1.1\r\n\r\n" * 3).hex(),
    "a body over 64 KiB": "result:70000",
    "an early end": "raw:" + pack_frame({"t": "end", "lease": "a" * 16}).hex(),
    "closing its link": "close",
    "a result of an element that it did not begin": forged(p=1) + forged(p=2)[len("raw:") :],
    "notes without end": "raw:" + PROFILES,
}


@pytest.mark.parametrize("program", BREAKERS.values(), ids=BREAKERS)
def test_run_when_the_runner_breaks_the_protocol_is_killed_and_says_so(station, program):
    box = station.start()
    frames = box.run("", program, "", lease="a")
    exited = frames[-1][0]
    assert exited["t"] == "exited"
    assert "broke the protocol" in exited["message"] or "closed" in exited["message"]
    assert covered(frames, "a" * 16) == [0, 1, 2]


def test_run_when_somebody_speaks_for_the_runner_gives_back_only_what_never_began(
    station, tmp_path
):
    box = station.start()
    began = tmp_path / "began"
    began.touch()
    words = ["sleep:0.2", f"also:{'ff' * 12}", "", "", "sleep:60", "", ""]
    box.chunk("a", *(f"note:{began} {word}" for word in words))
    wait_until(began.read_text)
    os.kill(box.pid, signal.SIGSTOP)  # it is late, as on a busy machine
    wait_until(lambda: began.read_text().split()[-1] == "4")
    os.kill(box.pid, signal.SIGCONT)
    frames = box.until_end()
    assert [item[0] for item in items(frames)] == [0]
    exited = frames[-1][0]
    assert (exited["position"], exited["begun"], exited["asked"]) == (1, 4, "broken")
    (back,) = [header for header, _ in frames if header["t"] == "returned"]
    assert (back["first"], back["count"]) == (5, 2)
    assert began.read_text().split() == ["0", "1", "2", "3", "4"]


def test_run_when_a_runner_gives_back_what_it_may_still_begin_is_not_believed(station):
    box = station.start()
    end = {"t": "end", "lease": "a" * 16, "rss_bytes": 1, "threads": 1, "children": 0}
    lie = "also:" + pack_frame({**end, "spent": 3}).hex()
    frames = box.run(f"{lie} sleep:60", "", "", lease="a")
    exited = frames[-1][0]
    assert (exited["asked"], exited["position"], exited["begun"]) == ("broken", 0, 1)
    assert "gave back elements that it may still begin" in exited["message"]


def test_run_when_the_runner_fills_the_pipe_of_its_tokens_is_killed_and_says_so(station):
    box = station.start()
    told = box.run("mint:70000", lease="a")
    end_at = time.monotonic() + 10
    while told[-1][0]["t"] != "exited":
        assert time.monotonic() < end_at, "nobody minded"
        told += box.run("", lease="b")
    assert "broke the protocol" in told[-1][0]["message"]
    last = told[-2][0]
    assert (last["t"], last["lease"]) in [("start_failed", "b" * 16), ("returned", "b" * 16)]


def test_run_when_markers_are_missing_holds_the_result_back_until_the_end(station):
    box = station.start()
    box.chunk("a", "nomarker", "sleep:0.3 exit:1")
    frames = box.until_end()
    batches = [header for header, _ in frames if header["t"] == "batch"]
    assert [batch["items"][0][0] for batch in batches] == [0]
    assert frames.index(next(f for f in frames if f[0]["t"] == "batch")) == len(frames) - 2


def test_start_when_the_runner_dies_before_it_is_ready_says_what_it_said(station):
    order = station.order(variables={"FAKE_RUNNER_DIES": "1"})
    station.link.send(start_frame(order))
    answer, _ = station.link.receive()
    box = Box.__new__(Box)
    box.order, box.pid, box.logs = order, answer["pid"], order.logs
    box.peer = box.connect()
    header = box.peer.receive_until("start_failed")[-1][0]
    assert header["lease"] is None
    assert "there is no such module" in header["message"]
    box.acknowledge_all()
    box.wait_gone()


def test_start_when_the_supervisor_is_killed_before_it_listens_is_lost(station, monkeypatch):
    monkeypatch.setattr(launcher, "hold_layer", lambda *_: os.kill(os.getpid(), 9))
    answer = launcher._answer(start_frame(station.order()))
    assert (answer["t"], answer["reason"]) == ("failed", "lost_worker")


def test_start_when_the_folder_is_missing_is_answered_failed(station):
    order = station.order()
    station.link.send(start_frame(replace(order, folder="/nowhere/at/all")))
    answer, _ = station.link.receive()
    assert answer["t"] == "failed"
    assert answer["container"] == order.container
    station.link.send({"t": "start", "container": "x"})
    answer, _ = station.link.receive()
    assert "missing" in answer["message"]


def test_retire_when_a_chunk_runs_lets_it_end(station):
    box = station.start()
    box.chunk("a", "sleep:0.1", "")
    box.peer.send({"t": "retire"})
    frames = box.peer.receive_until("exited")
    assert covered(frames, "a" * 16) == [0, 1]
    exited = frames[-1][0]
    assert (exited["lease"], exited["position"], exited["wait_status"]) == (None, None, 0)
    assert exited["asked"] == "shutdown"


def test_agent_when_it_is_away_misses_nothing(station):
    box = station.start()
    lease = box.chunk("a", *["out:x sleep:0.01 result:20"] * 20)
    box.peer.link.close()
    wait_until(lambda: printed(box, lease, 5) == b"x")
    os.kill(box.hello["init_pid"], signal.SIGKILL)
    wait_until(lambda: '"exited"' in Path(box.order.folder, "status.json").read_text())
    box.reconnect()
    frames = box.peer.receive_until("exited")
    assert covered(frames, lease) == list(range(20))
    assert [header["n"] for header, _ in frames] == list(range(1, len(frames) + 1))


def test_orphan_when_no_agent_comes_back_kills_its_container_and_leaves(station):
    box = station.start(orphan_seconds=0.3)
    box.chunk("a", "sleep:60")
    while box.peer.receive()[0]["t"] != "started":
        pass
    box.peer.link.close()
    box.wait_gone()
    assert not Path(f"/proc/{box.hello['init_pid']}").exists()


def test_supervisor_when_its_folder_was_removed_keeps_no_frames_for_nobody(station):
    box = station.start()
    box.run("result:1", lease="b")  # not acknowledged
    box.peer.link.close()
    os.kill(box.hello["init_pid"], signal.SIGKILL)
    wait_until(lambda: '"exited"' in Path(box.order.folder, "status.json").read_text())
    shutil.rmtree(box.order.folder)
    box.wait_gone(seconds=20)


def test_supervisor_when_launcher_and_agent_are_gone_goes_on(fake_bundle, tmp_path_factory):
    with tempfile.TemporaryDirectory(prefix="pcs") as folder:
        station = Station(Path(folder), fake_bundle)
        box = station.start()
        lease = box.chunk("a", "sleep:0.3 result:4")
        box.peer.link.close()
        station.process.kill()
        station.process.wait()
        assert box.reconnect()["leases"] == [[lease, "slot"]]
        assert covered(box.until_end(), lease) == [0]
        status = json.loads(Path(box.order.folder, "status.json").read_text())
        assert (status["pid"], status["state"]) == (box.pid, "ready")
        assert status["start_time"] == box.hello["start_time"]
        assert status["init_pid"] == box.hello["init_pid"]
        os.kill(box.pid, signal.SIGTERM)
        box.wait_gone()
        assert not Path(f"/proc/{box.hello['init_pid']}").exists()


def test_chunk_when_a_large_map_is_run_is_read_by_a_slow_agent(station):
    """The pipes are drained and the chunk ends though the agent reads nothing of 20 MB."""
    box = station.start()
    lease = "a" * 16
    box.peer.send(chunk_header(lease, 400), b"f", pack(("result:60000 out:x",) * 400))
    wait_until(lambda: printed(box, lease, 399) == b"x")
    frames = box.until_end()
    assert covered(frames, lease) == list(range(400))
    assert sum(len(body) for _, body in frames) == 400 * 60000


def test_status_is_there_until_all_is_clean_so_that_an_agent_can_go_on_with_that(station):
    order = json.dumps(start_frame(station.order()))
    said = subprocess.run(
        [sys.executable, "-c", TOLD_TO_LEAVE, order],
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert said.stdout.split() == [b"True", b"False"]
