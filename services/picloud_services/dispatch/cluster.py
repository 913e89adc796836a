"""What the dispatcher knows of nodes, slots and leases, and what is free. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from picloud_jupyter.protocol.jobs import ContainerKind, JobSpec, Resources
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_services.dispatch.chunking import TARGET_SECONDS
from picloud_services.dispatch.estimate import Key
from picloud_services.dispatch.placement import add, choose_node, need, subtract

MAX_BLOCKED = 64  # runners of a node that wait for other jobs and hold no cores


@dataclass(slots=True, eq=False)
class HeldLease:
    """A lease that is not over. Times are steady seconds."""

    lease: str
    slot: "Slot"
    first_jid: int
    count: int
    attempt: int
    fresh: bool
    key: Key
    next_position: int = 0
    sent: bool = False
    progress_at: float = 0.0  # when it began, or an element of it ended last
    running: int | None = None  # position
    revoked: bool = False  # asked to give back what has not started
    unwanted: bool = False  # some of its jobs were ended by request
    container: str = ""  # that runs it, once the node said so

    @property
    def left(self) -> int:
        """How many elements have not ended."""
        return self.count - self.next_position

    def holds(self, jid: int) -> bool:
        """Return whether ``jid`` is still out under this lease."""
        return self.next_position <= jid - self.first_jid < self.count


@dataclass(slots=True, eq=False)
class Slot:
    """One container, from the dispatcher's side: at most one chunk runs and one waits."""

    slot: str
    node: str
    sandbox: str
    wanted: Resources
    user_id: int
    leases: list[HeldLease] = field(default_factory=list)
    holding: bool = False  # its resources are taken
    kept_gpus: int = 0  # of a blocked one: its container has them all the same
    blocked: int = 0  # requests of its job that wait for other jobs
    express: bool = False  # runs beside full cores, for a moment
    idle_since: float = 0.0

    def core_seconds(self, now: float) -> float:
        """Return what the element that runs has used, at least what a chunk usually does."""
        running = now - self.leases[0].progress_at if self.leases else 0.0
        return self.wanted.cores * max(running, TARGET_SECONDS)


@dataclass(frozen=True, slots=True)
class Held:
    """What a user's slots hold. ``core_seconds``: what runs there used so far."""

    resources: Resources
    core_seconds: float


@dataclass(slots=True)
class NodeState:
    """A node that is connected. ``granted_cores``: what this service may use of it just now."""

    report: NodeReport
    free: Resources
    granted_cores: float
    blocked: int = 0

    @property
    def capacity(self) -> Resources:
        """What the node has for jobs."""
        return self.report.capacity

    @property
    def used_cores(self) -> float:
        """Cores that jobs hold."""
        return self.capacity.cores - self.free.cores

    @property
    def available(self) -> Resources:
        """What may be given out now."""
        cores = min(self.free.cores, self.granted_cores - self.used_cores)
        return Resources(cores, self.free.memory_bytes, self.free.gpus)


