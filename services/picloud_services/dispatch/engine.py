"""The seam between dispatch and the machines that run chunks."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from picloud_jupyter.protocol.jobs import SandboxSpec
from picloud_jupyter.protocol.nodes import NodeReport


@dataclass(frozen=True, slots=True)
class FilePayload:
    """A payload that is a file on this machine; ``position`` -1 is the function."""

    position: int
    path: str
    size_bytes: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Contiguous elements of one batch that run one after another under one lease.

    ``arguments`` is a pack with one record per element. ``function`` may be empty when it is a
    file payload. ``secrets`` are (variable, value). See docs/internals.md 2 for each field on the wire.
    """

    lease: str
    slot: str
    sandbox_digest: str
    sandbox: SandboxSpec
    function_digest: str
    function: bytes
    arguments: bytes
    jids: tuple[tuple[int, int], ...]
    user_id: int
    attempt: int = 1
    single_use: bool = False
    fresh: bool = False
    max_runtime_seconds: float | None = None
    profile: bool = False
    fast_serialization: int = 0
    max_result_bytes: int = 0
    lease_key: str = ""
    code_path: str = ""
    files: tuple[FilePayload, ...] = ()
    estimate_seconds: float = 0.0
    kind: str = "call"
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something that happened to a lease or a node. ``n`` > 0 must be acknowledged.

    ``name`` is the frame's name in docs/internals.md 5: batch, returned, exited, start_failed,
    started, output, samples; or node_up (``fields["report"]`` is a `NodeReport`,
    ``fields["leases"]`` what it still holds) and node_down.
    """

    node: str
    name: str
    n: int = 0
    lease: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class OutputSlice:
    """A part of what an element printed.

    ``data`` are the bytes from ``offset`` on, ``next_offset`` where to go on, ``total_bytes`` what
    there is so far, ``finished`` whether the element has ended.
    """

    data: bytes
    next_offset: int
    total_bytes: int
    finished: bool


class Engine(Protocol):
    """Runs chunks on nodes. Called by the dispatcher only, on the event loop; never blocks."""

    async def start(self, on_event: Callable[[EngineEvent], None]) -> None:
        """Connect and keep connecting; events come through ``on_event`` on the loop."""

    async def stop(self) -> None:
        """Disconnect; what runs goes on."""

    def nodes(self) -> list[NodeReport]:
        """Return the nodes that are connected now."""

    def submit(self, node: str, chunk: Chunk) -> None:
        """Send ``chunk``; if the link breaks first, ``node_up`` will not list its lease."""

    def revoke(self, node: str, lease: str) -> None:
        """Ask for the elements of ``lease`` that have not started; answered by ``returned``."""

    def kill(self, node: str, lease: str, position: int | None, asked: str) -> None:
        """End the element at ``position`` if it runs, None: whichever runs (its container ends).

        Answered by ``exited`` or ``returned``.
        """

    def release(self, node: str, slot: str) -> None:
        """Say that ``slot`` gets no chunk for now: its container is warm stock."""

    def acknowledge(self, node: str, n: int) -> None:
        """Say that events up to ``n`` are committed and need not be sent again."""

    def claim_cores(self, node: str, wanted: float, least: float = 1.0) -> float:
        """Return how many cores of ``node`` may be used now, at most ``wanted``.

        ``least``: with fewer nothing can be begun.
        Call it as demand changes, and every second while any is wanted: another service of that
        machine may use the rest. A grant may shrink: then start no more.
        """

    async def read_output(
        self, node: str, lease: str, position: int, stream: str, offset: int, limit: int
    ) -> OutputSlice:
        """Return what the element printed to ``stream`` ("stdout" or "stderr")."""

    async def delete_output(self, node: str, leases: Sequence[str]) -> None:
        """Remove the output files of ``leases``."""

    async def sweep_output(
        self, named: Callable[[Sequence[str]], Awaitable[set[str]]], *, before_at: float
    ) -> int:
        """Remove files of output of before ``before_at`` (UTC) that no row names; return their count.

        ``named`` gets at most 500 leases and answers those that a row names.
        """
