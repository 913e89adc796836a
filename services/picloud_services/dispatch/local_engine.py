"""The engine that runs chunks on this machine: the control plane's end of the agent's link."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from picloud_jupyter.protocol.codec import from_wire, to_wire
from picloud_jupyter.protocol.frames import decode_header
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_jupyter.protocol.recent import RecentKeys
from picloud_services.base import codec
from picloud_services.base.cores_ledger import CoresLedger
from picloud_services.base.frame_link import FrameLink, hello, refusal
from picloud_services.dispatch.engine import Chunk, EngineEvent, OutputSlice

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.02  # a first call waits for it
REFUSED_SECONDS = 2.0  # one of both must be replaced first; each try is logged twice
HELLO_SECONDS = 10.0
RENEW_SECONDS = 10.0
ACK_SECONDS = 0.02
STOP_SECONDS = 10.0
SWEEP_COUNT = 500
KEPT_KEYS = 256  # docs/internals.md 5: functions and sandboxes that both ends of this link keep


class OutputPart(Protocol):
    """What `OutputFiles.read` returns; see `OutputSlice`."""

    @property
    def data(self) -> bytes: ...  # noqa: D102
    @property
    def next_offset(self) -> int: ...  # noqa: D102
    @property
    def total_bytes(self) -> int: ...  # noqa: D102
    @property
    def finished(self) -> bool: ...  # noqa: D102


class OutputFiles(Protocol):
    """The output files of this machine (the module `agent.output_files`); called in threads."""

    def read(
        self, logs: str, lease: str, position: int, stream: str, offset: int, limit: int
    ) -> OutputPart:
        """Return what the element printed, from ``offset`` on."""

    def delete(self, logs: str, leases: Sequence[str]) -> None:
        """Remove the files of ``leases``."""

    def list_leases(self, logs: str) -> list[str]:
        """Return the leases of which there are files."""

    def delete_older(self, logs: str, leases: Collection[str], before_at: float) -> int:
        """Remove those files of ``leases`` that were last written to before ``before_at``."""


@dataclass(slots=True)
class _Lease:
    """A lease that is not over. ``commands`` are those whose answer has not come.

    ``boot_id`` is that of the agent to which we sent its chunk, "" where another process did.
    """

    boot_id: str = ""
    commands: list[dict[str, Any]] = field(default_factory=list)


class LocalEngine:
    """`Engine` for the agent that listens on ``socket``; reconnects within 0.1 seconds, refused within 2.

    Starts no process: whoever keeps the agent alive does that. `revoke` and `kill` are sent again
    after a reconnect until their lease is over. One engine delivers an event once; a new
    engine gets all that was not acknowledged.
    """

    def __init__(
        self,
        socket: Path,
        *,
        output: OutputFiles,
        logs: Path,
        ledger: CoresLedger | None = None,
        epoch: str = "",
    ) -> None:
        self._socket = socket
        self._output = output
        self._logs = str(logs)
        self._ledger = ledger
        self._epoch = epoch or secrets.token_hex(8)
        self._on_event: Callable[[EngineEvent], None] = lambda _event: None
        self._task: asyncio.Task[None] | None = None
        self._link: FrameLink | None = None
        self._closed = asyncio.Event()
        self._is_refused = False  # the last connection was, by one side
        self._report: NodeReport | None = None
        self._leases: dict[str, _Lease] = {}
        self._functions = RecentKeys[bool](KEPT_KEYS)
        self._sandboxes = RecentKeys[bool](KEPT_KEYS)
        self._boot_id = ""
        self.containers: dict[str, int] = {}  # by state, as the agent said last
        self._base_n = 0  # our numbers of this agent's events begin behind it
        self._delivered_n = 0
        self._acknowledged_n = 0
        self._ack_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------ the connection
    async def start(self, on_event: Callable[[EngineEvent], None]) -> None:
        """Connect and keep connecting; events come through ``on_event`` on the loop."""
        self._on_event = on_event
        self._task = asyncio.create_task(self._keep_connected())

    async def stop(self) -> None:
        """Disconnect; what runs goes on."""
        self._on_event = lambda _event: None
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._link is not None:
            self._send_acknowledgement()
            self._link.close()
            await self._closed.wait()
        if self._ledger is not None:
            self._ledger.close()

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._closed.clear()
            try:
                _, self._link = await loop.create_unix_connection(
                    lambda: FrameLink(self._on_first_frame, self._on_lost), str(self._socket)
                )
            except OSError:  # no agent, or not yet: whoever keeps it alive is told by node_down
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._is_refused = False
            self._functions = RecentKeys[bool](KEPT_KEYS)
            self._sandboxes = RecentKeys[bool](KEPT_KEYS)
            self._link.send(hello("control", epoch=self._epoch))
            await self._renew_until_closed(self._link)
            await asyncio.sleep(REFUSED_SECONDS if self._is_refused else RECONNECT_SECONDS)

    async def _renew_until_closed(self, link: FrameLink) -> None:
        wait_seconds = HELLO_SECONDS
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the result.
                async with asyncio.timeout(wait_seconds):
                    await self._closed.wait()
                return
            if self._report is None:
                log.warning(
                    "the agent did not say hello within %s s; connecting again", HELLO_SECONDS
                )
                link.abort()
            link.send({"t": "renew", "leases": list(self._leases)})
            wait_seconds = RENEW_SECONDS

    def _on_lost(self, _link: FrameLink) -> None:
        report, self._report, self._link = self._report, None, None
        self._closed.set()
        if report is not None:
            self._on_event(EngineEvent(report.node, "node_down"))

    # -------------------------------------------------------------------------------- frames of it
    def _on_first_frame(self, data: bytes, _body: bytes) -> None:
        link = self._link
        header = decode_header(data)
        if link is None or header.get("t") == "refused":
            self._is_refused = True
            log.error("the agent refused this control plane: %s", header.get("message"))
            return
        if words := refusal(header):
            self._is_refused = True
            log.error("the agent cannot be used: %s", words)
            link.send({"t": "refused", "message": words})
            link.close()
            return
        report = from_wire(NodeReport, header["report"])
        leases = {str(lease): str(slot) for lease, slot in header["leases"]}
        if report.boot_id != self._boot_id:  # another agent process numbers its events anew
            self._boot_id, self._base_n = report.boot_id, self._delivered_n
        link.on_frame = self._on_frame
        link.count_for(header)
        known, self._leases = self._leases, {}
        for lease in leases:
            held = self._leases[lease] = known.get(lease) or _Lease()
            for command in held.commands:
                link.send(command)
        self._report = report
        self._send_acknowledgement()
        self._on_event(
            EngineEvent(report.node, "node_up", fields={"report": report, "leases": leases})
        )
        if (reported := header.get("reported")) is not None:
            self._return_cut(known, {*leases, *reported})

    def _return_cut(self, known: dict[str, _Lease], there: set[str]) -> None:
        """Give back the chunks that broke off with the link to this very agent: none of them began."""
        assert self._report is not None
        for lease, held in known.items():
            if held.boot_id == self._boot_id and lease not in there:
                log.warning("the chunk of lease %s never reached the agent", lease)
                fields = {"first": 0, "count": 0, "over": True}
                self._on_event(EngineEvent(self._report.node, "returned", 0, lease, fields))

    def _on_frame(self, data: bytes, body: bytes) -> None:
        assert self._report is not None
        header = _read_header(data)
        name = header["t"]
        lease = header.get("lease") or ""
        n = header.get("n", 0)
        if n:
            n += self._base_n
            if n <= self._delivered_n:
                return  # it was delivered before the link broke; its acknowledgement is on its way
            self._delivered_n = n
            self._note_answer(name, lease, header)
        elif name == "idle":
            self.containers = header.get("states", {})
        self._on_event(EngineEvent(self._report.node, name, n, lease, header, body))

    def _note_answer(self, name: str, lease: str, header: dict[str, Any]) -> None:
        if _is_last(name, header):
            self._leases.pop(lease, None)
        elif name == "returned" and (held := self._leases.get(lease)) is not None:
            held.commands.clear()

    # ------------------------------------------------------------------------------------ commands
    def nodes(self) -> list[NodeReport]:
        """Return the node if its agent is connected now."""
        return [self._report] if self._report else []

    def submit(self, node: str, chunk: Chunk) -> None:
        """Send ``chunk``; if the link breaks first, ``node_up`` will not list its lease."""
        link = self._link_to(node)
        if link is None:
            return
        self._leases[chunk.lease] = _Lease(self._boot_id)
        if self._sandboxes.get(chunk.sandbox_digest) is None:
            self._sandboxes.put(chunk.sandbox_digest, value=True)
            link.send(_sandbox_header(chunk))
        if self._functions.get(chunk.function_digest) is None and chunk.function:
            self._functions.put(chunk.function_digest, value=True)
            link.send(
                _chunk_header(chunk, len(chunk.function)), chunk.function, chunk.arguments
            )
        else:
            link.send(_chunk_header(chunk, 0), chunk.arguments)

    def revoke(self, node: str, lease: str) -> None:
        """Ask for the elements of ``lease`` that have not started; answered by ``returned``."""
        self._command(node, lease, {"t": "revoke", "lease": lease})

    def kill(self, node: str, lease: str, position: int | None, asked: str) -> None:
        """End the element at ``position`` if it runs, None: whichever runs (its container ends)."""
        header = {"t": "kill", "lease": lease, "position": position, "asked": asked}
        self._command(node, lease, header)

    def release(self, node: str, slot: str) -> None:
        """Say that ``slot`` gets no chunk for now: its container is warm stock."""
        if (link := self._link_to(node)) is not None:
            link.send({"t": "release", "slot": slot})

    def acknowledge(self, node: str, n: int) -> None:
        """Say that events up to ``n`` are committed and need not be sent again."""
        self._acknowledged_n = max(self._acknowledged_n, n)
        if self._ack_timer is None and self._link_to(node) is not None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(ACK_SECONDS, self._send_acknowledgement)

    def _send_acknowledgement(self) -> None:
        """Send one acknowledgement for all that came since the last; nobody waits for it."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        n = self._acknowledged_n - self._base_n
        if n > 0 and self._link is not None and self._report is not None:
            self._link.send({"t": "ack", "n": n})

    def claim_cores(self, node: str, wanted: float, least: float = 1.0) -> float:
        """See `Engine`: another embedded service of this machine may use the rest."""
        if self._report is None or self._report.node != node:
            return 0.0
        wanted = min(wanted, self._report.capacity.cores)
        return min(wanted, self._ledger.claim(wanted, least)) if self._ledger else wanted

    async def stop_node(self, node: str, *, kill: bool) -> None:
        """Have the agent of ``node`` leave, with ``kill`` after all jobs; returns when it did.

        Events go on meanwhile: acknowledge them, for what is not stays with its supervisor. An agent
        that does not leave is given up after 10 seconds.
        """
        if (link := self._link_to(node)) is None:
            return
        link.send({"t": "stop", "kill": kill})
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._closed.wait()
        except TimeoutError:
            log.warning("the agent did not leave within %s s", STOP_SECONDS)

    async def read_output(
        self, node: str, lease: str, position: int, stream: str, offset: int, limit: int
    ) -> OutputSlice:
        """Return what the element printed to ``stream`` ("stdout" or "stderr")."""
        part = await asyncio.to_thread(
            self._output.read, self._logs, lease, position, stream, offset, limit
        )
        return OutputSlice(part.data, part.next_offset, part.total_bytes, part.finished)

    async def delete_output(self, node: str, leases: Sequence[str]) -> None:
        """Remove the output files of ``leases``."""
        await asyncio.to_thread(self._output.delete, self._logs, leases)

    async def sweep_output(
        self, named: Callable[[Sequence[str]], Awaitable[set[str]]], *, before_at: float
    ) -> int:
        """Remove output of before ``before_at`` that no row names; return how many files that were."""
        files = self._output
        found = await asyncio.to_thread(files.list_leases, self._logs)
        unnamed: set[str] = set()
        for first in range(0, len(found), SWEEP_COUNT):
            leases = found[first : first + SWEEP_COUNT]
            unnamed.update(set(leases) - await named(leases))
        return await asyncio.to_thread(files.delete_older, self._logs, unnamed, before_at)

    def _link_to(self, node: str) -> FrameLink | None:
        if self._report is None or self._report.node != node:
            return None
        return self._link

    def _command(self, node: str, lease: str, header: dict[str, Any]) -> None:
        if (held := self._leases.get(lease)) is not None and header not in held.commands:
            held.commands.append(header)
        if (link := self._link_to(node)) is not None:
            link.send(header)


