"""What the dispatcher looks after by the clock: slow elements, idle slots, cores of others, lost leases."""

from collections.abc import Callable

from picloud_services.dispatch import chunking
from picloud_services.dispatch.assigning import Assigner
from picloud_services.dispatch.cluster import HeldLease
from picloud_services.dispatch.engine import Engine
from picloud_services.dispatch.waits import Waits
from picloud_services.dispatch.yielding import chunks_to_cut

IDLE_SLOT_SECONDS = 1.0
CLAIM_SECONDS = 1.0
DOUBT_SECONDS = 2.0  # reports that were not acknowledged come within this time of a connection
AWAY_SECONDS = 120.0  # a node that is away this long is lost


class Upkeep:
    """Steps of one ticker; ``lost`` is told the leases that nobody holds any more."""

    def __init__(
        self, assigner: Assigner, engine: Engine, lost: Callable[[str, str], None]
    ) -> None:
        self._assigner = assigner
        self._cluster = assigner.cluster
        self._engine = engine
        self._lost = lost
        self._waits = Waits(assigner)
        self._doubts: dict[str, tuple[str, float]] = {}  # lease -> (node, lost at)
        self._claimed: dict[str, tuple[float, float]] = {}  # node -> (wanted, asked at)

    def doubt(self, lease: str, node: str, seconds: float, now: float) -> None:
        """``lease`` is lost unless something is heard of it within ``seconds``."""
        self._doubts[lease] = node, now + seconds

    def heard(self, lease: str, now: float) -> None:
        """Something was reported for a lease in doubt: wait on."""
        if lease in self._doubts:
            self._doubts[lease] = self._doubts[lease][0], now + DOUBT_SECONDS

    def trust(self, lease: str) -> None:
        """A node says that it holds the lease."""
        self._doubts.pop(lease, None)

    @property
    def is_idle(self) -> bool:
        """Whether `tick` would have nothing to do until something happens."""
        return not self._doubts and not self._cluster.slots

    def tick(self, now: float) -> None:
        """Do what is due."""
        for lease, (node, lost_at) in tuple(self._doubts.items()):
            if now >= lost_at:
                del self._doubts[lease]
                self._lost(lease, node)
        self._release_idle(now)
        self._take_back(now)
        self.claim(now)
        self._waits.look(now)

    def _release_idle(self, now: float) -> None:
        for slot in tuple(self._cluster.slots.values()):
            if (
                not slot.leases
                and not slot.holding
                and now - slot.idle_since >= IDLE_SLOT_SECONDS
            ):
                self._engine.release(slot.node, slot.slot)
                del self._cluster.slots[slot.slot]

    def _take_back(self, now: float) -> None:
        """Take back elements that wait behind a slow one, where cores are idle or others starve."""
        for slot in tuple(self._cluster.slots.values()):
            node = self._cluster.nodes.get(slot.node)
            if node is None or not slot.leases or slot.blocked:
                continue
            lease = slot.leases[0]
            idle_cores = node.free.cores >= slot.wanted.cores
            wanted_elsewhere = bool(self._assigner.starving - {slot.user_id})
            if not (idle_cores or wanted_elsewhere):
                continue
            estimate = self._assigner.estimates.get(lease.key)
            if chunking.overdue(estimate, now - lease.progress_at):
                for held in slot.leases:
                    self.take_back(held)
            elif wanted_elsewhere and len(slot.leases) > 1:
                self.take_back(slot.leases[1])

    def give_way(self, now: float) -> None:
        """Make room for users who starve beside others that have used much more."""
        for lease in chunks_to_cut(self._assigner, now):
            self.take_back(lease)

    def take_back(self, lease: HeldLease) -> None:
        """Ask for the elements of ``lease`` that have not started."""
        waits = lease is not lease.slot.leases[0]
        if lease.sent and not lease.revoked and (waits or lease.left > 1):
            lease.revoked = True
            self._engine.revoke(lease.slot.node, lease.lease)

    def connected(self, node: str) -> None:
        """Ask anew for cores of ``node``: as it is entered it seems to be ours alone."""
        self._claimed.pop(node, None)

    def claim(self, now: float, *, more_cores: float = 0.0) -> None:
        """Ask for the cores that could be used now; other services of the machine may hold some.

        ``more_cores`` are for a job that is about to come.
        """
        waiting_cores = self._assigner.waiting_cores() + more_cores
        for name, node in self._cluster.nodes.items():
            wanted = min(node.capacity.cores, node.used_cores + waiting_cores)
            before, asked_at = self._claimed.get(name, (-1.0, now))
            # Also what was granted whole: a service that has no core at all is given of it then.
            if wanted == before and (not wanted or now - asked_at < CLAIM_SECONDS):
                continue
            self._claimed[name] = wanted, now
            # What runs goes on without any more; where nothing does, part of what is needed is idle.
            least = 1.0 if node.used_cores else self._assigner.least_cores(node.capacity.cores)
            node.granted_cores = self._engine.claim_cores(name, wanted, least)
