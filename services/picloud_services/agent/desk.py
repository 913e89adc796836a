"""The agent's desk: gives chunks to containers and knows which lease is where. On the event loop."""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.codec import from_wire, to_wire
from picloud_jupyter.protocol.frames import Buffer, decode_header, pack_frame
from picloud_jupyter.protocol.ids import count_ranges
from picloud_jupyter.protocol.jobs import SandboxSpec
from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_jupyter.protocol.recent import RecentKeys
from picloud_services.agent.container import ContainerError
from picloud_services.agent.containers import Containers
from picloud_services.agent.control_link import ControlServer
from picloud_services.agent.node_facts import available_bytes
from picloud_services.agent.stock import Action, Demand, Sandbox, Send, Start, Stock, Wear
from picloud_services.agent.supervisor_client import SupervisorClient
from picloud_services.agent.upstream import Upstream, returned
from picloud_services.base.frame_link import hello
from picloud_services.config import Settings

log = logging.getLogger(__name__)

KEPT_KEYS = 256  # docs/internals.md 5: functions and sandboxes that both ends of the link keep
FORGOTTEN_SECONDS = 60.0  # a lease left out so long by a control plane that renews others ends


@dataclass(slots=True)
class _Payload:
    """A chunk as it came, until it is sent on."""

    raw: bytes
    header: dict[str, Any]
    function: bytes
    arguments: Buffer


@dataclass(slots=True)
class _Lease:
    """A chunk that is not over. ``client`` is None, and ``payload`` there, until it is sent."""

    slot: str
    jids: list[tuple[int, int]]
    renewed_at: float
    payload: _Payload | None = None
    client: SupervisorClient | None = None