def _read_header(data: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = codec.decode(data)
    except ValueError:  # what a job printed may hold what is no UTF-8
        return decode_header(data)
    return header


def _is_last(name: str, header: dict[str, Any]) -> bool:
    """Whether a numbered event is the last one of its lease."""
    if name == "returned":
        return bool(header.get("over"))
    return name != "batch" or bool(header["end"])


def _sandbox_header(chunk: Chunk) -> dict[str, Any]:
    return {
        "t": "sandbox",
        "digest": chunk.sandbox_digest,
        "spec": to_wire(chunk.sandbox),
        "code_path": chunk.code_path,
    }


def _chunk_header(chunk: Chunk, function_bytes: int) -> dict[str, Any]:
    header: dict[str, Any] = {
        "t": "chunk",
        "lease": chunk.lease,
        "slot": chunk.slot,
        "sandbox": chunk.sandbox_digest,
        "function": chunk.function_digest,
        "function_bytes": function_bytes,
        "jids": chunk.jids,
        "attempt": chunk.attempt,
        "single_use": chunk.single_use,
        "fresh": chunk.fresh,
        "max_runtime_seconds": chunk.max_runtime_seconds,
        "profile": chunk.profile,
        "fast": chunk.fast_serialization,
        "max_result_bytes": chunk.max_result_bytes,
        "lease_key": chunk.lease_key,
        "user_id": chunk.user_id,
        "files": [[f.position, f.path, f.size_bytes, f.digest] for f in chunk.files],
        "kind": chunk.kind,
        "estimate_seconds": chunk.estimate_seconds,
    }
    if chunk.secrets:
        header["secrets"] = chunk.secrets
    return header
