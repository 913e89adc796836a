"""Reads what running containers use, once a second, and watches memory where no cgroup does.

Nothing is read for idle containers. Counters come from control groups through descriptors that
stay open, network bytes from the container's own namespace; without a control group they come from
/proc and are marked approximate.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_services.agent.cgroup_usage import CgroupUsage
from picloud_services.agent.meters import parse_network
from picloud_services.agent.tree_usage import ProcessTable, TreeUsage
from picloud_services.base.ticker import Ticker

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0
WATCH_SECONDS = 0.2
NEAR_LIMIT = 0.8  # below this share of the limit by the cheap figure, the exact one is not read


@dataclass(frozen=True, slots=True)
class SampledContainer:
    """What the sampler needs to know of a container.

    ``cgroups`` is `RunningContainer.cgroups`, empty where there is none; then the processes below
    ``supervisor_pid`` are counted and their memory is held to ``memory_limit_bytes``. ``init_pid``
    is a process inside; 0 = it has no network of its own to count. ``traffic`` returns (received,
    sent) bytes where the namespace's interfaces do not say it, as `Network.traffic` does.
    ``gpu_usage`` is `Nvml.usage` of its GPUs, where it has some.
    """

    container: str
    supervisor_pid: int
    init_pid: int
    cgroups: tuple[str, ...] = ()
    memory_limit_bytes: int = 0
    traffic: Callable[[], tuple[int, int] | None] | None = None
    gpu_usage: Callable[[], tuple[float, int] | None] | None = None


class Sampler:
    """Samples running containers and reports those over a watched limit. On the event loop.

    ``deliver`` gets the samples of each second, ``over_limit`` (container, used bytes, limit bytes)
    of a container that must be killed with reason `oom`; it is told once per job.
    """

    def __init__(
        self,
        deliver: Callable[[list[ResourceSample]], None],
        over_limit: Callable[[str, int, int], None],
    ) -> None:
        self._deliver = deliver
        self._over_limit = over_limit
        self._containers: dict[str, _Source] = {}
        self._running: dict[str, int] = {}
        self._table = ProcessTable()
        self._sampling = self._ticker("sampler", SAMPLE_SECONDS, self._sample_step)
        self._watching = self._ticker("memory watch", WATCH_SECONDS, self._watch_step)

    def _ticker(self, name: str, seconds: float, step: Callable[[], Awaitable[None]]) -> Ticker:
        return Ticker(name, seconds, step, jitter=0, idle=lambda: not self._running)

    def start(self) -> None:
        """Begin to sample."""
        self._sampling.start()

    async def stop(self) -> None:
        """End, and close all descriptors."""
        await self._sampling.stop()
        await self._watching.stop()
        for container in list(self._containers):
            self.remove(container)

    def add(self, spec: SampledContainer) -> None:
        """Get to know a container; it is idle until `set_running`."""
        self.remove(spec.container)
        self._containers[spec.container] = _Source(spec)
        if not spec.cgroups:
            self._watching.start()

    def remove(self, container: str) -> None:
        """Forget a container; unknown ones are ignored."""
        self._running.pop(container, None)
        source = self._containers.pop(container, None)
        if source is not None:
            source.close()

    def set_running(self, container: str, jid: int | None) -> None:
        """Say which job ``container`` runs now; None = it is idle."""
        if jid is None:
            self._running.pop(container, None)
        elif container in self._containers:
            self._running[container] = jid
            self._sampling.resume()
            self._watching.resume()

    def sample(self) -> list[ResourceSample]:
        """Return one sample of each running container, read now."""
        if not self._running:
            return []
        at = time.time()
        samples = []
        refreshed = False
        for container, jid in self._running.items():
            source = self._containers[container]
            if not source.spec.cgroups and not refreshed:
                self._table.refresh(verify=True)
                refreshed = True
            try:
                samples.append(source.read(at, jid, self._table))
            except OSError as error:
                # Its group or namespace went away: the supervisor will say how it ended.
                logger.debug("container %s could not be sampled: %s", container, error)
        return samples

    def check_limits(self) -> None:
        """Report each running container without a cgroup whose memory is over its limit."""
        watched = [
            (source, jid)
            for container, jid in self._running.items()
            if not (source := self._containers[container]).spec.cgroups
            and source.spec.memory_limit_bytes
            and source.reported_jid != jid
        ]
        if not watched:
            return
        self._table.refresh(verify=False)
        for source, jid in watched:
            spec = source.spec
            limit = spec.memory_limit_bytes
            # Resident memory counts shared pages once per process, so it is never below PSS.
            if self._table.resident_bytes(spec.supervisor_pid) <= limit * NEAR_LIMIT:
                continue
            used = self._table.proportional_bytes(spec.supervisor_pid)
            if used > limit:
                source.reported_jid = jid
                self._over_limit(spec.container, used, limit)

    async def _sample_step(self) -> None:
        samples = self.sample()
        if samples:
            self._deliver(samples)

    async def _watch_step(self) -> None:
        self.check_limits()


class _Source:
    """Where the figures of one container come from; opened when first read."""

    def __init__(self, spec: SampledContainer) -> None:
        self.spec = spec
        self.reported_jid: int | None = None
        self._reader: CgroupUsage | None = None
        self._network = -1
        self._network_text = b""
        self._network_bytes = (0, 0)
        self._seen = TreeUsage()

    def read(self, at: float, jid: int, table: ProcessTable) -> ResourceSample:
        received, sent = self._read_network()
        spec = self.spec
        gpu = (spec.gpu_usage() if spec.gpu_usage is not None else None) or (0.0, 0)
        if not spec.cgroups:
            usage = self._seen = _grown(self._seen, table.usage(spec.supervisor_pid))
            cpu_seconds, memory = usage.cpu_seconds, usage.resident_bytes
            disk_read, disk_written = usage.disk_read_bytes, usage.disk_written_bytes
            processes = usage.processes
        else:
            if self._reader is None:
                self._reader = CgroupUsage(spec.cgroups)
            cpu_seconds, memory, processes, disk_read, disk_written = self._reader.read()
        return ResourceSample(
            *(at, jid, cpu_seconds, memory, disk_read, disk_written, received, sent, processes),
            approximate=not spec.cgroups,
            gpu_percent=gpu[0],
            gpu_memory_bytes=gpu[1],
        )

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._network >= 0:
            os.close(self._network)
            self._network = -1

    def _read_network(self) -> tuple[int, int]:
        if self.spec.traffic is not None and (passed := self.spec.traffic()) is not None:
            return passed
        if not self.spec.init_pid:
            return 0, 0
        if self._network < 0:
            path = f"/proc/{self.spec.init_pid}/net/dev"
            self._network = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        text = os.pread(self._network, 16384, 0)
        if text != self._network_text:
            self._network_text, self._network_bytes = text, parse_network(text)
        return self._network_bytes


def _grown(before: TreeUsage, now: TreeUsage) -> TreeUsage:
    """Return ``now`` with counters that never shrink: a process that ended takes its own along."""
    return TreeUsage(
        max(before.cpu_seconds, now.cpu_seconds),
        now.resident_bytes,
        max(before.disk_read_bytes, now.disk_read_bytes),
        max(before.disk_written_bytes, now.disk_written_bytes),
        now.processes,
    )
