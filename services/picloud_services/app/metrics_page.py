"""GET /metrics: what the service counts of itself. Nothing here costs more as jobs pile up in the store."""

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from picloud_jupyter.protocol.jobs import Status
from picloud_services.app.facts import size_of
from picloud_services.base.filesystem import DiskWatch
from picloud_services.base.instruments import (
    Histogram,
    Metric,
    by_label,
    counter,
    exposition,
    gauge,
)
from picloud_services.base.logs import LogFile
from picloud_services.base.single_instance import ServiceRecord
from picloud_services.base.ticker import Ticker
from picloud_services.blobs.store import BlobStore, BlobUsage
from picloud_services.config import Settings
from picloud_services.dispatch.engine import EngineEvent
from picloud_services.dispatch.load import Load, NodeLoad
from picloud_services.dispatch.telling import Telling
from picloud_services.jobs.live import Change, LiveJobs
from picloud_services.metrics.service import MetricsService

BLOB_SECONDS = 600.0  # between two looks at the folder of blobs, which costs by their number
_STORE_FILES = ("store.db", "store.db-wal", "metrics.db", "service.log", "agent.log")
_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Sources:
    """Whom the page asks."""

    settings: Settings
    record: Callable[[], ServiceRecord]
    live: LiveJobs
    load: Callable[[], Load]
    telling: Telling
    commits: Histogram
    loop_lag: Histogram
    disk: DiskWatch
    blobs: BlobStore
    samples: MetricsService
    log: LogFile
    containers: Callable[[], dict[str, int]]
    agent_starts: Callable[[], int]
    occupied_bytes: Callable[[], int]
    tickers: Sequence[Ticker]


@dataclass(slots=True)
class MetricsPage:
    """Counts what only passes by, and writes the page. On the loop."""

    sources: Sources
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # (route, status)
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # (status, reason)
    agent_connections: int = 0
    _blobs: BlobUsage = field(default_factory=lambda: BlobUsage(0, 0))
    _blobs_until: float = 0.0

    def changed(self, changes: Sequence[Change]) -> None:
        """Count the jobs that one commit ended."""
        for change in changes:
            if change.new not in (Status.QUEUED, Status.WAITING):
                count = change.last_jid - change.first_jid + 1
                self.ends[str(change.new), change.reason or str(change.new)] += count

    def answered(self, route: str, status: int) -> None:
        """Count one request."""
        self.requests[route, status] += 1

    def node_changed(self, event: EngineEvent) -> None:
        """Count the agents that came."""
        self.agent_connections += event.name == "node_up"

    async def text(self) -> str:
        """Return the page."""
        now = time.monotonic()
        if now >= self._blobs_until:
            self._blobs_until = now + BLOB_SECONDS
            self._blobs = await self.sources.blobs.usage()
        families = [*self._jobs(), *self._work(), *self._service(), *self._disk(), *_process()]
        histograms = [
            ("commit_seconds", "Transactions of the store, by duration.", self.sources.commits),
            ("event_loop_lag_seconds", "How late timers were.", self.sources.loop_lag),
        ]
        return exposition(families, histograms)

    def _jobs(self) -> Iterator[Metric]:
        source = self.sources
        load = source.load()
        counts = {str(status): n for status, n in source.live.unfinished_of_all().items()}
        yield by_label("jobs", "gauge", "Jobs that are not finished.", "status", counts)
        ends = [
            ({"status": status, "reason": reason}, count)
            for (status, reason), count in sorted(self.ends.items())
        ]
        about = "Jobs that ended since the service started."
        yield Metric("jobs_finished_total", "counter", about, ends)
        yield gauge("queue_jobs", "Jobs that may run and are not given out.", load.queued)
        yield gauge(
            "queue_oldest_wait_seconds",
            "Longest wait of a job that is next in its user's line.",
            load.oldest_wait_seconds,
        )
        yield gauge("leases", "Leases that are out.", load.leases)
        yield by_label(
            *("leases_ended_total", "counter", "Leases that are over, by what ended them."),
            *("event", source.telling.ended),
        )
        yield counter(
            *("lease_late_reports_total", "Reports dropped, for their lease was over."),
            source.telling.late,
        )
        yield from _nodes(load.nodes)

    def _work(self) -> Iterator[Metric]:
        requests = [
            ({"route": route, "code": str(code)}, count)
            for (route, code), count in sorted(self.requests.items())
        ]
        yield Metric("http_requests_total", "counter", "Requests answered.", requests)
        yield by_label(
            *("containers", "gauge", "Containers, by what they do.", "state"),
            self.sources.containers(),
        )
        healths = [ticker.health for ticker in self.sources.tickers]
        yield by_label(
            *("upkeep_failures_total", "counter", "Steps of upkeep that failed.", "step"),
            {health.name: health.failures for health in healths},
        )
        yield by_label(
            *("upkeep_last_success_timestamp_seconds", "gauge", "When each last worked."),
            *("step", {health.name: health.last_ok_at for health in healths}),
        )

    def _service(self) -> Iterator[Metric]:
        source, record = self.sources, self.sources.record()
        labels = {"version": record.version}
        yield Metric("info", "gauge", "What runs.", [(labels, 1)])
        about = "When the control plane started."
        yield gauge("start_timestamp_seconds", about, record.started_at)
        about = "Connections of an agent; more than one means that one of both was restarted."
        yield counter("agent_connections_total", about, self.agent_connections)
        about = "Agents that this control plane started."
        yield counter("agent_starts_total", about, source.agent_starts())
        about = "Lines of service.log that could not be written."
        yield counter("log_lines_dropped_total", about, source.log.dropped)
        about = "Resource samples that could not be kept."
        yield counter("samples_dropped_total", about, source.samples.dropped)

    def _disk(self) -> Iterator[Metric]:
        source = self.sources
        yield gauge("disk_free_bytes", "Free where the home is.", source.disk.free_bytes)
        about = "With less free space no job is taken."
        yield gauge("disk_floor_bytes", about, source.disk.floor_bytes)
        home = source.settings.home
        sizes = {name: float(size_of([home / name])) for name in _STORE_FILES}
        yield by_label("file_bytes", "gauge", "Files of the home.", "file", sizes)
        about = "Arguments, results, output and files of all users."
        yield gauge("occupied_bytes", about, source.occupied_bytes())
        yield gauge("blobs", "Large payloads, as of the last ten minutes.", self._blobs.count)
        yield gauge("blobs_bytes", "What they take on the disk.", self._blobs.total_bytes)


