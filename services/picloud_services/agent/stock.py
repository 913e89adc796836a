"""Which container serves which slot, what stays warm, what retires: pure.

A slot is the dispatcher's name for one place where chunks run one after another. The stock binds a
container to a slot when a chunk for it arrives, and takes it back when the slot is released. Each
method takes what happened and returns what to do. Time comes in as seconds of a monotonic clock.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from picloud_jupyter.protocol.jobs import SandboxSpec

CHUNKS_PER_CONTAINER = 2  # one runs, one waits behind it
# A restart costs about 30 ms, a no-op element about 30 us: at 100,000 elements that is 1 % of the time.
MAX_ELEMENTS = 100_000
GROWTH_SHARE = 0.25  # of the memory limit, above what the runner had after its first chunk
IDLE_SECONDS = 600.0
CROWD_SECONDS = 60.0  # after this long only one idle container stays
UNMEASURED_BYTES = 16 * 1024 * 1024  # what a runner that has not told its size is taken for


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What makes two containers interchangeable: equal when their digests are. ``code`` is a path."""

    digest: str
    spec: SandboxSpec = field(compare=False)
    code: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Demand:
    """A chunk that wants a container. ``fresh``: one that has run nothing yet."""

    lease: str
    slot: str
    sandbox: Sandbox
    single_use: bool = False
    fresh: bool = False

    @property
    def needs_unused(self) -> bool:
        """Whether only a container that has run nothing will do."""
        return self.single_use or self.fresh


