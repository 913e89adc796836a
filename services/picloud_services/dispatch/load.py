"""How busy the dispatcher is, for the metrics. Pure; costs per user, node and slot, not per job."""

from dataclasses import dataclass

from picloud_jupyter.protocol.jobs import Resources
from picloud_services.dispatch.assigning import Assigner


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """One node that is connected. ``granted_cores``: those that other services leave to this one."""

    node: str
    capacity: Resources
    free: Resources
    granted_cores: float


@dataclass(frozen=True, slots=True)
class Load:
    """What is queued and given out. ``oldest_wait_seconds``: of the jobs that are next in line."""

    queued: int
    oldest_wait_seconds: float
    leases: int
    nodes: tuple[NodeLoad, ...]


def load_of(assigner: Assigner, now: float) -> Load:
    """Return the load at ``now`` (steady seconds)."""
    queue, cluster = assigner.queue, assigner.cluster
    heads = [queue.head(user_id) for user_id in queue.users()]
    waits = [now - work.since for work in heads if work is not None]
    return Load(
        len(queue),
        max(waits, default=0.0),
        len(cluster.leases),
        tuple(
            NodeLoad(name, node.capacity, node.free, node.granted_cores)
            for name, node in cluster.nodes.items()
        ),
    )
