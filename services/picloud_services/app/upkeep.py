"""What the control plane does again and again, beside its work."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from picloud_jupyter.protocol.users import Quota
from picloud_services.base.clock import SystemClock
from picloud_services.base.filesystem import DiskWatch
from picloud_services.base.ticker import Ticker
from picloud_services.blobs.code_archives import archive_id
from picloud_services.blobs.store import BlobStore
from picloud_services.config import Settings
from picloud_services.jobs.retention import Limits, Retention
from picloud_services.jobs.service import JobService
from picloud_services.metrics.service import MetricsService

DISK_SECONDS = 2.0
ABANDON_SECONDS = 30.0
UPLOAD_SECONDS = 10.0
READ_SECONDS = 5.0
AGE_SECONDS = 60.0
HOUR_SECONDS = 3600.0
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Upkeep:
    """The steps, each run by a `Ticker` of its own: one that fails stops no other."""

    settings: Settings
    clock: SystemClock
    jobs: JobService
    retention: Retention
    blobs: BlobStore
    code: BlobStore
    metrics: MetricsService
    disk: DiskWatch

    def tickers(self) -> list[Ticker]:
        """Return the tickers, not started."""
        steps: list[tuple[str, float, Callable[[], Awaitable[object]]]] = [
            ("disk watch", DISK_SECONDS, self.watch_disk),
            ("abandoned maps", ABANDON_SECONDS, self.abandon_silent_maps),
            ("uploads", UPLOAD_SECONDS, self.sweep_uploads),
            ("reading notes", READ_SECONDS, self.jobs.flush_read),
            ("age", AGE_SECONDS, self.retention.note_time),
            ("retention", HOUR_SECONDS / 4, self.retention.prune),
            ("blob sweep", HOUR_SECONDS / 4, self.sweep),
            ("output sweep", DAY_SECONDS, self.sweep_output),
            ("samples", HOUR_SECONDS / 6, self.prune_samples),
        ]
        return [Ticker(name, seconds, step) for name, seconds, step in steps]

    async def watch_disk(self) -> None:
        """Look how much space is left."""
        self.disk.refresh()

    async def abandon_silent_maps(self) -> None:
        """Give up maps whose client is gone."""
        await self.jobs.abandon_silent_maps(self.settings.abandoned_seconds)

    async def sweep_uploads(self) -> None:
        """Remove uploads that were given up."""
        await self.blobs.sweep_uploads()
        await self.code.sweep_uploads()

    async def sweep(self) -> None:
        """Remove payloads that no row names, and archives of modules that nobody used for long."""
        now_at = self.clock.age_at()
        await self.blobs.sweep(self.retention.referenced, now_at=now_at)
        await self.code.sweep(
            self._code_in_use,
            now_at=now_at,
            grace_seconds=self.settings.retention_days * DAY_SECONDS,
        )

    async def sweep_output(self) -> None:
        """Remove output that no row names."""
        await self.retention.sweep_output(now_at=self.clock.age_at())

    async def _code_in_use(self, archives: Sequence[str]) -> set[str]:
        """Return those that unfinished jobs name; others live by their last use."""
        used = {archive_id(user_id, code) for user_id, code in self.jobs.code_versions()}
        return used.intersection(archives)

    async def prune_samples(self) -> None:
        """Remove old samples."""
        await self.metrics.prune(self.clock.age_at())


def retention_limits(settings: Settings) -> Limits:
    """Return how long things are kept, as the settings say."""
    return Limits(
        retention_seconds=settings.retention_days * DAY_SECONDS,
        retention_bytes=settings.retention_bytes,
        row_seconds=settings.row_days * DAY_SECONDS,
    )


def default_quota(settings: Settings) -> Quota:
    """Return what a user may use who has no quota of their own; 0 = no limit."""
    return Quota(
        settings.user_cores,
        settings.user_memory_bytes,
        settings.user_disk_bytes,
        settings.cost_cap,
    )
