"""The composition root: builds every part of the control plane, joins them, and ends them."""

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_jupyter.transport.paths import make_run
from picloud_services.accounts.keys import KeyRing
from picloud_services.accounts.secrets import SecretStore
from picloud_services.accounts.service import Accounts
from picloud_services.agent import output_files
from picloud_services.agent.guardian import LOOK_SECONDS, MISSING_SECONDS, Guardian
from picloud_services.app.facts import ServiceFacts
from picloud_services.app.observing import Observing
from picloud_services.app.owner import at_end_of, parse_owner, remove_all
from picloud_services.app.stores import Stores
from picloud_services.app.upkeep import DAY_SECONDS, Upkeep, default_quota, retention_limits
from picloud_services.base import codec
from picloud_services.base.clock import SystemClock
from picloud_services.base.connections import Source
from picloud_services.base.cores_ledger import CoresLedger
from picloud_services.base.database import Database
from picloud_services.base.events import Events
from picloud_services.base.filesystem import DiskWatch, write_atomically
from picloud_services.base.logs import LogFile
from picloud_services.base.single_instance import ServiceRecord
from picloud_services.base.ticker import Ticker
from picloud_services.blobs.code_archives import CodeArchives
from picloud_services.blobs.filesystem import FileBlobStore
from picloud_services.blobs.uploads import Uploads
from picloud_services.config import Settings
from picloud_services.dispatch.dispatcher import Dispatcher
from picloud_services.dispatch.local_engine import LocalEngine
from picloud_services.dispatch.payloads import ChunkSources
from picloud_services.environments.service import EnvironmentService
from picloud_services.gateway.application import Gateway
from picloud_services.gateway.services import Services
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.retention import Retention
from picloud_services.jobs.service import JobService
from picloud_services.metrics.service import MetricsService

UPKEEP_DELAY_SECONDS = 5.0
SHARES_SECONDS = 60.0
AGENT_SECONDS = 5.0  # for an agent that is on its way when the service goes down
END_SECONDS = 17.0  # of one part; the process leaves even if that part does not
_log = logging.getLogger(__name__)


