"""The true runner under a true supervisor, in a container of the plain kind."""

import tempfile
import time
from pathlib import Path

import pytest

from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.serialize.failure import load_failure
from picloud_jupyter.serialize.payload import digest, dump_call, dump_function, load
from picloud_services.agent.output_files import read
from tests.tools.runner_harness import make_bundle
from tests.tools.supervisor_harness import Box, Station, chunk_header, closed_links, items

__all__ = ["closed_links"]


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    bundle = make_bundle(tmp_path_factory.mktemp("true"))
    with tempfile.TemporaryDirectory(prefix="pcs") as folder:
        station = Station(Path(folder), bundle)
        yield station.start()
        station.close()


def run(box: Box, function, *arguments, lease="a"):
    payload = dump_function(function)
    records = [b"".join(dump_call(args, {})) for args in arguments]
    header = chunk_header(
        lease * 16,
        len(arguments),
        function=digest([payload]),
        function_bytes=len(payload),
        single_use=False,
        fresh=False,
        profile=False,
        fast=0,
        max_result_bytes=0,
        lease_key="ab" * 32,
        user_id=1000,
        kind="call",
        estimate_seconds=0,
    )
    box.peer.send(header, payload, pack_records(records))
    frames = box.until_end()
    bodies: list[bytes] = []
    for frame, body in frames:
        at = 0
        for item in frame.get("items", ()):
            bodies.append(body[at : at + item[6]])
            at += item[6]
    return items(frames), bodies, frames[-1][0]


def test_elements_run_and_their_output_is_told_apart(box):
    def work(x):
        print("printed", x)
        if x == 3:
            raise ValueError("three")
        return x * x

    found, bodies, last = run(box, work, *((x,) for x in range(5)))
    assert [item[1] for item in found] == ["done", "done", "done", "error", "done"]
    assert load(bodies[4]) == 16
    assert load_failure(bodies[3]).message == "three"
    assert last["usage"]["threads"] == last["usage"]["children"] == 0
    output = read(box.logs, "a" * 16, 2, "stdout", 0, 1 << 20)
    assert output.data == b"printed 2\n"


def test_a_thousand_elements_end_in_order_and_quickly(box):
    begun = time.monotonic()
    found, bodies, _ = run(box, abs, *((x,) for x in range(1000)), lease="b")
    assert [item[0] for item in found] == list(range(1000))
    assert [load(body) for body in bodies] == list(range(1000))
    assert time.monotonic() - begun < 5
