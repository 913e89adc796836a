"""A gateway on real sockets, over real blobs and uploads; its jobs are what the test says."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.errors import NotFound
from picloud_jupyter.protocol.frames import encode_json, pack_frame
from picloud_jupyter.protocol.jobs import HostPython, JobSpec
from picloud_jupyter.protocol.story import Story
from picloud_jupyter.protocol.users import Quota
from picloud_services.accounts.keys import JobIdentity, KeyRing, make_job_key
from picloud_services.accounts.secrets import SecretStore
from picloud_services.accounts.service import Accounts
from picloud_services.base.clock import SystemClock
from picloud_services.base.events import Events
from picloud_services.base.filesystem import DiskWatch
from picloud_services.blobs.code_archives import CodeArchives
from picloud_services.blobs.filesystem import FileBlobStore
from picloud_services.blobs.uploads import Uploads
from picloud_services.dispatch.engine import OutputSlice
from picloud_services.environments.service import EnvironmentService
from picloud_services.gateway.application import Gateway
from picloud_services.gateway.services import Services
from picloud_services.jobs.words import (
    CallReceipt,
    OutputPlace,
    ResultItem,
    ResultsAnswer,
    WaitAnswer,
)

LEASE = "0123456789abcdef"
PYTHON = HostPython("/bin/sh", "/usr", "/usr", "3.11.2", paths=("/usr",))


class ScriptedJobs:
    """Stands where the job service stands; keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.results_by_jid: dict[int, ResultItem] = {}
        self.finished = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.raises: Exception | None = None
        self.parent_spec = JobSpec("f", PYTHON)

    async def submit_call(self, *arguments: Any) -> CallReceipt:
        if self.raises is not None:
            raise self.raises
        self.calls.append(arguments)
        return CallReceipt(len(self.calls))

    async def results(self, user_id, jids, *, limit_bytes, wait_seconds=0.0):
        if wait_seconds:
            await self.finished.wait()
        found = [self.results_by_jid[j] for j, _ in jids if j in self.results_by_jid]
        return ResultsAnswer(found)

    async def result(self, user_id: int, jid: int) -> ResultItem:
        return self.results_by_jid[jid]

    async def wait(self, user_id, jids, *, timeout_seconds, until, counts_seen=None):
        try:
            if timeout_seconds:
                await asyncio.wait_for(self.finished.wait(), timeout_seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return WaitAnswer(self.finished.is_set(), {"done": 1})

    async def output_place(self, user_id: int, jid: int) -> OutputPlace:
        return OutputPlace("node", LEASE, 0, 1, finished=self.finished.is_set())

    async def require(self, user_id: int, jids: object) -> None:
        return

    def lease_is_live(self, lease: str, user_id: int, jid: int, attempt: int) -> bool:
        return (lease, jid, attempt) == (LEASE, 7, 1)

    def running_spec(self, _jid: int) -> JobSpec:
        return self.parent_spec


@dataclass
class GrowingOutput:
    """What the one job printed so far."""

    text: bytes = b""

    async def read_output(self, node, lease, position, stream, offset, limit):
        data = self.text[offset : offset + limit]
        return OutputSlice(data, offset + len(data), len(self.text), finished=False)


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class GatewayUnderTest:
    """The parts that tests touch."""

    root: Path
    gateway: Gateway
    jobs: ScriptedJobs
    blobs: FileBlobStore
    uploads: Uploads
    keys: KeyRing
    events: Events
    output: GrowingOutput
    disk: DiskWatch
    blocked: list[int] = field(default_factory=list)
    stops: list[dict[str, bool]] = field(default_factory=list)
    answered: list[tuple[str, int]] = field(default_factory=list)

    @property
    def api(self) -> Path:
        return self.root / "api.sock"

    @property
    def inside(self) -> Path:
        return self.root / "jobs.sock"

    def job_key(self, jid: int = 7, attempt: int = 1, lease: str = LEASE) -> str:
        identity = JobIdentity(os.getuid(), jid, attempt, lease)
        return make_job_key(self.keys.lease_key(lease), identity)


async def start_gateway(root: Path, quota: Quota | None = None) -> GatewayUnderTest:
    """Return a gateway that serves ROOT/api.sock and ROOT/jobs.sock to users with ``quota``."""
    blobs, keys, disk = (
        FileBlobStore(root / "blobs"),
        KeyRing.load(root),
        DiskWatch(root, 10**6),
    )
    blocked: list[int] = []
    stops: list[dict[str, bool]] = []

    @contextmanager
    def block(jid: int) -> Iterator[None]:
        blocked.append(jid)
        yield
        blocked.append(-jid)

    async def describe(caller: Any) -> dict[str, Any]:
        return {"pid": os.getpid(), "uploads_local": caller.local}

    async def tell(user_id: int, jid: int) -> Story:
        if jid != 7:
            raise NotFound("There is no such job.", jid=jid)
        return Story(jid, "done", "done", "f", None, 1, f"for {user_id}")

    async def page() -> str:
        return "picloud_leases 1\n"

    async def diagnose() -> dict[str, Any]:
        return {"store": {}}

    answered: list[tuple[str, int]] = []
    jobs: Any = ScriptedJobs()
    output, events = GrowingOutput(), Events()
    uploads = Uploads(blobs, keys, disk, max_bytes=10**15)
    samples: Any = None
    database: Any = None
    accounts = Accounts(database, SystemClock(), quota)
    services = Services(
        jobs=jobs,
        blobs=blobs,
        uploads=uploads,
        code=CodeArchives(FileBlobStore(root / "code"), disk, max_bytes=10**6),
        environments=EnvironmentService(SystemClock()),
        keys=keys,
        secrets=SecretStore.load(root, SystemClock().now_at),
        disk=disk,
        events=events,
        outputs=output,
        samples=samples,
        nodes=list,
        accounts=accounts,
        held=dict,
        blocked=block,
        describe=describe,
        stop=lambda **wishes: stops.append(wishes),
        story=tell,
        metrics=page,
        diagnose=diagnose,
        answered=lambda route, status: answered.append((route, status)),
    )
    gateway = Gateway(services)
    await gateway.listen(root / "api.sock", root / "jobs.sock")
    return GatewayUnderTest(
        root,
        gateway,
        jobs,
        blobs,
        uploads,
        keys,
        events,
        output,
        disk,
        blocked,
        stops,
        answered,
    )


@asynccontextmanager
async def serving(root: Path) -> AsyncIterator[GatewayUnderTest]:
    """Give a gateway as `start_gateway` makes it, and close it."""
    started = await start_gateway(root)
    try:
        yield started
    finally:
        await started.gateway.close()


class Peer:
    """One keep-alive connection, by hand: what goes over the wire is what the test wrote."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, path: Path) -> "Peer":
        return cls(*await asyncio.open_unix_connection(str(path)))

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def receive(self) -> Answer:
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, method: str, path: str, body: object = b"", **headers: str) -> Answer:
        self.send(
            method, path, body if isinstance(body, bytes) else encode_json(body), **headers
        )
        return await self.receive()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Peer]:
    """Give a connection to the socket ``path``, and close it."""
    opened = await Peer.open(path)
    try:
        yield opened
    finally:
        await opened.close()


def call_frame(function_bytes: bytes, argument_bytes: bytes, **changes: Any) -> bytes:
    """Return the body of POST /v1/calls."""
    header = {
        "spec": {"function_name": "f", "host_python": to_wire(PYTHON)},
        "key": "0" * 32,
        "function": {"size_bytes": len(function_bytes)},
        "arguments": {"size_bytes": len(argument_bytes)},
    }
    return pack_frame({**header, **changes}, function_bytes, argument_bytes)
