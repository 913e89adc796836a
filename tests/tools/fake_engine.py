"""An engine in this process: it has nodes, slots and time, and no containers.

Elements behave as a `Behaviour` says; by default each returns at once with an empty body. Events are
numbered and kept until acknowledged, as the real link does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.protocol.frames import Pack
from picloud_jupyter.protocol.jobs import GIB, ContainerKind, LimitsGrade, Resources
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_services.dispatch.engine import Chunk, EngineEvent, OutputSlice


@dataclass(frozen=True, slots=True)
class Does:
    """What one element does: ``reason`` after ``seconds``, or its container ends (``exits``).

    ``says_seconds`` is what its runner says that it ran, where it lies.
    """

    reason: str = "done"
    seconds: float = 0.0
    body: bytes = b""
    exits: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None
    says_seconds: float | None = None


Behaviour = Callable[[Chunk, int, bytes], Does]


def returns(_chunk: Chunk, _position: int, argument: bytes) -> Does:
    """Return the argument as the result."""
    return Does(body=argument)


@dataclass(slots=True, eq=False)
class _Running:
    chunk: Chunk
    position: int = 0
    stop: int = 0
    started: bool = False
    timer: asyncio.TimerHandle | None = None
    pack: Pack | None = None


@dataclass(slots=True)
class _Node:
    report: NodeReport
    connected: bool = True
    n: int = 0
    delivered: int = 0
    unacknowledged: list[EngineEvent] = field(default_factory=list)
    slots: dict[str, list[_Running]] = field(default_factory=dict)


def report(node: str = "n1", *, cores: float = 2, memory_bytes: int = 16 * GIB) -> NodeReport:
    """Return a node's report."""
    return NodeReport(
        node,
        "boot-1",
        1,
        Resources(cores, memory_bytes),
        ContainerKind.ROOT,
        LimitsGrade.CGROUP,
    )


