"""Plays the agent: a real launcher, real supervisors, containers of the plain kind."""

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from picloud_jupyter.protocol.frames import FrameReader, pack_frame, pack_records
from picloud_jupyter.protocol.jobs import ContainerKind, HostPython, SandboxSpec
from picloud_services.agent.orders import (
    RequestFields,
    StartOrder,
    launcher_command,
    start_frame,
)
from picloud_services.agent.processes import find_process

ROOT = Path(__file__).parents[2]
PYTHON = HostPython(
    executable=sys.executable,
    prefix=sys.prefix,
    base_prefix=sys.base_prefix,
    version="3",
    sys_path=tuple(path for path in sys.path if path),
)
HELLO = {"t": "hello", "wire": 1, "oldest": 1, "role": "agent"}
Frame = tuple[dict[str, Any], bytes]


class Peer:
    """A blocking end of a link."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, link: socket.socket) -> None:
        self.opened.append(link)
        self.link = link
        self._reader = FrameReader()
        self._frames: list[Frame] = []

    def send(self, header: dict[str, Any], *bodies: bytes) -> None:
        self.link.sendall(pack_frame(header, *bodies))

    def receive(self, seconds: float = 10.0) -> Frame:
        """Return the next frame; fails the test when none comes."""
        end_at = time.monotonic() + seconds
        while not self._frames:
            ready, _, _ = select.select([self.link], [], [], max(0, end_at - time.monotonic()))
            assert ready, "no frame came in time"
            data = self.link.recv(1 << 20)
            assert data, "the link was closed"
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def receive_until(self, name: str, seconds: float = 10.0) -> list[Frame]:
        """Return all frames up to the first ``name``."""
        frames = [self.receive(seconds)]
        while frames[-1][0]["t"] != name:
            frames.append(self.receive(seconds))
        return frames

    def is_closed(self, seconds: float = 5.0) -> bool:
        ready, _, _ = select.select([self.link], [], [], seconds)
        return bool(ready) and self.link.recv(1) == b""


class Box:
    """One container: its order, its supervisor, and a link to it."""

    def __init__(self, order: StartOrder, pid: int) -> None:
        self.order = order
        self.pid = pid
        self.logs = order.logs
        self.peer: Peer = self.connect()
        self.hello, _ = self.peer.receive()
        if not self.hello["ready"]:
            first, _ = self.peer.receive()
            self.first = first

    def connect(self) -> Peer:
        link = socket.socket(socket.AF_UNIX)
        link.connect(f"{self.order.folder}/supervisor.sock")
        peer = Peer(link)
        peer.send(HELLO)
        return peer

    def reconnect(self) -> dict[str, Any]:
        self.peer = self.connect()
        hello, _ = self.peer.receive()
        return hello

    def chunk(self, lease: str, *programs: str, **fields: Any) -> str:
        """Send a chunk whose elements are ``programs`` of the fake runner; return its lease."""
        lease = lease * 16
        self.peer.send(chunk_header(lease, len(programs), **fields), b"f", pack(programs))
        return lease

    def run(self, *programs: str, lease: str = "a", **fields: Any) -> list[Frame]:
        """Send a chunk and return every frame up to its end."""
        self.chunk(lease, *programs, **fields)
        return self.until_end()

    def until_end(self) -> list[Frame]:
        frames: list[Frame] = []
        while True:
            frames.append(self.peer.receive())
            header = frames[-1][0]
            if header["t"] in ("exited", "start_failed") or header.get("end"):
                return frames

    def acknowledge_all(self) -> None:
        self.peer.send({"t": "ack", "n": 10**9})

    def wait_gone(self, seconds: float = 10.0) -> None:
        """Wait until the supervisor's process has ended and left nothing."""
        wait_ended(self.pid, seconds)


def chunk_header(lease: str, count: int, **fields: Any) -> dict[str, Any]:
    return {
        "t": "chunk",
        "lease": lease,
        "slot": "slot",
        "sandbox": "s",
        "function": "d" * 64,
        "function_bytes": 1,
        "jids": [[1, count]],
        "attempt": 1,
        "max_runtime_seconds": None,
        "files": [],
        **fields,
    }


def pack(programs: tuple[str, ...]) -> bytes:
    return pack_records([program.encode() for program in programs])


def items(frames: list[Frame]) -> list[list[Any]]:
    return [item for header, _ in frames if header["t"] == "batch" for item in header["items"]]


def covered(frames: list[Frame], lease: str) -> list[int]:
    """Return the positions of ``lease`` that ``frames`` answer for."""
    found: list[int] = []
    for header, _ in frames:
        if header.get("lease") != lease:
            continue
        if header["t"] == "batch":
            found += [item[0] for item in header["items"]]
        elif header["t"] == "returned":
            found += range(header["first"], header["first"] + header["count"])
        elif header["t"] == "exited" and header["position"] is not None:
            found += range(header["position"], header["position"] + header["begun"])
    return sorted(found)


class Station:
    """A launcher and the folders of a service."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder = folder
        self.bundle = bundle
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(
            str(ROOT / part) for part in ("", "services", "kernels")
        )
        with theirs:
            self.process = subprocess.Popen(
                launcher_command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        self.link = Peer(ours)
        self._count = 0
        self.pids: list[int] = []

    def order(self, **changes: Any) -> StartOrder:
        self._count += 1
        name = f"c{self._count}"
        folder = self.folder / "c" / name
        layer = self.folder / "layers" / name
        for made in (folder / "run", layer / "out"):
            made.mkdir(parents=True)
        variables = changes.pop("variables", {})
        request = RequestFields(
            container=name,
            spec=SandboxSpec(user_id=os.getuid(), host_python=PYTHON),
            run_dir=str(folder / "run"),
            out_dir=str(layer / "out"),
            layer_dir=str(layer),
            bundle=str(self.bundle),
            code="",
            host_uid=os.getuid(),
            variables=variables,
        )
        given: dict[str, Any] = {
            "container": name,
            "folder": str(folder),
            "kind": ContainerKind.PLAIN,
            "sandbox": "s",
            "request": request,
            "logs": str(self.folder / "logs"),
        }
        return StartOrder(**{**given, **changes})

    def start(self, **changes: Any) -> Box:
        order = self.order(**changes)
        self.link.send(start_frame(order))
        answer, _ = self.link.receive()
        assert answer["t"] == "started", answer
        self.pids.append(answer["pid"])
        return Box(order, answer["pid"])

    def close(self) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, 15)
            except ProcessLookupError:
                continue
        for pid in self.pids:
            wait_ended(pid)
        self.link.link.close()
        self.process.wait(10)


def wait_ended(pid: int, seconds: float = 10.0) -> None:
    """Wait until a process has ended, buried or not."""
    end_at = time.monotonic() + seconds
    while find_process(pid) is not None:
        assert time.monotonic() < end_at, "the supervisor is still there"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("bundle")
    runner = bundle / "picloud_kernels" / "runner" / "main.py"
    runner.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("fake_runner.py"), runner)
    return bundle


@pytest.fixture(scope="module")
def station(fake_bundle: Path) -> Iterator[Station]:
    with tempfile.TemporaryDirectory(prefix="pcs") as folder:
        station = Station(Path(folder), fake_bundle)
        yield station
        station.close()


@pytest.fixture(autouse=True)
def closed_links() -> Iterator[None]:
    """Close the links that a test opened and left."""
    before = len(Peer.opened)
    yield
    while len(Peer.opened) > before:
        Peer.opened.pop().close()


__all__ = ["Box", "Frame", "Peer", "Station", "closed_links", "fake_bundle", "station"]