class Cluster:
    """Books of who holds what. Nodes that were never seen hold nothing."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeState] = {}
        self.known: dict[str, NodeReport] = {}  # also those that are away
        self.slots: dict[str, Slot] = {}
        self.leases: dict[str, HeldLease] = {}
        self._next_slot = 0

    # ------------------------------------------------------------------------------------- nodes
    def node_up(self, report: NodeReport) -> None:
        """Enter a node; slots that it ran before hold their resources again."""
        self.known[report.node] = report
        self.nodes[report.node] = NodeState(
            report, report.capacity, granted_cores=report.capacity.cores
        )
        for slot in self.slots.values():
            if slot.node == report.node and slot.holding:
                slot.holding = False
                self.hold(slot)
            elif slot.node == report.node and slot.blocked:
                self.nodes[report.node].blocked += 1
                self._take(slot, Resources(0, 0, slot.kept_gpus))

    def node_down(self, node: str) -> None:
        """The node is away; what it runs goes on there."""
        self.nodes.pop(node, None)

    def kinds(self) -> set[ContainerKind]:
        """Return the kinds of containers that nodes have."""
        return {report.container_kind for report in self.known.values()}

    def parallel(self, wanted: Resources) -> int:
        """Return how many jobs of a size the nodes can run at once."""
        return sum(max(1, _count(wanted, node.capacity)) for node in self.nodes.values())

    # ------------------------------------------------------------------------------------- slots
    def place(self, core_type: str, cores: int, gpus: int = 0) -> str | None:
        """Return a node with room for one more job now."""
        return choose_node(
            core_type,
            cores,
            {name: (node.capacity, node.available) for name, node in self.nodes.items()},
            gpus,
        )

    def need_on(self, node: str, core_type: str, cores: int, gpus: int = 0) -> Resources:
        """Return what a job occupies on ``node``."""
        return need(core_type, cores, self.nodes[node].capacity, gpus)

    def idle_slot(self, node: str, sandbox: str) -> Slot | None:
        """Return a slot without work whose container fits."""
        for slot in self.slots.values():
            if slot.sandbox == sandbox and slot.node == node and not slot.leases:
                return slot
        return None

    def new_slot(self, node: str, sandbox: str, wanted: Resources, user_id: int) -> Slot:
        """Enter a slot; it holds nothing yet."""
        self._next_slot += 1
        name = f"s{self._next_slot}"
        while name in self.slots:  # one of before a restart
            self._next_slot += 1
            name = f"s{self._next_slot}"
        slot = self.slots[name] = Slot(name, node, sandbox, wanted, user_id)
        return slot

    def hold(self, slot: Slot) -> None:
        """Take the resources of ``slot``."""
        if not slot.holding:
            slot.holding = True
            self._take(slot, replace(slot.wanted, gpus=slot.wanted.gpus - slot.kept_gpus))
            slot.kept_gpus = 0

    def let_go(self, slot: Slot, *, keep_gpus: bool = False) -> None:
        """Give the resources of ``slot`` back; devices are in its container, so it may keep them."""
        given = Resources(0, 0, slot.kept_gpus)
        if slot.holding:
            slot.holding = False
            given = slot.wanted
        slot.kept_gpus = given.gpus if keep_gpus else 0
        if (node := self.nodes.get(slot.node)) is not None:
            node.free = add(node.free, replace(given, gpus=given.gpus - slot.kept_gpus))

    def _take(self, slot: Slot, taken: Resources) -> None:
        if (node := self.nodes.get(slot.node)) is not None:
            node.free = subtract(node.free, taken)

    # ------------------------------------------------------------------------------------ leases
    def enter(self, lease: HeldLease) -> None:
        """Enter a lease with its slot."""
        self.leases[lease.lease] = lease
        lease.slot.leases.append(lease)

    def remove(self, lease: HeldLease, now: float) -> None:
        """Forget a lease; a slot without any gives its resources back."""
        self.leases.pop(lease.lease, None)
        slot = lease.slot
        ran = slot.leases[:1] == [lease]  # the others wait behind it
        if lease in slot.leases:
            slot.leases.remove(lease)
        if slot.leases:
            if ran:
                slot.leases[0].progress_at = now
                if slot.blocked:
                    self.unblock_all(slot)
                    self.hold(slot)
            return
        self.unblock_all(slot)
        self.let_go(slot)
        slot.express = False
        slot.idle_since = now

    def lease_with(self, jid: int) -> HeldLease | None:
        """Return the lease that ``jid`` is out under."""
        for lease in self.leases.values():
            if lease.holds(jid):
                return lease
        return None

    def leases_within(self, first: int, last: int) -> Iterator[HeldLease]:
        """Yield leases that hold any of ``first`` .. ``last``."""
        for lease in tuple(self.leases.values()):
            start = lease.first_jid + lease.next_position
            if start <= last and lease.first_jid + lease.count - 1 >= first:
                yield lease

    def holding(self, now: float) -> dict[int, Held]:
        """Return what the slots of each user hold, also those beside full cores."""
        found: dict[int, Held] = {}
        for slot in self.slots.values():
            if not slot.holding and not slot.express:
                continue
            before = found.get(slot.user_id, Held(Resources(0.0, 0), 0.0))
            found[slot.user_id] = Held(
                add(before.resources, slot.wanted),
                before.core_seconds + slot.core_seconds(now),
            )
        return found

    def least_need(self, spec: JobSpec) -> Resources | None:
        """Return what a job of ``spec`` occupies where it occupies least; None if no node is known."""
        needs = [
            need(spec.core_type, spec.cores, report.capacity, spec.gpus)
            for report in self.known.values()
        ]
        return min(needs, key=lambda wanted: wanted.memory_bytes, default=None)

    # ----------------------------------------------------------------------------------- blocked
    def block(self, slot: Slot) -> None:
        """Its job waits for other jobs: give its resources back, unless too many did already."""
        node = self.nodes.get(slot.node)
        slot.blocked += 1
        if slot.blocked == 1 and node is not None and node.blocked < MAX_BLOCKED:
            node.blocked += 1
            self.let_go(slot, keep_gpus=True)

    def unblock(self, slot: Slot) -> None:
        """Its job goes on: its resources are taken, even where that is more than there is."""
        if not slot.blocked:
            return
        slot.blocked -= 1
        if not slot.blocked and not slot.holding and slot.leases:
            self._count_unblocked(slot)
            self.hold(slot)

    def unblock_all(self, slot: Slot) -> None:
        """Its job ended while it waited."""
        if slot.blocked and not slot.holding:
            self._count_unblocked(slot)
        slot.blocked = 0

    def _count_unblocked(self, slot: Slot) -> None:
        if (node := self.nodes.get(slot.node)) is not None:
            node.blocked = max(node.blocked - 1, 0)


def _count(wanted: Resources, capacity: Resources) -> int:
    by_cores = int(capacity.cores / wanted.cores)
    return min(by_cores, capacity.gpus // wanted.gpus) if wanted.gpus else by_cores
