"""Plays the supervisor for a real runner: socket pair, token pipe, output pipes, a plain process."""

import array
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.frames import FrameReader, Pack, pack_frame, pack_records
from picloud_jupyter.serialize.failure import Failure, load_failure
from picloud_jupyter.serialize.payload import digest, dump_call, dump_function, load

ROOT = Path(__file__).parents[2]
LEASE = "0123456789abcdef"
LEASE_KEY = "ab" * 32
_EXEC_WITH_3_AND_4 = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def make_bundle(folder: Path) -> Path:
    """Return a folder with links to what the runner's bundle holds."""
    import cloudpickle

    bundle = folder / "bundle"
    bundle.mkdir()
    for source in (
        ROOT / "picloud_jupyter",
        ROOT / "kernels" / "picloud_kernels",
        Path(cloudpickle.__file__).parent,
    ):
        (bundle / source.name).symlink_to(source)
    return bundle


class Element:
    """The end of one element: its frame, its body, and what it printed."""

    def __init__(self, frame: dict[str, Any], body: bytes, out: bytes, err: bytes) -> None:
        self.frame = frame
        self.body = body
        self.out = out
        self.err = err

    @property
    def reason(self) -> str:
        return str(self.frame["r"])

    @property
    def value(self) -> Any:
        assert self.reason == "done", self.failure.traceback
        return load(self.body)

    @property
    def failure(self) -> Failure:
        return load_failure(self.body)


class RunnerHarness:
    """One runner process. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        sys_path: list[str] | None = None,
        submitting_folder: str = "",
        isolated: bool = False,
        code: str | None = None,
        variables: dict[str, str] | None = None,
        executable: str = sys.executable,
    ) -> None:
        self.home = folder / "home"
        self.out_dir = folder / "out"
        for made in (self.home, self.out_dir):
            made.mkdir()
        self.bundle = make_bundle(folder)
        self.marker = os.urandom(16)
        config = {
            "sys_path": [p for p in sys.path if p] if sys_path is None else sys_path,
            "folder": submitting_folder,
            "home": str(self.home),
            "run_dir": str(folder),
            "out_dir": str(self.out_dir),
            "bundle": str(self.bundle),
            "code": code,
            "marker": self.marker.hex(),
            "isolated": isolated,
        }
        self.socket, theirs = socket.socketpair()
        token_read, self.tokens = os.pipe()
        self.out, out_write = os.pipe()
        self.err, err_write = os.pipe()
        arguments = [executable, "-S", "-E", "-s", "-u"]
        arguments += [f"{self.bundle}/picloud_kernels/runner/main.py", json.dumps(config)]
        passed = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs.fileno(), token_read)]
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _EXEC_WITH_3_AND_4, *map(str, passed), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
            pass_fds=passed,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), **(variables or {})},
        )
        theirs.close()
        for fd in (token_read, out_write, err_write, *passed):
            os.close(fd)
        self.reader = FrameReader()
        self.frames: list[tuple[dict[str, Any], bytes]] = []
        self.streams = {self.out: bytearray(), self.err: bytearray()}
        self.sent: set[str] = set()
        self.count = 0  # of elements in the chunk sent last

    def __enter__(self) -> "RunnerHarness":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.socket.close()
        for fd in (self.tokens, self.out, self.err):
            os.close(fd)

    def send(self, header: dict[str, Any], *parts: bytes, descriptors: list[int] = []) -> None:  # noqa: B006
        data = pack_frame(header, *parts)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        sent = self.socket.sendmsg([data], ancillary if descriptors else [])
        if sent < len(data):  # even of nothing, `sendall` fails where the other side has left
            self.socket.sendall(data[sent:])

    def receive(self, seconds: float = 20) -> tuple[dict[str, Any], bytes] | None:
        """Return the next frame, or None when the runner has closed the link; drains the pipes."""
        end_at = time.monotonic() + seconds
        while not self.frames:
            left = end_at - time.monotonic()
            assert left > 0, (
                f"no frame within {seconds} s; stderr: {bytes(self.streams[self.err])!r}"
            )
            watched: list[Any] = [self.socket, *self.streams]
            ready, _, _ = select.select(watched, [], [], left)
            for fd in self.streams:
                if fd in ready:
                    self.streams[fd] += os.read(fd, 1 << 16)
            if self.socket in ready:
                data = self.socket.recv(1 << 18)
                if not data:
                    return None
                self.frames += self.reader.feed(data)
        return self.frames.pop(0)

    def hello(self) -> dict[str, Any]:
        received = self.receive()
        assert received is not None
        assert received[0]["t"] == "hello"
        return received[0]

    def start_chunk(
        self,
        payload: bytes,
        records: list[bytes],
        *,
        first_jid: int = 1,
        tokens: int | None = None,
        descriptors: list[int] = [],  # noqa: B006
        **fields: Any,
    ) -> None:
        key = digest([payload])
        known = key in self.sent
        self.sent.add(key)
        header = {
            "t": "chunk",
            "lease": LEASE,
            "slot": "s",
            "sandbox": "",
            "function": key,
            "function_bytes": 0 if known else len(payload),
            "jids": [[first_jid, first_jid + len(records) - 1]],
            "attempt": 1,
            "single_use": False,
            "fresh": False,
            "max_runtime_seconds": None,
            "profile": False,
            "fast": 0,
            "max_result_bytes": 0,
            "lease_key": LEASE_KEY,
            "user_id": 1000,
            "files": [],
            "kind": "call",
            "estimate_seconds": 0,
            **fields,
        }
        self.count = len(records)
        os.write(self.tokens, b"t" * (len(records) if tokens is None else tokens))
        self.send(
            header, b"" if known else payload, pack_records(records), descriptors=descriptors
        )

    def finish_chunk(self) -> tuple[list[Element], dict[str, Any]]:
        """Return the elements that ended, and the `end` frame."""
        results: list[tuple[dict[str, Any], bytes]] = []
        while True:
            received = self.receive()
            assert received is not None, f"the runner ended: {bytes(self.streams[self.err])!r}"
            if received[0]["t"] == "end":
                break
            results.append(received)
        outs, errs = (self._printed(fd, len(results)) for fd in (self.out, self.err))
        return [
            Element(*result, out, err)
            for result, out, err in zip(results, outs, errs, strict=True)
        ], received[0]

    def _printed(self, fd: int, count: int) -> list[bytes]:
        """Return what each element printed; the end of the chunk's last one has no marker."""
        data = self.streams[fd]
        while select.select([fd], [], [], 0)[0] and (more := os.read(fd, 1 << 16)):
            data += more
        if count == self.count:
            data += self.marker
        pieces = bytes(data).split(self.marker)
        assert len(pieces) == count + 1, "a marker is missing, or there is one too many"
        data[:] = self.marker.join(pieces[count:])
        return pieces[:count]

    def map(self, function: Any, *arguments: tuple[Any, ...], **fields: Any) -> list[Element]:
        """Run ``function`` once per tuple of ``arguments`` in one chunk."""
        payload = function if isinstance(function, bytes) else dump_function(function)
        records = [b"".join(dump_call(args, {})) for args in arguments]
        assert len(Pack(pack_records(records))) == len(arguments)
        self.start_chunk(payload, records, **fields)
        return self.finish_chunk()[0]

    def call(self, function: Any, *args: Any, **fields: Any) -> Element:
        """Run ``function(*args)`` in a chunk of its own."""
        return self.map(function, args, **fields)[0]