class Desk:
    """Joins the control plane's link, the stock of containers and their supervisors."""

    def __init__(
        self,
        report: NodeReport,
        containers: Containers,
        settings: Settings,
        *,
        on_running: Callable[[str, int | None], None],
        on_stop: Callable[[bool], None],
        on_alone: Callable[[], None],
    ) -> None:
        self._report = report
        self._containers = containers
        self.control = ControlServer(
            settings.paths.agent_socket,
            on_hello=self._on_hello,
            on_frame=self._on_command,
            on_alone=on_alone,
        )
        self._on_running = on_running
        incoming = settings.home / "blobs" / "incoming"
        self._upstream = Upstream(containers, self.control, incoming, self)
        self._stock = Stock(
            new_name,
            prestart_limit=max(1, int(report.capacity.cores)),
            gpus=report.capacity.gpus,
        )
        self._leases: dict[str, _Lease] = {}
        self._functions = RecentKeys[bytes](KEPT_KEYS)
        self._sandboxes = RecentKeys[Sandbox](KEPT_KEYS)
        self._epoch = ""
        self._renewed_at = 0.0  # when the control plane last said which leases it knows
        containers.on_frame = self._upstream.on_frame
        containers.on_failed = self._on_failed
        containers.on_lost = self._upstream.lost
        containers.on_adopted = self._take_books
        containers.on_reconnected = self._upstream.reconnected
        self._commands: dict[str, Callable[[dict[str, Any], bytes, bytes], None]] = {
            "chunk": self._chunk,
            "sandbox": self._sandbox,
            "revoke": self._revoke,
            "kill": self._kill,
            "release": self._release,
            "renew": self._renew,
            "ack": lambda header, _data, _body: self._upstream.acknowledge(header["n"]),
            "stop": lambda header, _data, _body: on_stop(bool(header["kill"])),
        }

    @property
    def holds_work(self) -> bool:
        """Whether there is a lease, or an event that the control plane does not have yet."""
        return bool(self._leases) or self._upstream.has_events

    # --------------------------------------------------------------------------- the control plane
    def _on_hello(self, header: dict[str, Any]) -> None:
        """A control plane connected: tell it what is here, and what it may have missed."""
        now = time.monotonic()
        for held in self._leases.values():
            held.renewed_at = now
        if header.get("epoch") != self._epoch:  # nobody knows the slots of the one before
            self._epoch = str(header.get("epoch"))
            self._do(self._stock.release_all(now))
        leases = [[lease, held.slot] for lease, held in self._leases.items()]
        link = self.control.link
        assert link is not None
        report, reported = to_wire(self._report), self._upstream.reported()
        link.send(hello("agent", report=report, leases=leases, reported=reported))
        self._upstream.resend()

    def _on_command(self, data: bytes, body: bytes) -> None:
        """Do what the control plane says."""
        header = decode_header(data)
        self._commands[header["t"]](header, data, body)

    def _sandbox(self, header: dict[str, Any], _data: bytes, _body: bytes) -> None:
        spec = from_wire(SandboxSpec, header["spec"])
        found = Sandbox(header["digest"], spec, header["code_path"])
        self._sandboxes.put(found.digest, found)

    def _chunk(self, header: dict[str, Any], data: bytes, body: bytes) -> None:
        lease, digest, size = header["lease"], header["function"], header["function_bytes"]
        sandbox = self._sandboxes.get(header["sandbox"])
        function = body[:size] if size else self._functions.get(digest) or b""
        if size:
            self._functions.put(digest, function)
        if sandbox is None or not (function or _has_function_file(header)):
            words = "the control plane sent a chunk without its sandbox or its function"
            self._report_failed(lease, ContainerError(words))
            return
        arguments = memoryview(body)[size:] if size else body
        now = time.monotonic()
        payload = _Payload(data, header, function, arguments)
        self._leases[lease] = _Lease(header["slot"], header["jids"], now, payload)
        demand = Demand(lease, header["slot"], sandbox, header["single_use"], header["fresh"])
        self._do(self._stock.chunk(demand, now))

    def _revoke(self, header: dict[str, Any], _data: bytes, _body: bytes) -> None:
        lease = header["lease"]
        held = self._leases.get(lease)
        if held is not None and not self._withdraw(lease, held) and held.client is not None:
            held.client.revoke(lease)

    def _kill(self, header: dict[str, Any], _data: bytes, _body: bytes) -> None:
        lease = header["lease"]
        held = self._leases.get(lease)
        if held is not None and not self._withdraw(lease, held) and held.client is not None:
            held.client.kill(header["asked"], lease, header["position"])

    def _withdraw(self, lease: str, held: _Lease) -> bool:
        """Give back a chunk that no container has yet; whether that was so."""
        if not self._stock.withdraw(lease):
            return False
        del self._leases[lease]
        self._upstream.report(returned(lease, count_ranges(held.jids)))
        return True

    def give_back(self) -> None:
        """Return each chunk that no supervisor has yet: this agent leaves, and they with it."""
        for lease, held in list(self._leases.items()):
            self._withdraw(lease, held)
        for client in self._containers.all():
            self._upstream.return_unsent(client)

    def _release(self, header: dict[str, Any], _data: bytes, _body: bytes) -> None:
        self._do(self._stock.release(header["slot"], time.monotonic()))

    def _renew(self, header: dict[str, Any], _data: bytes, _body: bytes) -> None:
        self._renewed_at = now = time.monotonic()
        for lease in header["leases"]:
            if (held := self._leases.get(lease)) is not None:
                held.renewed_at = now

    # ----------------------------------------------------------------------------------- the stock
    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Start):
                self._containers.start(action.container, action.sandbox)
            elif (client := self._containers.get(action.container)) is not None:
                client.retire()

    def _send(self, action: Send) -> None:
        held = self._leases[action.lease]
        client = self._containers.get(action.container)
        payload, held.payload = held.payload, None
        assert client is not None
        assert payload is not None
        held.client = client
        client.leases[action.lease] = None
        if len(client.leases) == 1:  # to load a function takes memory, too
            self.running(client, action.lease, 0)
        self._containers.prepare_work(client)
        client.send_chunk(payload.raw, payload.header, payload.function, payload.arguments)

    # ------------------------------------------------------------------------------ the containers
    def forget(self, lease: str) -> int:
        """Return how many elements the chunk of ``lease`` has, which is given back whole."""
        return count_ranges(self._leases.pop(lease).jids)

    def lease_over(
        self, client: SupervisorClient, lease: str, usage: dict[str, Any] | None
    ) -> None:
        """``lease`` is over in a container that goes on."""
        client.leases.pop(lease, None)
        client.busy_at = now = time.monotonic()
        held = self._leases.pop(lease, None)
        wear = None
        if usage is not None and held is not None:
            wear = Wear(
                count_ranges(held.jids),
                usage.get("rss_bytes", 0),
                usage.get("threads", 0),
                usage.get("children", 0),
                bool(usage.get("spent")),
            )
        if not client.leases:
            self._on_running(client.container, None)
        self._do(self._stock.ended(client.container, lease, wear, now))

    def container_dead(self, client: SupervisorClient) -> None:
        """The container runs nothing any more; its leases were reported."""
        client.take_unsent()  # reported with the others: nobody must give them back again
        for lease in client.leases:
            self._leases.pop(lease, None)
        client.leases.clear()
        self._on_running(client.container, None)
        self._do(self._stock.lost(client.container, time.monotonic()))

    def running(
        self, client: SupervisorClient, lease: str | None, position: int | None
    ) -> None:
        """The container is at ``position`` of ``lease``, or about to be: tell the sampler which job that is."""
        held = self._leases.get(lease) if lease else None
        if held is not None and held.jids and position is not None:
            self._on_running(client.container, jid_at(held.jids, position))

    def _on_failed(self, client: SupervisorClient, error: ContainerError) -> None:
        for lease in list(client.leases):
            self._report_failed(lease, error)
        self.container_dead(client)

    def _report_failed(self, lease: str, error: ContainerError) -> None:
        words = {"t": "start_failed", "n": 0, "lease": lease}
        self._upstream.report({**words, "reason": error.reason, "message": str(error)})

    def _take_books(self, client: SupervisorClient) -> None:
        """An earlier agent started this container: its supervisor says what it runs."""
        now = time.monotonic()
        order = client.order
        slot = client.container
        jids = client.facts.get("jids") or {}  # one of an older version does not say
        for lease, slot in client.facts["leases"]:  # all have the same slot
            self._leases[lease] = _Lease(slot, jids.get(lease, []), now, client=client)
            client.leases[lease] = None
        self.running(client, next(iter(client.leases), None), client.facts["running"])
        sandbox = Sandbox(order.sandbox, order.request.spec, order.request.code)
        self._stock.attach(client.container, sandbox, slot, client.leases, now)

    # ---------------------------------------------------------------------------------------- time
    def tick(self, idle_seconds: float) -> None:
        """Retire what is idle for too long, and end what nobody wants any more."""
        now = time.monotonic()
        self._do(self._stock.tick(now, available_bytes(), idle_seconds))
        self._containers.rest_idle(now)
        if self.control.link is None:
            return
        for lease, held in list(self._leases.items()):
            # Not by our own clock: a control plane that stands still forgets nothing.
            forgotten_seconds = self._renewed_at - held.renewed_at
            if forgotten_seconds > FORGOTTEN_SECONDS and held.client is not None:
                words = "lease %s is not renewed by the control plane; it ends"
                log.error(words, lease, extra={"lease": lease})
                held.client.kill("shutdown")
        count, size_bytes = self._stock.idle()
        states = self._stock.states()
        states["ending"] = len(self._containers.all()) - sum(states.values())
        told = {"t": "idle", "containers": count, "bytes": size_bytes, "states": states}
        self.control.send_volatile(pack_frame(told))

    def send_samples(self, samples: list[ResourceSample]) -> None:
        """Pass on what the sampler read."""
        items = [to_wire(sample) for sample in samples]
        self.control.send_volatile(pack_frame({"t": "samples", "items": items}))

    def over_limit(self, container: str, used_bytes: int, limit_bytes: int) -> None:
        """A container whose memory is watched holds more than it may: end it."""
        words = "the container uses %d of %d bytes: it is ended"
        log.warning(words, used_bytes, limit_bytes, extra={"container": container})
        if (client := self._containers.get(container)) is not None:
            client.kill("oom")

    def end_for_room(self, container: str, why: str) -> None:
        """End a container that takes too much of the disk; its job hears ``why``."""
        if (client := self._containers.get(container)) is not None:
            client.why_ended = why
            client.kill("disk_full")


def new_name() -> str:
    """Return a name for a new container."""
    return secrets.token_hex(6)


def jid_at(ranges: list[tuple[int, int]], position: int) -> int:
    """Return the jid at ``position`` of a chunk.

    >>> jid_at([(5, 6), (9, 9)], 2)
    9
    """
    for first, last in ranges:
        if position <= last - first:
            return first + position
        position -= last - first + 1
    raise IndexError(position)


def _has_function_file(header: dict[str, Any]) -> bool:
    return any(item[0] == -1 for item in header["files"])
