"""A real agent for tests, in the plain kind, with real supervisors and runners below it."""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.protocol.jobs import (
    ContainerKind,
    HostPython,
    LimitsGrade,
    Resources,
    SandboxSpec,
)
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_jupyter.serialize.payload import dump_call, dump_function
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.agent import output_files
from picloud_services.agent.agent import Agent
from picloud_services.agent.bundle import make_bundle
from picloud_services.agent.launcher_client import LauncherClient
from picloud_services.agent.network import NetworkChoice
from picloud_services.agent.network_plan import NetworkMode
from picloud_services.agent.node_facts import NodeFacts
from picloud_services.config import Settings
from picloud_services.dispatch.engine import Chunk, EngineEvent
from picloud_services.dispatch.local_engine import LocalEngine

NODE = "here"
WAIT_SECONDS = 20.0


def make_settings(folder: Path, run: Path) -> Settings:
    """Settings of a service below ``folder`` whose processes do not start each other."""
    return Settings(ServicePaths(folder / "home", run), container_kind="plain", restart=False)


@contextlib.contextmanager
def short_run_folder():
    """A run folder whose sockets have short paths."""
    with tempfile.TemporaryDirectory(prefix="pc-", dir="/tmp") as folder:
        yield Path(folder)


def make_facts(settings: Settings) -> NodeFacts:
    report = NodeReport(
        NODE,
        secrets.token_hex(4),
        os.getpid(),
        Resources(2.0, 4 * 1024**3),
        ContainerKind.PLAIN,
        LimitsGrade.WATCHED,
        logs=str(settings.home / "logs"),
    )
    return NodeFacts(report, "", NetworkChoice(NetworkMode.HOST))


class RunningAgent:
    """An agent in this loop. `restart` replaces it as a crash would: what runs goes on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        for name in ("logs", "layers", "blobs/incoming", "bundle"):
            (settings.home / name).mkdir(parents=True, exist_ok=True)

    async def start(self) -> None:
        bundle = await asyncio.to_thread(make_bundle, self.settings.home)
        launcher = LauncherClient()
        await launcher.start()
        self.agent = Agent(self.settings, make_facts(self.settings), bundle, launcher)
        self.task = asyncio.create_task(self.agent.run())
        await until(self.settings.paths.agent_socket.exists)

    async def stop(self, *, kill: bool) -> None:
        self.agent.leave(kill)
        await self.task

    async def restart(self) -> None:
        await self.stop(kill=False)
        await self.start()

    def containers(self) -> list[str]:
        return sorted(path.name for path in (self.settings.run / "c").glob("*"))


class Listener:
    """Collects what an engine says."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)

    def named(self, name: str, lease: str = "") -> list[EngineEvent]:
        return [e for e in self.events if e.name == name and lease in ("", e.lease)]

    def is_over(self, lease: str) -> bool:
        return any(
            e.lease == lease
            and (
                e.name in ("exited", "start_failed")
                or (e.name == "batch" and e.fields["end"])
                or (e.name == "returned" and e.fields.get("over"))
            )
            for e in self.events
        )

    def items(self, lease: str) -> list[list[Any]]:
        return [item for e in self.named("batch", lease) for item in e.fields["items"]]

    def bodies(self, lease: str) -> list[bytes]:
        found = []
        for event in self.named("batch", lease):
            start = 0
            for item in event.fields["items"]:
                found.append(event.body[start : start + item[6]])
                start += item[6]
        return found

    def covered(self, lease: str) -> list[int]:
        """Each position that an event of ``lease`` accounts for, as often as it does."""
        positions = [item[0] for item in self.items(lease)]
        for event in self.events:
            if event.lease != lease:
                continue
            if event.name == "returned":
                first = event.fields["first"]
                positions += range(first, first + event.fields["count"])
            if event.name == "exited" and event.fields["position"] is not None:
                first = event.fields["position"]
                positions += range(first, first + event.fields["begun"])
        return sorted(positions)


async def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Return once ``condition`` holds; fails after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def make_engine(settings: Settings) -> LocalEngine:
    return LocalEngine(
        settings.paths.agent_socket, output=output_files, logs=settings.home / "logs"
    )


def make_spec(**changes) -> SandboxSpec:
    paths = tuple(path for path in sys.path if path)
    python = HostPython(
        sys.executable, sys.prefix, sys.base_prefix, "3", paths=paths, sys_path=paths
    )
    return SandboxSpec(os.getuid(), python, **changes)


_next_jid = iter(range(1, 1_000_000_000, 1_000))


def make_chunk(function, values, *, spec: SandboxSpec | None = None, **changes) -> Chunk:
    """A chunk that calls ``function`` with each of ``values``."""
    spec = spec or make_spec()
    code = dump_function(function)
    first = next(_next_jid)
    fields = {
        "lease": secrets.token_hex(8),
        "slot": "s1",
        "sandbox_digest": hashlib.sha256(json.dumps(to_wire(spec)).encode()).hexdigest(),
        "sandbox": spec,
        "function_digest": hashlib.sha256(code).hexdigest(),
        "function": code,
        "arguments": pack_records([b"".join(dump_call((a,), {})) for a in values]),
        "jids": ((first, first + len(values) - 1),),
        "user_id": os.getuid(),
        **changes,
    }
    return Chunk(**fields)


@contextlib.asynccontextmanager
async def running_agent(folder: Path) -> AsyncIterator[RunningAgent]:
    """An agent that is killed with all its containers at the end."""
    with short_run_folder() as run:
        agent = RunningAgent(make_settings(folder, run))
        await agent.start()
        try:
            yield agent
        finally:
            await agent.stop(kill=True)


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[tuple[LocalEngine, Listener]]:
    """An engine that is connected to the agent of ``settings``."""
    engine, listener = make_engine(settings), Listener()
    await engine.start(listener)
    try:
        await until(engine.nodes)
        yield engine, listener
    finally:
        if engine.nodes():
            last_n = max((event.n for event in listener.events), default=0)
            engine.acknowledge(engine.nodes()[0].node, last_n)
        await engine.stop()