class ControlPlane:
    """One control plane, from its first file to its last. ``note`` is shown in its status.

    ``record`` is written already, ``guardian`` has looked after the agent once.
    """

    def __init__(
        self,
        settings: Settings,
        record: ServiceRecord,
        guardian: Guardian,
        log: LogFile,
        *,
        note: str = "",
    ) -> None:
        self._settings = settings
        self._note = note
        self._clock = SystemClock()
        self._events = Events()
        self._live = LiveJobs()
        self._stopping = asyncio.Event()
        self._kill_jobs = False
        self._purge = False
        self._owner = parse_owner(settings.owner_process)
        self._is_orphan = False
        self._ends: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._record = record
        self._guardian = guardian
        self._observing = Observing(
            settings, lambda: self._record, guardian, log, self._live, self._events, self._clock
        )

    async def run(self) -> None:
        """Serve until `stop` is called or the process is told to end.

        Raises:
            CloudException, OSError, ValueError: it could not start; nothing is left running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            await self._start()
            words = "control plane %d (version %s) serves %s"
            facts = (os.getpid(), self._record.version, self._settings.paths.api_socket)
            _log.info(words, *facts, extra={"about": "service"})
            await self._stopping.wait()
        finally:
            await self._end()
        if self._is_orphan:
            paths, agent = self._settings.paths, self._record.agent_pid
            await asyncio.to_thread(remove_all, paths, agent)
        elif self._purge and self._note:
            # The client removes the home that it knows; this one it cannot know.
            await asyncio.to_thread(shutil.rmtree, self._settings.home, ignore_errors=True)

    def stop(self, *, kill_jobs: bool = False, purge: bool = False) -> None:
        """End soon. With ``kill_jobs`` the agent ends too, and with it what runs."""
        self._kill_jobs, self._purge = kill_jobs, purge
        if kill_jobs:
            try:
                write_atomically(self._settings.paths.intent, b"down\n")
            except OSError as exc:  # a full disk must not keep the service up
                _log.warning("%s cannot be written: %s", self._settings.paths.intent, exc)
        # The answer to the request that asked for it goes out first.
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)

    def _stop_as_orphan(self) -> None:
        self._is_orphan = True
        self.stop(kill_jobs=True, purge=True)

    async def _start(self) -> None:
        if self._owner is not None:
            at_end_of(self._owner, self._stop_as_orphan)
        self._at_end("the record", self._remove_record)
        stores = await self._open_stores()
        engine = LocalEngine(
            self._settings.paths.agent_socket,
            output=output_files,
            logs=self._settings.home / "logs",
            ledger=self._ledger(),
        )
        jobs, dispatcher = await self._start_jobs(stores, engine)
        services = self._services(stores, engine, jobs, dispatcher)
        self._at_end("the agent", self._agent_stopper(engine, dispatcher))
        gateway = Gateway(services)
        await self._listen(gateway)
        self._at_end("the gateway", gateway.close)
        self._start_watch(gateway, engine)
        self._start_upkeep(stores, engine, jobs)

    def _ledger(self) -> CoresLedger | None:
        folder = self._settings.cores_ledger
        return CoresLedger(os.cpu_count() or 1, Path(folder)) if folder else None

    async def _listen(self, gateway: Gateway) -> None:
        paths = self._settings.paths
        await gateway.listen(
            paths.api_socket, paths.jobs_socket, everybody=paths.public is not None
        )

    def _start_watch(self, gateway: Gateway, engine: LocalEngine) -> None:
        """Keep what jobs and callers need there: an agent, and sockets in the run directory."""
        loop = asyncio.get_running_loop()

        async def look() -> None:
            self._guardian.look()
            if not engine.nodes():
                loop.call_later(MISSING_SECONDS, watch.wake)
            await self._keep_reachable(gateway)

        watch = Ticker("watch", LOOK_SECONDS, look, on_late=self._observing.late)
        self._observing.tickers.append(watch)
        self._events.listen("nodes", lambda _event: watch.wake())
        watch.start()
        self._at_end("the watch", watch.stop)

    async def _keep_reachable(self, gateway: Gateway) -> None:
        """Listen anew if the run directory was removed, as the last logout of a user does."""
        paths = self._settings.paths
        if paths.api_socket.exists() and paths.jobs_socket.exists():
            return
        try:
            make_run(paths)
            await self._listen(gateway)
            self._record.write(paths.record)
        except OSError as exc:
            if self._live.batches:  # it goes on; the directory may come back
                raise
            _log.error("%s was removed and cannot be made again: %s", paths.run, exc)
            self._kill_jobs = True  # there are none: the agent need not stay
            self._stopping.set()
        else:
            _log.warning("%s was removed; listening there anew", paths.run)

    async def _open_stores(self) -> Stores:
        settings = self._settings
        database = Database(Source(settings.home / "store.db", settings.database_url))
        await database.open()
        self._at_end("the store", database.close)
        metrics = MetricsService(
            settings.home / "metrics.db",
            retention_seconds=settings.metrics_days * DAY_SECONDS,
            max_bytes=settings.metrics_bytes,
        )
        await metrics.start()
        self._at_end("the samples", metrics.stop)
        return Stores(
            database,
            metrics,
            FileBlobStore(settings.home / "blobs"),
            FileBlobStore(settings.home / "code"),
            KeyRing.load(settings.home),
            SecretStore.load(settings.home, self._clock.now_at),
            DiskWatch(settings.home, settings.disk_floor_bytes),
            Accounts(database, self._clock, default_quota(settings)),
        )

    async def _start_jobs(
        self, stores: Stores, engine: LocalEngine
    ) -> tuple[JobService, Dispatcher]:
        live = self._live
        dispatcher = Dispatcher(
            stores.database,
            ChunkSources(
                stores.blobs,
                self._code(stores).path,
                stores.keys.lease_key,
                stores.secrets.values,
            ),
            engine,
            live,
            self._events,
            stores.accounts,
            self._clock,
        )
        jobs = JobService(
            stores.database,
            live,
            dispatcher,
            engine,
            self._events,
            stores.accounts,
            self._clock,
        )
        self._events.listen(
            "samples",
            lambda items: stores.metrics.add(codec.convert(list[ResourceSample], items)),
        )
        self._events.listen("jobs.deleted", stores.metrics.forget)
        self._events.listen("nodes", lambda _nodes: self._note_agent(dispatcher.nodes()))
        self._at_end("the jobs", jobs.stop)
        self._at_end("the dispatcher", dispatcher.stop)
        shares = Ticker(
            "fair shares",
            SHARES_SECONDS,
            lambda: stores.accounts.save_recent(dispatcher.changed_shares()),
        )
        shares.start()

        async def keep_shares() -> None:
            await shares.stop()
            await stores.accounts.save_recent(dispatcher.changed_shares())

        self._at_end("fair shares", keep_shares)
        recent = await stores.accounts.start()
        await dispatcher.start(jobs.committed, await jobs.start(), recent)
        return jobs, dispatcher

    def _code(self, stores: Stores) -> CodeArchives:
        limit_bytes = self._settings.max_code_bytes
        return CodeArchives(stores.code_blobs, stores.disk, max_bytes=limit_bytes)

    def _services(
        self, stores: Stores, engine: LocalEngine, jobs: JobService, dispatcher: Dispatcher
    ) -> Services:
        facts = ServiceFacts(
            self._settings,
            lambda: self._record,
            jobs=jobs,
            blobs=stores.blobs,
            disk=stores.disk,
            nodes=dispatcher.nodes,
            user=lambda user_id: stores.accounts.user(user_id, dispatcher.held()),
            note=self._note,
        )
        seen = self._observing.watch(stores, engine, jobs, dispatcher)
        limit_bytes = self._settings.max_upload_bytes
        return Services(
            jobs=jobs,
            blobs=stores.blobs,
            uploads=Uploads(stores.blobs, stores.keys, stores.disk, max_bytes=limit_bytes),
            code=self._code(stores),
            environments=EnvironmentService(
                self._clock, everybody=self._settings.paths.public is not None
            ),
            keys=stores.keys,
            secrets=stores.secrets,
            disk=stores.disk,
            events=self._events,
            outputs=engine,
            samples=stores.metrics,
            nodes=dispatcher.nodes,
            accounts=stores.accounts,
            held=dispatcher.held,
            blocked=dispatcher.blocked,
            describe=facts.describe,
            stop=self.stop,
            story=seen.story,
            metrics=seen.page.text,
            diagnose=seen.diagnose,
            answered=seen.page.answered,
        )

    def _start_upkeep(self, stores: Stores, engine: LocalEngine, jobs: JobService) -> None:
        limits = retention_limits(self._settings)
        upkeep = Upkeep(
            self._settings,
            self._clock,
            jobs,
            Retention(stores.database, engine, stores.accounts, self._clock, limits),
            stores.blobs,
            stores.code_blobs,
            stores.metrics,
            stores.disk,
        )
        loop = asyncio.get_running_loop()
        for ticker in upkeep.tickers():
            self._observing.tickers.append(ticker)
            # The first result must not wait for house-keeping.
            start = loop.call_later(UPKEEP_DELAY_SECONDS, ticker.start)
            self._at_end("upkeep", partial(_end_ticker, start, ticker))

    def _note_agent(self, nodes: list[NodeReport]) -> None:
        """Write down which agent serves now, for `picloud status` and for those who wait for its end."""
        if nodes and nodes[0].process_id != self._record.agent_pid:
            self._record = replace(self._record, agent_pid=nodes[0].process_id)
            self._record.write(self._settings.paths.record)

    def _agent_stopper(
        self, engine: LocalEngine, dispatcher: Dispatcher
    ) -> Callable[[], Awaitable[None]]:
        async def stop_agent() -> None:
            if self._kill_jobs:
                dispatcher.pause()  # or each core that is freed gets the next queued job
                for _ in range(2):  # one that is lost over it leaves the rest to the next
                    await self._wait_for_agent(engine)
                    for node in engine.nodes():
                        await engine.stop_node(node.node, kill=True)

        return stop_agent

    async def _wait_for_agent(self, engine: LocalEngine) -> None:
        """Return when an agent is here that can end what runs, if any does: one may be lost just now."""
        containers = self._settings.run / "c"
        end_at = self._clock.steady_seconds() + AGENT_SECONDS
        while not engine.nodes() and self._clock.steady_seconds() < end_at:
            if not self._guardian.is_expected:
                if not containers.is_dir() or not any(containers.iterdir()):
                    return
                self._guardian.start()
            await asyncio.sleep(MISSING_SECONDS / 10)

    async def _remove_record(self) -> None:
        self._settings.paths.record.unlink(missing_ok=True)

    def _at_end(self, name: str, end: Callable[[], Awaitable[object]]) -> None:
        self._ends.append((name, end))

    async def _end(self) -> None:
        for name, end in reversed(self._ends):
            try:
                async with asyncio.timeout(END_SECONDS):
                    await end()
            except Exception:  # noqa: BLE001  # the top of this loop: the others must end too
                _log.exception("%s did not end well", name)
        self._ends.clear()


async def _end_ticker(start: asyncio.TimerHandle, ticker: Ticker) -> None:
    start.cancel()
    await ticker.stop()