def _nodes(nodes: Sequence[NodeLoad]) -> Iterator[Metric]:
    def per_node(name: str, about: str, values: list[float]) -> Metric:
        of = {node.node: value for node, value in zip(nodes, values, strict=True)}
        return by_label(name, "gauge", about, "node", of)

    sizes, frees = [node.capacity for node in nodes], [node.free for node in nodes]
    both = list(zip(sizes, frees, strict=True))
    yield per_node("cores_capacity", "Cores for jobs.", [size.cores for size in sizes])
    used = [size.cores - free.cores for size, free in both]
    yield per_node("cores_in_use", "Cores that jobs hold.", used)
    granted = [node.granted_cores for node in nodes]
    yield per_node("cores_granted", "Cores that other services leave to this one.", granted)
    bytes_of = [float(size.memory_bytes) for size in sizes]
    yield per_node("memory_capacity_bytes", "Memory for jobs.", bytes_of)
    held = [float(size.memory_bytes - free.memory_bytes) for size, free in both]
    yield per_node("memory_in_use_bytes", "Memory promised to jobs.", held)


def _process() -> Iterator[Metric]:
    """The control plane itself, under the names that every client library uses."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = used.ru_utime + used.ru_stime
    yield counter(
        "process_cpu_seconds_total", "Processor time of the control plane.", cpu_seconds
    )
    with open("/proc/self/statm", "rb") as file:
        resident_bytes = int(file.read().split()[1]) * _PAGE_BYTES
    yield gauge("process_resident_memory_bytes", "Memory of the control plane.", resident_bytes)
    descriptors = len(os.listdir("/proc/self/fd"))
    yield gauge("process_open_fds", "Descriptors of the control plane.", descriptors)
