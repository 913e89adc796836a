"""Joins those who tell of the service itself: a job's story, the metrics, the diagnosis."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.story import Story
from picloud_services.agent.guardian import Guardian
from picloud_services.app.diagnosis import Diagnosis
from picloud_services.app.metrics_page import MetricsPage, Sources
from picloud_services.app.stores import Stores
from picloud_services.base.clock import Clock
from picloud_services.base.events import Events
from picloud_services.base.instruments import Histogram
from picloud_services.base.logs import LogFile
from picloud_services.base.single_instance import ServiceRecord
from picloud_services.base.ticker import Ticker
from picloud_services.config import Settings
from picloud_services.dispatch.dispatcher import NODES_TOPIC, Dispatcher
from picloud_services.dispatch.local_engine import LocalEngine
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.publishing import TOPIC as CHANGED_TOPIC
from picloud_services.jobs.service import JobService
from picloud_services.jobs.story import Stories


@dataclass(frozen=True, slots=True)
class Observed:
    """What the gateway answers about the service itself."""

    page: MetricsPage
    story: Callable[[int, int], Awaitable[Story]]
    diagnose: Callable[[], Awaitable[dict[str, Any]]]


class Observing:
    """Made with the control plane; ``tickers`` and `late` are told of by whoever starts them."""

    def __init__(
        self,
        settings: Settings,
        record: Callable[[], ServiceRecord],
        guardian: Guardian,
        log: LogFile,
        live: LiveJobs,
        events: Events,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._record = record
        self._guardian = guardian
        self._log = log
        self._live = live
        self._events = events
        self._clock = clock
        self._loop_lag = Histogram()
        self.tickers: list[Ticker] = []

    def late(self, seconds: float) -> None:
        """Count how much later than planned the loop came to a timer."""
        self._loop_lag.observe(seconds)

    def watch(
        self, stores: Stores, engine: LocalEngine, jobs: JobService, dispatcher: Dispatcher
    ) -> Observed:
        """Begin to count what passes by; return those who tell of it."""
        settings, database = self._settings, stores.database
        page = MetricsPage(
            Sources(
                settings,
                self._record,
                self._live,
                dispatcher.load,
                dispatcher.telling,
                database.commit_seconds,
                self._loop_lag,
                stores.disk,
                stores.blobs,
                stores.metrics,
                self._log,
                containers=lambda: engine.containers,
                agent_starts=lambda: self._guardian.started,
                occupied_bytes=stores.accounts.occupied_bytes,
                tickers=self.tickers,
            )
        )
        self._events.listen(CHANGED_TOPIC, page.changed)
        self._events.listen(NODES_TOPIC, page.node_changed)
        stories = Stories(
            database, self._live, jobs.whys.why, engine, settings.home, self._clock
        )
        return Observed(
            page, stories.story, Diagnosis(settings, database, self.tickers).describe
        )