class FakeEngine:
    """See the module. ``submitted`` keeps what was sent, ``highest`` how many ran at once."""

    def __init__(
        self, *reports: NodeReport, behaviour: Behaviour = returns, keep: bool = True
    ) -> None:
        self._nodes = {r.node: _Node(r) for r in reports or (report(),)}
        self.behaviour = behaviour
        self.submitted: list[Chunk] = []
        self.released: list[str] = []
        self.acknowledged_n = 0
        self.deleted: list[str] = []
        self.grant: float | None = None
        self.highest = 0
        self._keep = keep
        self._on_event: Callable[[EngineEvent], None] = lambda _event: None

    # -------------------------------------------------------------------------------- the seam
    async def start(self, on_event: Callable[[EngineEvent], None]) -> None:
        self._on_event = on_event
        for name, node in self._nodes.items():
            if node.connected:
                self.connect(name)

    async def stop(self) -> None:
        self._on_event = lambda _event: None

    def nodes(self) -> list[NodeReport]:
        return [node.report for node in self._nodes.values() if node.connected]

    def submit(self, node: str, chunk: Chunk) -> None:
        if not self._nodes[node].connected:
            return
        if self._keep:
            self.submitted.append(chunk)
        first, last = chunk.jids[0]
        running = _Running(chunk, stop=last - first + 1)
        queue = self._nodes[node].slots.setdefault(chunk.slot, [])
        queue.append(running)
        assert len(queue) <= 2, "more than one chunk waits in a slot"
        if len(queue) == 1:
            asyncio.get_running_loop().call_soon(self._begin, node, chunk.slot)

    def revoke(self, node: str, lease: str) -> None:
        found = self._find(node, lease)
        if found is None:
            return
        slot, running = found
        first = running.position + int(running.started)
        count = running.stop - first
        running.stop = first
        over = not running.started and running.position == running.stop
        self._say(node, "returned", lease, {"first": first, "count": count, "over": over})
        if over:
            self._drop(node, slot, running)

    def kill(self, node: str, lease: str, position: int | None, asked: str) -> None:
        found = self._find(node, lease)
        if found is None:
            return
        slot, running = found
        if running.started and position in (None, running.position):
            self._exit(node, slot, {"wait_status": 9, "oom_count": 0, "asked": asked})
        else:
            self.revoke(node, lease)

    def release(self, node: str, slot: str) -> None:
        self.released.append(slot)

    def acknowledge(self, node: str, n: int) -> None:
        self.acknowledged_n = max(self.acknowledged_n, n)
        kept = self._nodes[node].unacknowledged
        kept[:] = [event for event in kept if event.n > n]

    def claim_cores(self, node: str, wanted: float, least: float = 1.0) -> float:
        return wanted if self.grant is None else min(wanted, self.grant)

    async def read_output(
        self, node: str, lease: str, position: int, stream: str, offset: int, limit: int
    ) -> OutputSlice:
        data = f"{lease}.{position}.{stream}".encode()
        return OutputSlice(data[offset : offset + limit], len(data), len(data), finished=True)

    async def delete_output(self, node: str, leases: Sequence[str]) -> None:
        self.deleted += leases

    async def sweep_output(
        self, named: Callable[[Sequence[str]], Awaitable[set[str]]], *, before_at: float
    ) -> int:
        del before_at
        found = {chunk.lease for chunk in self.submitted} - set(self.deleted)
        unnamed = sorted(found - await named(sorted(found)))
        self.deleted += unnamed
        return len(unnamed)

    # ------------------------------------------------------------------------------ what happens
    def connect(self, name: str) -> None:
        """A control plane's connection to a node: hello, then what was not acknowledged."""
        node = self._nodes[name]
        node.connected = True
        leases = {r.chunk.lease: s for s, queue in node.slots.items() for r in queue}
        fields = {"report": node.report, "leases": leases}
        self._on_event(EngineEvent(name, "node_up", fields=fields))
        for event in tuple(node.unacknowledged):
            self._on_event(event)

    def disconnect(self, name: str) -> None:
        """The link breaks; the node goes on."""
        self._nodes[name].connected = False
        self._on_event(EngineEvent(name, "node_down"))

    def crash(self, name: str) -> None:
        """The machine is gone with all that ran on it."""
        node = self._nodes[name]
        for queue in node.slots.values():
            for running in queue:
                if running.timer:
                    running.timer.cancel()
        node.slots.clear()
        node.unacknowledged.clear()
        self.disconnect(name)

    def running(self) -> int:
        """Return how many slots work."""
        return sum(
            bool(queue) for node in self._nodes.values() for queue in node.slots.values()
        )

    def _find(self, node: str, lease: str) -> tuple[str, _Running] | None:
        for slot, queue in self._nodes[node].slots.items():
            for running in queue:
                if running.chunk.lease == lease:
                    return slot, running
        return None

    def _say(
        self, node: str, name: str, lease: str, fields: dict[str, Any], body: bytes = b""
    ) -> None:
        state = self._nodes[node]
        state.n += 1
        event = EngineEvent(node, name, state.n, lease, {**fields, "n": state.n}, body)
        state.unacknowledged.append(event)
        if state.connected:
            self._on_event(event)

    def _begin(self, node: str, slot: str) -> None:
        queue = self._nodes[node].slots.get(slot)
        if not queue or queue[0].started or queue[0].timer:
            return
        self.highest = max(self.highest, self.running())
        running = queue[0]
        running.pack = Pack(running.chunk.arguments)
        self._go_on(node, slot)

    def _go_on(self, node: str, slot: str) -> None:
        """Run elements until one takes time, then report what ended."""
        queue = self._nodes[node].slots.get(slot)
        if not queue:
            return
        running = queue[0]
        assert running.pack is not None
        items: list[list[Any]] = []
        bodies: list[bytes] = []
        lease = running.chunk.lease
        while running.position < running.stop:
            does = self.behaviour(
                running.chunk, running.position, running.pack[running.position]
            )
            if does.seconds and not running.started:
                running.started = True
                if items:
                    self._batch(node, lease, items, bodies, running)
                if self._nodes[node].connected:
                    fields = {"position": running.position}
                    self._on_event(EngineEvent(node, "started", 0, lease, fields))
                loop = asyncio.get_running_loop()
                running.timer = loop.call_later(does.seconds, self._go_on, node, slot)
                return
            running.started = False
            if does.exits is not None:
                if items:
                    self._batch(node, lease, items, bodies, running)
                running.started = True
                self._exit(node, slot, does.exits)
                return
            items.append(
                [
                    running.position,
                    does.reason,
                    1e9,
                    does.seconds if does.says_seconds is None else does.says_seconds,
                    0,
                    0,
                    len(does.body),
                    does.extra,
                ]
            )
            bodies.append(does.body)
            running.position += 1
        running.timer = None
        self._batch(node, lease, items, bodies, running)
        self._drop(node, slot, running)

    def _batch(
        self,
        node: str,
        lease: str,
        items: list[list[Any]],
        bodies: list[bytes],
        running: _Running,
    ) -> None:
        end = running.position >= running.stop
        fields = {
            "running": None if end else running.position,
            "end": end,
            "usage": {"memory_peak_bytes": 1000} if end else None,
            "items": list(items),
        }
        self._say(node, "batch", lease, fields, b"".join(bodies))
        items.clear()
        bodies.clear()

    def _exit(self, node: str, slot: str, how: dict[str, Any]) -> None:
        """The container ends while an element runs: the others go back first."""
        queue = self._nodes[node].slots.pop(slot)
        for waiting in queue[1:]:
            back = {"first": 0, "count": waiting.stop, "over": True}
            self._say(node, "returned", waiting.chunk.lease, back)
        running = queue[0]
        if running.timer:
            running.timer.cancel()
        begun = min(how.get("begun", 1), running.stop - running.position)
        first = running.position + begun
        lease = running.chunk.lease
        if left := running.stop - first:
            back = {"first": first, "count": left, "over": False}
            self._say(node, "returned", lease, back)
        fields: dict[str, Any] = {
            "position": running.position,
            "asked": None,
            "message": "",
            **how,
            "begun": begun,
        }
        self._say(node, "exited", lease, fields)

    def _drop(self, node: str, slot: str, running: _Running) -> None:
        queue = self._nodes[node].slots[slot]
        queue.remove(running)
        if queue:
            asyncio.get_running_loop().call_soon(self._begin, node, slot)
        else:
            del self._nodes[node].slots[slot]
