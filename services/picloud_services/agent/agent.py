"""The agent of one machine: the process that owns containers and outlives the control plane."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from pathlib import Path

from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_jupyter.transport.paths import make_run
from picloud_services.agent import cgroup
from picloud_services.agent.bundle import make_bundle, remove_unused
from picloud_services.agent.container import ContainerError
from picloud_services.agent.containers import Containers
from picloud_services.agent.desk import Desk
from picloud_services.agent.guardian import (
    LOOK_SECONDS,
    MISSING_SECONDS,
    Guardian,
    agent_record,
    the_control_plane,
    write_agent_process,
)
from picloud_services.agent.launcher_client import LauncherClient
from picloud_services.agent.layer_watch import LayerWatch, WatchedLayer, limits_of
from picloud_services.agent.leftovers import (
    Found,
    clean_up,
    end_stray_pasta,
    find_containers,
    remove_stray_layers,
)
from picloud_services.agent.network import Network
from picloud_services.agent.node_facts import NodeFacts, find_facts
from picloud_services.agent.process_table import list_pids
from picloud_services.agent.processes import Process, find_process
from picloud_services.agent.sampler import Sampler
from picloud_services.agent.surroundings import Surroundings
from picloud_services.base.logs import start_logging
from picloud_services.base.ticker import Ticker
from picloud_services.config import Settings

log = logging.getLogger(__name__)

KILL_SECONDS = 5.0
ALONE_SECONDS = (
    60.0  # without a control plane and without work the agent leaves after this long
)
EXIT_RUNNING_ALREADY = 3
SWEEP_SECONDS = cgroup.NEW_SECONDS
PASTA_SECONDS = 60.0  # a look at every process of the machine


class Agent:
    """Everything that one agent is made of. `run` returns when it was told to leave."""

    def __init__(
        self, settings: Settings, facts: NodeFacts, bundle: Path, launcher: LauncherClient
    ) -> None:
        self._settings = settings
        self._left = asyncio.Event()
        self._ticker = Ticker("agent", LOOK_SECONDS, self._tick)
        self._sweeps = [
            Ticker("left control groups", SWEEP_SECONDS, _sweep_groups),
            Ticker("left networks", PASTA_SECONDS, _sweep_networks),
        ]
        self._kills = False
        self._bundle = bundle
        self._launcher = launcher
        self._network = Network(facts.network, settings.run / "network")
        self._sampler = Sampler(self._deliver, self._over_limit)
        self._surroundings = Surroundings(settings, self._network, self._sampler)
        limits = limits_of(
            settings.home / "layers",
            layer_bytes=settings.layer_bytes,
            floor_bytes=settings.disk_floor_bytes,
        )
        self._containers = Containers(
            settings, facts, bundle, self._launcher, self._surroundings, limits.free_bytes
        )
        self._desk = Desk(
            facts.report,
            self._containers,
            settings,
            on_running=self._on_running,
            on_stop=self.leave,
            on_alone=self._ticker.wake,
        )
        self._layer_watch = LayerWatch(
            settings.home / "layers",
            limits,
            self._watched_layers,
            lambda container: self._containers.get(container) is not None,
            self._desk.end_for_room,
        )
        self._guardian = Guardian(
            the_control_plane(settings),
            wanted=lambda: settings.restart and self._desk.holds_work,
            intent=settings.paths.intent,
        )

    async def run(self) -> None:
        """Work until `leave` was called."""
        await self._adopt()
        self._sampler.start()
        self._layer_watch.start()
        for sweep in self._sweeps:
            sweep.start()
        await self._desk.control.start()
        self._say_who()
        self._ticker.start()
        try:
            await self._left.wait()
        finally:
            await self._close()

    def leave(self, kill: bool) -> None:  # noqa: FBT001  # a callback's signature
        """End: with ``kill`` all containers end first, without it what has work goes on."""
        self._kills = kill
        self._left.set()

    async def _adopt(self) -> None:
        """Take over what earlier agents started, and clean away what is dead."""
        run, home = self._settings.run, self._settings.home
        found = await asyncio.to_thread(lambda: list(find_containers(run, home)))
        alive = [item for item in found if item.supervisor is not None]
        names = {item.order.container for item in alive}
        await asyncio.to_thread(_clean_dead, self._settings.home, self._bundle, found, names)
        self._network.sweep(names)
        async with asyncio.TaskGroup() as group:
            for item in alive:
                assert item.supervisor is not None
                group.create_task(self._containers.adopt(item.order, item.supervisor))

    def _on_running(self, container: str, jid: int | None) -> None:
        self._sampler.set_running(container, jid)
        self._layer_watch.resume()

    def _watched_layers(self) -> list[WatchedLayer]:
        return [
            WatchedLayer(
                client.container,
                client.order.request.layer_dir,
                client.process.pid if client.process else 0,
                is_idle=not client.leases,
            )
            for client in self._containers.all()
            if not client.has_ended
        ]

    def _deliver(self, samples: list[ResourceSample]) -> None:
        self._desk.send_samples(samples)

    def _over_limit(self, container: str, used_bytes: int, limit_bytes: int) -> None:
        self._desk.over_limit(container, used_bytes, limit_bytes)

    async def _tick(self) -> None:
        self._desk.tick(self._settings.runner_idle_seconds)
        if self._desk.control.link is None:
            self._endure_alone()
        await self._keep_reachable()
        if not agent_record(self._settings.run).exists():
            self._say_who()

    def _say_who(self) -> None:
        """Write down which process is the agent; where no file can be, it is tried at each tick."""
        try:
            write_agent_process(agent_record(self._settings.run), _ourselves())
        except OSError as exc:
            log.warning("%s cannot be written: %s", agent_record(self._settings.run), exc)

    def _endure_alone(self) -> None:
        """See to it that there is a control plane again, or leave."""
        self._guardian.look()
        asyncio.get_running_loop().call_later(MISSING_SECONDS, self._ticker.wake)
        alone_seconds = time.monotonic() - self._desk.control.lost_at
        if alone_seconds > self._settings.orphan_seconds:
            log.error("no control plane for %.0f s: all containers end", alone_seconds)
            self.leave(kill=True)
        elif alone_seconds > ALONE_SECONDS and not self._desk.holds_work:
            log.info("no control plane and no work: the agent leaves")
            self.leave(kill=True)

    async def _keep_reachable(self) -> None:
        """Listen anew if the run directory was removed, as the last logout of a user does."""
        if self._settings.paths.agent_socket.exists():
            return
        try:
            make_run(self._settings.paths)
            await self._desk.control.start()
        except OSError as exc:
            if self._desk.control.link is not None or self._desk.holds_work:
                raise  # what runs goes on; the directory may come back
            log.warning("%s went and cannot be made again: %s", self._settings.run, exc)
            self.leave(kill=True)
        else:
            log.warning("%s was removed; the agent listens there anew", self._settings.run)

    async def _close(self) -> None:
        await self._ticker.stop()
        for sweep in self._sweeps:
            await sweep.stop()
        self._desk.give_back()
        for client in self._containers.all():
            if self._kills or not client.leases:
                client.kill("shutdown")
        if (
            self._kills
        ):  # with the link open: what ended is acknowledged, so nothing stays behind
            await self._containers.wait_gone(KILL_SECONDS)
        await self._desk.control.close()
        await self._containers.close()
        await self._sampler.stop()
        await self._layer_watch.stop()
        await self._surroundings.close()
        await self._launcher.close()
        agent_record(self._settings.run).unlink(missing_ok=True)


def run_agent(settings: Settings, launcher: LauncherClient) -> int:
    """Be the agent of ``settings.home`` until told to leave; returns the process's exit code.

    3 = another agent runs there already; 1 = it could not start, the log says why.
    """
    make_run(settings.paths)
    for name in ("logs", "layers", "blobs/incoming", "bundle"):
        (settings.home / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(settings.home / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return EXIT_RUNNING_ALREADY
    start_logging(
        settings.home / "agent.log",
        "agent",
        level=settings.log_level,
        max_bytes=settings.log_bytes,
    )
    os.umask(0o077)
    os.chdir("/")  # no mount is kept busy for our sake
    try:
        asyncio.run(_main(settings, launcher))
    except (ContainerError, OSError, ImportError) as exc:
        log.exception("the agent cannot run")
        sys.stderr.write(f"the agent cannot run: {exc}\n")
        return 1
    return 0


async def _main(settings: Settings, launcher: LauncherClient) -> None:
    await launcher.start()
    facts = await find_facts(settings)
    # Not meanwhile: a trial forks, and would take along the locks of what is imported here.
    bundle = await asyncio.to_thread(make_bundle, settings.home)
    agent = Agent(settings, facts, bundle, launcher)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: agent.leave(kill=False))
    log.info(
        "agent %d: containers of kind %s, limits by %s, network by %s",
        *(os.getpid(), facts.report.container_kind.value),
        *(facts.report.limits_grade.value, facts.report.network),
        extra={"about": "service"},
    )
    await agent.run()


def _clean_dead(home: Path, bundle: Path, found: list[Found], alive: set[str]) -> None:
    for item in found:
        if item.supervisor is None:
            with contextlib.suppress(OSError):  # what cannot be removed now is tried next time
                clean_up(item.order)
    remove_stray_layers(home, alive)
    used = {
        Path(item.order.request.bundle).name for item in found if item.supervisor is not None
    }
    remove_unused(home, used | {bundle.name})


async def _sweep_groups() -> None:
    """Remove what killed supervisors and trials left, at any time; what is too new waits for the next look."""
    tree = await asyncio.to_thread(cgroup.detect)
    if tree is not None and (names := await asyncio.to_thread(cgroup.sweep, tree)):
        log.warning("control groups of containers that are gone are removed: %s", names)


async def _sweep_networks() -> None:
    """End the networks that killed agents and supervisors left."""
    if ended := await asyncio.to_thread(lambda: end_stray_pasta(list_pids())):
        log.warning("networks of containers that are gone are ended: processes %s", ended)


def _ourselves() -> Process:
    process = find_process(os.getpid())
    assert process is not None
    return process
