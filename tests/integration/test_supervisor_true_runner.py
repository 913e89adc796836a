"""Supervisor and runner as they are shipped, together."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.serialize.failure import load_failure
from picloud_jupyter.serialize.payload import digest, dump_call, dump_function, load
from picloud_services.agent.output_files import read
from tests.tools.runner_harness import make_bundle
from tests.tools.supervisor_harness import (
    Box,
    Frame,
    Station,
    chunk_header,
    closed_links,
    items,
)

__all__ = ["closed_links"]
KEY = "ab" * 32


@pytest.fixture(scope="module")
def true_station() -> Iterator[Station]:
    with tempfile.TemporaryDirectory(prefix="pcs") as folder:
        station = Station(Path(folder), make_bundle(Path(folder)))
        yield station
        station.close()


@pytest.fixture(scope="module")
def true_box(true_station: Station) -> Box:
    return true_station.start()


def call(box: Box, letter: str, function: Any, *arguments: tuple[Any, ...]) -> list[Frame]:
    """Run ``function`` for each of ``arguments``; return every frame up to the end."""
    begin(box, letter, function, *arguments)
    return box.until_end()


def begin(box: Box, letter: str, function: Any, *arguments: tuple[Any, ...]) -> None:
    """Send a chunk that runs ``function`` for each of ``arguments``."""
    data = dump_function(function)
    header = chunk_header(
        letter * 16,
        len(arguments),
        function=digest([data]),
        function_bytes=len(data),
        single_use=False,
        fresh=False,
        profile=False,
        fast=0,
        max_result_bytes=0,
        lease_key=KEY,
        user_id=0,
        kind="call",
        estimate_seconds=0.0,
    )
    pack = pack_records([b"".join(dump_call(args, {})) for args in arguments])
    box.peer.send(header, data, pack)


def bodies(frames: list[Frame]) -> list[bytes]:
    found = []
    for header, body in frames:
        at = 0
        for item in header.get("items", ()):
            found.append(body[at : at + item[6]])
            at += item[6]
    return found


def test_call_when_the_function_prints_and_returns_brings_both_back(true_box):
    def work(x):
        print("working on", x)
        return x * 2

    frames = call(true_box, "1", work, (1,), (21,))
    assert [load(body) for body in bodies(frames)] == [2, 42]
    assert read(true_box.logs, "1" * 16, 1, "stdout", 0, 100).data == b"working on 21\n"
    usage = frames[-1][0]["usage"]
    assert usage["rss_bytes"] > 1_000_000
    assert usage["elements"] == 2


def test_call_when_only_later_elements_print_each_has_its_own_output(true_box):
    def work(x):
        time.sleep(0.03)  # longer than the supervisor waits for more: each is read apart
        if x == 1:
            print("late on stdout")
        if x == 2:
            print("later on stderr", file=sys.stderr)

    call(true_box, "5", work, (0,), (1,), (2,), (3,))

    def printed(stream):
        return [read(true_box.logs, "5" * 16, n, stream, 0, 100).data for n in range(4)]

    assert printed("stdout") == [b"", b"late on stdout\n", b"", b""]
    assert printed("stderr") == [b"", b"", b"later on stderr\n", b""]


def test_call_when_the_last_element_fills_a_large_pipe_keeps_all_it_printed(true_box):
    def flood(_):
        import fcntl

        fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.write(1, b"y" * 300_000)

    call(true_box, "6", flood, (0,))
    part = read(true_box.logs, "6" * 16, 0, "stdout", 0, 1 << 20)
    assert (part.total_bytes, part.finished) == (300_000, True)
    call(true_box, "7", flood, (0,))
    assert read(true_box.logs, "7" * 16, 0, "stdout", 0, 1 << 20).total_bytes == 300_000


def test_revoke_when_the_rest_is_taken_back_the_running_element_keeps_its_output(true_box):
    def work(x):
        print("begun", x, flush=True)
        time.sleep(0.3)
        print("ended", x)

    begin(true_box, "8", work, (0,), (1,), (2,))
    true_box.peer.receive_until("started")
    true_box.peer.send({"t": "revoke", "lease": "8" * 16})
    frames = true_box.peer.receive_until("returned") + true_box.until_end()
    returned = next(header for header, _ in frames if header["t"] == "returned")
    assert (returned["first"], returned["count"]) == (1, 2)
    assert [item[0] for item in items(frames)] == [0]
    printed = read(true_box.logs, "8" * 16, 0, "stdout", 0, 100).data
    assert printed == b"begun 0\nended 0\n"


def test_call_when_one_element_raises_the_others_are_done(true_box):
    def divide(x):
        return 1 / x

    frames = call(true_box, "2", divide, (1,), (0,), (2,))
    assert [item[1] for item in items(frames)] == ["done", "error", "done"]
    assert "ZeroDivisionError" in load_failure(bodies(frames)[1]).traceback


def test_call_when_the_result_is_large_leaves_a_file(true_box):
    frames = call(true_box, "3", bytes, (200_000,))
    (item,) = items(frames)
    assert item[6] == 0
    path = Path(true_box.order.request.out_dir, item[7]["file"])
    assert path.stat().st_size == item[7]["size"]
    assert load(path.read_bytes()) == bytes(200_000)


def test_call_when_the_interpreter_is_ended_names_the_element(true_station):
    box = true_station.start()

    def leave(x):
        if x:
            os._exit(7)

    frames = call(box, "4", leave, (0,), (1,), (0,))
    exited = frames[-1][0]
    assert (exited["position"], exited["wait_status"]) == (1, 7 << 8)
    assert [item[0] for item in items(frames)] == [0]


def test_retire_when_the_runner_is_idle_ends_it_by_itself(true_station):
    box = true_station.start()
    box.peer.send({"t": "retire"})
    exited = box.peer.receive_until("exited")[-1][0]
    assert (exited["wait_status"], exited["asked"]) == (0, "shutdown")