@dataclass(frozen=True, slots=True)
class Wear:
    """What a runner said of itself when a chunk ended: threads and children are left over.

    ``spent``: a job changed what the next one would see.
    """

    elements: int
    rss_bytes: int = 0
    threads: int = 0
    children: int = 0
    spent: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Start ``container`` for ``sandbox``."""

    container: str
    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class Send:
    """Send the chunk of ``lease`` to ``container``, which may still be starting."""

    container: str
    lease: str


@dataclass(frozen=True, slots=True)
class Retire:
    """End ``container``; it has no chunk."""

    container: str


Action = Start | Send | Retire


@dataclass(slots=True)
class _Container:
    sandbox: Sandbox
    slot: str | None = None
    leases: set[str] = field(default_factory=set)
    used: bool = False
    single_use: bool = False
    worn: bool = False
    elements: int = 0
    baseline_bytes: int = 0
    rss_bytes: int = 0
    idle_since: float = 0.0

    def suits(self, demand: Demand) -> bool:
        return (
            self.sandbox == demand.sandbox
            and not self.worn
            and not self.single_use
            and not (self.used and demand.needs_unused)
        )

    def wear(self, wear: Wear) -> None:
        self.elements += wear.elements
        if wear.rss_bytes:
            self.rss_bytes = wear.rss_bytes
            self.baseline_bytes = self.baseline_bytes or wear.rss_bytes
        grown_bytes = self.rss_bytes - self.baseline_bytes
        self.worn = self.worn or bool(
            wear.threads
            or wear.children
            or wear.spent
            or self.elements >= MAX_ELEMENTS
            or grown_bytes > GROWTH_SHARE * self.sandbox.spec.memory_bytes
        )


@dataclass(slots=True)
class _Slot:
    container: str | None = None
    waiting: deque[Demand] = field(default_factory=deque)
    released: bool = False


class Stock:
    """The containers of one agent. ``new_name`` gives the name of each new container.

    At most ``prestart_limit`` unused containers are kept ready for single-use jobs. The machine has
    ``gpus``, which belong to a container as long as it is there.
    """

    def __init__(
        self, new_name: Callable[[], str], *, prestart_limit: int, gpus: int = 0
    ) -> None:
        self._new_name = new_name
        self._prestart_limit = prestart_limit
        self._gpus = gpus
        self._containers: dict[str, _Container] = {}
        self._slots: dict[str, _Slot] = {}

    # ---------------------------------------------------------------------------- what happened
    def chunk(self, demand: Demand, now: float) -> list[Action]:
        """A chunk came: it is sent at once, or waits until its slot's container is free for it."""
        slot = self._slots.get(demand.slot)
        if slot is None:
            slot = self._slots[demand.slot] = _Slot()
        slot.released = False
        slot.waiting.append(demand)
        return self._pump(demand.slot, slot, now)

    def withdraw(self, lease: str) -> bool:
        """Forget the chunk of ``lease`` if it still waits here; whether it did."""
        for slot in self._slots.values():
            for demand in slot.waiting:
                if demand.lease == lease:
                    slot.waiting.remove(demand)
                    return True
        return False

    def ended(self, container: str, lease: str, wear: Wear | None, now: float) -> list[Action]:
        """The chunk of ``lease`` is over in ``container``."""
        found = self._containers.get(container)
        if found is None:
            return []
        found.leases.discard(lease)
        if wear is not None:
            found.wear(wear)
        return self._settle(container, found, now)

    def lost(self, container: str, now: float) -> list[Action]:
        """``container`` is gone, with whatever ran in it."""
        found = self._containers.pop(container, None)
        if found is None or found.slot is None:
            return []
        slot = self._slots[found.slot]
        slot.container = None
        return self._pump(found.slot, slot, now)

    def release(self, name: str, now: float) -> list[Action]:
        """Slot ``name`` gets no chunk for now; its container goes to the warm stock when free."""
        slot = self._slots.get(name)
        if slot is None:
            return []
        slot.released = True
        if slot.container is None:
            return self._pump(name, slot, now)
        return self._settle(slot.container, self._containers[slot.container], now)

    def attach(
        self, container: str, sandbox: Sandbox, slot: str, leases: Iterable[str], now: float
    ) -> None:
        """Take in a container that an earlier agent started; with leases it serves ``slot``.

        What runs there may be meant to be single-use, so it gets no other chunk.
        """
        held = set(leases)
        found = _Container(sandbox, leases=held, used=True, worn=bool(held), idle_since=now)
        self._containers[container] = found
        if found.leases:
            while slot in self._slots:
                slot = f"{slot}+"
            found.slot = slot
            self._slots[slot] = _Slot(container, released=True)

    def release_all(self, now: float) -> list[Action]:
        """Nobody knows the slots any more: release each of them."""
        return [action for name in list(self._slots) for action in self.release(name, now)]

    def tick(
        self, now: float, free_bytes: int, idle_seconds: float = IDLE_SECONDS
    ) -> list[Action]:
        """Retire what was idle for too long, is one too many, or fills half of free memory."""
        idle = sorted(
            ((c.idle_since, name, c) for name, c in self._containers.items() if c.slot is None),
            key=lambda item: item[0],
        )
        held_bytes = sum(c.rss_bytes or UNMEASURED_BYTES for _, _, c in idle)
        actions: list[Action] = []
        for number, (since, name, container) in enumerate(idle, 1):
            is_newest = number == len(idle)
            waited_seconds = now - since
            if (
                waited_seconds >= idle_seconds
                or (waited_seconds >= CROWD_SECONDS and not is_newest)
                or (waited_seconds >= CROWD_SECONDS and container.sandbox.spec.gpus)
                or held_bytes > free_bytes // 2
            ):
                held_bytes -= container.rss_bytes or UNMEASURED_BYTES
                actions.append(self._retire(name))
        return actions

    # ------------------------------------------------------------------------------- what there is
    def slot_of(self, container: str) -> str:
        """Return the slot that ``container`` serves, "" if it is idle or unknown."""
        found = self._containers.get(container)
        return (found.slot or "") if found else ""

    def idle(self) -> tuple[int, int]:
        """Return how many containers are idle and the bytes of memory they hold."""
        sizes = [
            c.rss_bytes or UNMEASURED_BYTES for c in self._containers.values() if c.slot is None
        ]
        return len(sizes), sum(sizes)

    def states(self) -> dict[str, int]:
        """Return how many containers work, are reserved for more, and are idle."""
        found = {"working": 0, "reserved": 0, "idle": 0}
        for container in self._containers.values():
            state = "idle" if container.slot is None else "reserved"
            found["working" if container.leases else state] += 1
        return found

    # ------------------------------------------------------------------------------------ deciding
    def _pump(self, name: str, slot: _Slot, now: float) -> list[Action]:
        """Send what can be sent now; forget the slot when it is released and empty."""
        actions: list[Action] = []
        while slot.waiting:
            demand = slot.waiting[0]
            bound = self._containers[slot.container] if slot.container else None
            if bound is not None and not bound.suits(demand):
                if bound.leases:
                    break
                assert slot.container is not None
                actions += self._unbind(slot.container, bound, now)
                bound = None
            if bound is None:
                actions += self._bind(name, slot, demand)
                assert slot.container is not None
                bound = self._containers[slot.container]
            if len(bound.leases) >= CHUNKS_PER_CONTAINER:
                break
            slot.waiting.popleft()
            actions.append(self._send(slot, bound, demand))
            if demand.single_use:
                actions += self._prestart(demand.sandbox, now)
        if slot.released and not slot.waiting and slot.container is None:
            del self._slots[name]
        return actions

    def _send(self, slot: _Slot, container: _Container, demand: Demand) -> Send:
        assert slot.container is not None
        container.leases.add(demand.lease)
        container.used = True
        container.single_use = container.single_use or demand.single_use
        return Send(slot.container, demand.lease)

    def _bind(self, name: str, slot: _Slot, demand: Demand) -> list[Action]:
        """Bind the best idle container to the slot, else a new one."""
        best = None
        for candidate, container in self._containers.items():
            if container.slot is None and container.suits(demand):
                # a used one first, so that unused ones are there for those who need them;
                # among equals the one that was idle last: its memory is warm
                rank = (container.used, container.idle_since)
                if best is None or rank > best[0]:
                    best = (rank, candidate)
        actions: list[Action] = []
        if best is not None:
            slot.container = best[1]
        else:
            actions += self._free_gpus(demand.sandbox.spec.gpus)
            slot.container = self._new_name()
            self._containers[slot.container] = _Container(demand.sandbox)
            actions.append(Start(slot.container, demand.sandbox))
        self._containers[slot.container].slot = name
        return actions

    def _free_gpus(self, wanted: int) -> list[Action]:
        """Retire idle containers, the longest idle first, until ``wanted`` GPUs have no owner."""
        if not wanted:
            return []
        holding = {n: c for n, c in self._containers.items() if c.sandbox.spec.gpus}
        lacking = wanted - self._gpus + sum(c.sandbox.spec.gpus for c in holding.values())
        idle = sorted((c.idle_since, name) for name, c in holding.items() if not c.leases)
        actions: list[Action] = []
        for _, name in idle:
            if lacking <= 0:
                break
            container = holding[name]
            lacking -= container.sandbox.spec.gpus
            if container.slot is not None:
                self._slots[container.slot].container = None
            actions.append(self._retire(name))
        return actions

    def _settle(self, container: str, found: _Container, now: float) -> list[Action]:
        """After a change: take a free container back if it is spent or its slot released."""
        if found.slot is None:
            return []
        name = found.slot
        slot = self._slots[name]
        actions: list[Action] = []
        if not found.leases:
            spent = found.worn or found.single_use
            if spent or (slot.released and not slot.waiting):
                actions += self._unbind(container, found, now)
        return actions + self._pump(name, slot, now)

    def _unbind(self, container: str, found: _Container, now: float) -> list[Action]:
        assert found.slot is not None
        self._slots[found.slot].container = None
        found.slot = None
        found.idle_since = now
        if found.worn or found.single_use:
            return [self._retire(container)]
        return []

    def _retire(self, container: str) -> Retire:
        del self._containers[container]
        return Retire(container)

    def _prestart(self, sandbox: Sandbox, now: float) -> list[Action]:
        """Keep as many unused containers ready as single-use ones run, up to the limit."""
        if sandbox.spec.gpus:
            return []  # a device is worth more than the start of a container
        alike = [c for c in self._containers.values() if c.sandbox == sandbox]
        running = sum(c.single_use for c in alike)
        ready = sum(c.slot is None and not c.used for c in alike)
        if ready >= min(running, self._prestart_limit):
            return []
        name = self._new_name()
        self._containers[name] = _Container(sandbox, idle_since=now)
        return [Start(name, sandbox)]
