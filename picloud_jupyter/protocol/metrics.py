"""The words about resource use."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """One reading of a container while it ran ``jid``; counters grow since the container began.

    ``cpu_seconds`` is CPU time over all cores. ``approximate`` is set where there is no cgroup and
    processes that came and went between two readings are missed. ``gpu_percent`` is how much of the
    time its GPUs were busy, their mean; their memory is the sum.
    """

    at: float
    jid: int
    cpu_seconds: float
    memory_bytes: int
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0
    processes: int = 0
    approximate: bool = False
    gpu_percent: float = 0.0
    gpu_memory_bytes: int = 0
