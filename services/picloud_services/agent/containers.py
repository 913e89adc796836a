"""The containers of one agent: their folders, their start, their surroundings, their cleaning."""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent import gpus
from picloud_services.agent.container import ContainerError
from picloud_services.agent.launcher_client import LauncherClient
from picloud_services.agent.leftovers import clean_up, end_container
from picloud_services.agent.node_facts import NodeFacts, job_uid
from picloud_services.agent.orders import RequestFields, StartOrder, start_frame
from picloud_services.agent.processes import Process
from picloud_services.agent.spawn import failure
from picloud_services.agent.stock import Sandbox
from picloud_services.agent.supervisor_client import SupervisorClient
from picloud_services.agent.surroundings import Surroundings
from picloud_services.base.filesystem import write_atomically
from picloud_services.config import Settings

log = logging.getLogger(__name__)

ORDER_FILE = "order.json"
GREETING_SECONDS = 10.0
CLEAN_TRIES = 30
CLEAN_SECONDS = 2.0  # between two tries
REST_SECONDS = 20.0  # idle for longer, a container gives up its network's memory


class Containers:
    """Starts containers and keeps a `SupervisorClient` for each until it is cleaned away.

    Whoever keeps the books sets the callbacks: ``on_frame`` gets what supervisors say, ``on_failed``
    a container that could not be started (with the reason), ``on_lost`` one whose supervisor was lost,
    ``on_adopted`` one that an earlier agent started, before any other frame of it, ``on_reconnected``
    each other one when its supervisor has said hello.
    """

    def __init__(
        self,
        settings: Settings,
        facts: NodeFacts,
        bundle: Path,
        launcher: LauncherClient,
        surroundings: Surroundings,
        keep_free_bytes: int = 0,
    ) -> None:
        self._settings = settings
        self._facts = facts
        self._bundle = bundle
        self._launcher = launcher
        self._surroundings = surroundings
        self._keep_free_bytes = keep_free_bytes
        self._clients: dict[str, SupervisorClient] = {}
        self._gpus = gpus.GpuBook(facts.gpus.gpus)
        self._gpus_freed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_frame: Callable[[SupervisorClient, bytes, bytes], None] = _ignore_frame
        self.on_failed: Callable[[SupervisorClient, ContainerError], None] = _ignore_failure
        self.on_lost: Callable[[SupervisorClient], None] = _ignore_client
        self.on_adopted: Callable[[SupervisorClient], None] = _ignore_client
        self.on_reconnected: Callable[[SupervisorClient], None] = _ignore_client

    def get(self, container: str) -> SupervisorClient | None:
        """Return the client of ``container``, None once it is cleaned away."""
        return self._clients.get(container)

    def all(self) -> list[SupervisorClient]:
        """Return the client of each container, dying ones included."""
        return list(self._clients.values())

    # ------------------------------------------------------------------------------------ starting
    def start(self, container: str, sandbox: Sandbox) -> None:
        """Begin to start ``container``; chunks may be sent to it at once."""
        client = self._add(self._order(container, sandbox))
        user_id = sandbox.spec.user_id
        log.info("a container is started", extra={"container": container, "user": user_id})
        self._run(self._launch(client))

    async def adopt(self, order: StartOrder, process: Process) -> None:
        """Take in a container whose supervisor ``process`` an earlier agent started.

        Returns when ``on_adopted`` was called for it, or it turned out to be gone. One that says
        nothing for long is ended: nobody could say what it runs, so its jobs will run elsewhere.
        One whose folder was damaged goes on, but code inside reaches the control plane no more.
        """
        client = self._add(order)
        client.is_adopted = True
        devices = [source for source, _ in order.request.devices]
        self._gpus.note(order.container, devices)
        try:
            await self._surroundings.serve(order)
        except OSError as exc:
            log.warning(
                "code in container %s cannot reach the service: %s", order.container, exc
            )
        client.connect(process)
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                await client.greeted.wait()
        except TimeoutError:
            log.warning(
                "container %s: its supervisor %s does not answer; both end",
                *(client.container, process),
            )
            await asyncio.to_thread(end_container, order, process)

    def _add(self, order: StartOrder) -> SupervisorClient:
        self._empty.clear()
        client = self._clients[order.container] = SupervisorClient(
            order,
            on_hello=self._on_hello,
            on_frame=self.on_frame,
            on_gone=self._on_gone,
        )
        return client

    @property
    def _hidden(self) -> tuple[str, ...]:
        paths = self._settings.paths
        return tuple(str(path) for path in (paths.home, paths.run, paths.public) if path)

    def _order(self, container: str, sandbox: Sandbox) -> StartOrder:
        kind = self._facts.report.container_kind
        folder = self._settings.run / "c" / container
        layer = self._settings.home / "layers" / container
        uid = job_uid(kind, sandbox.spec.user_id, self._settings.home)
        return StartOrder(
            container=container,
            folder=str(folder),
            kind=kind,
            sandbox=sandbox.digest,
            request=RequestFields(
                container=container,
                spec=sandbox.spec,
                run_dir=str(folder / "run"),
                out_dir=str(layer / "out"),
                layer_dir=str(layer),
                bundle=str(self._bundle),
                code=sandbox.code,
                host_uid=uid,
                variables={
                    **self._surroundings.variables(sandbox.spec),
                    **gpus.variables((), any_here=bool(self._facts.gpus.gpus), isolated=True),
                },
                hidden=self._hidden,
            ),
            logs=self._facts.report.logs,
            program=self._facts.program,
            orphan_seconds=self._settings.orphan_seconds,
            keep_free_bytes=self._keep_free_bytes,
        )

    async def _launch(self, client: SupervisorClient) -> None:
        if client.order.request.spec.gpus:
            client.order = await self._with_gpus(client.order)
        order = client.order
        try:
            make_folders(order, self._surroundings.resolver(order.request.spec))
            await self._surroundings.serve(order)
            process = await self._launcher.launch(order)
        except ContainerError as exc:
            self._fail(client, exc)
        except OSError as exc:
            self._fail(client, failure(exc))
        else:
            client.connect(process)

    async def _with_gpus(self, order: StartOrder) -> StartOrder:
        """Return ``order`` with devices of its own, once containers that are ending left enough."""
        count = order.request.spec.gpus
        while (taken := self._gpus.take(order.container, count)) is None:
            self._gpus_freed.clear()
            await self._gpus_freed.wait()
        facts = self._facts.gpus
        isolated = order.kind is not ContainerKind.PLAIN
        shown = gpus.variables(taken, any_here=True, isolated=isolated)
        request = replace(
            order.request,
            variables={**order.request.variables, **shown},
            devices=gpus.device_files(taken, facts.shared),
            libraries=facts.libraries,
        )
        return replace(order, request=request)

    def _fail(self, client: SupervisorClient, error: ContainerError) -> None:
        words = {"container": client.container, "leases": list(client.leases)}
        log.error("container %s: %s", client.container, error, extra=words)
        client.has_ended = True
        self.on_failed(client, error)
        self._on_gone(client)

    # ------------------------------------------------------------------------------------- running
    def _on_hello(self, client: SupervisorClient) -> None:
        """Connect the container's network, and let its chunks go when that is there."""
        if not client.is_adopted:
            self.on_reconnected(client)
        if client.facts.get("init_pid"):
            self._attach(client)
        elif client.facts["state"] != "starting":
            client.open()  # it failed to start, or has ended: it will say so
        if client.is_adopted:
            client.is_adopted = False
            self.on_adopted(client)
        client.greeted.set()

    def _attach(self, client: SupervisorClient) -> None:
        facts = client.facts
        self._surroundings.attach(client, int(facts["init_pid"]), tuple(facts["cgroups"]))
        self._open(client)

    def _open(self, client: SupervisorClient) -> None:
        if self._surroundings.is_ready(client.container):
            client.open()
        else:
            client.shut()
            self._run(self._open_when_ready(client))

    async def _open_when_ready(self, client: SupervisorClient) -> None:
        words = await self._surroundings.wait_ready(client.container)
        if words:
            log.warning("container %s runs without a network: %s", client.container, words)
        client.open()

    def prepare_work(self, client: SupervisorClient) -> None:
        """Have everything there for a chunk that is about to be sent."""
        client.busy_at = time.monotonic()
        if client.is_open and not self._surroundings.is_ready(client.container):
            self._open(client)

    def rest_idle(self, now: float) -> None:
        """Save the memory of what idle containers do not need."""
        for client in self._clients.values():
            idle_seconds = now - client.busy_at
            if client.leases or idle_seconds < REST_SECONDS:
                continue
            if self._surroundings.is_ready(client.container):
                self._surroundings.rest(client.container)

    # --------------------------------------------------------------------------------------- ending
    def _on_gone(self, client: SupervisorClient) -> None:
        client.greeted.set()
        if not client.has_ended:
            client.has_ended = True
            words = {"container": client.container, "leases": list(client.leases)}
            log.error("the container lost its supervisor %s", client.process, extra=words)
            self.on_lost(client)
        self._run(self._clean(client))

    async def _clean(self, client: SupervisorClient) -> None:
        await client.settled.wait()
        await self._surroundings.leave(client.container)
        for tries_left in reversed(range(CLEAN_TRIES)):
            try:
                await asyncio.to_thread(clean_up, client.order)
                break
            except OSError as exc:
                log.warning("container %s cannot be removed yet: %s", client.container, exc)
                if not tries_left:
                    break  # the next agent tries again
                await asyncio.sleep(CLEAN_SECONDS)
        if self._gpus.give_back(client.container):
            self._gpus_freed.set()
        self._clients.pop(client.container, None)
        if not self._clients:
            self._empty.set()

    async def wait_gone(self, timeout_seconds: float) -> None:
        """Return when no container is left, or after ``timeout_seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._empty.wait()

    async def close(self) -> None:
        """Let go of all containers; what runs goes on."""
        for client in self._clients.values():
            client.leave()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _run(self, step: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a step of a container failed", exc_info=exc)


def make_folders(order: StartOrder, resolv_conf: str | None) -> None:
    """Make the folders that ``order`` names, for the uid that the job has on the host.

    Raises:
        OSError: the disk refused.
    """
    request = order.request
    os.makedirs(order.folder, mode=0o700)
    os.mkdir(request.run_dir, 0o755)
    os.makedirs(request.layer_dir, mode=0o700)
    os.mkdir(request.out_dir, 0o700)
    if order.kind is ContainerKind.ROOT:
        os.chown(request.out_dir, request.host_uid, -1)
    if resolv_conf is not None:
        write_atomically(
            Path(request.run_dir) / "resolv.conf", resolv_conf.encode(), mode=0o644
        )
    write_atomically(Path(order.folder) / ORDER_FILE, json.dumps(start_frame(order)).encode())


def _ignore_frame(_client: SupervisorClient, _data: bytes, _body: bytes) -> None: ...
def _ignore_failure(_client: SupervisorClient, _error: ContainerError) -> None: ...
def _ignore_client(_client: SupervisorClient) -> None: ...
