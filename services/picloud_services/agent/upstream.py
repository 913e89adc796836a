"""Events on their way from containers to the control plane. On the event loop."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from picloud_jupyter.protocol.frames import decode_header, encode_json, pack_raw
from picloud_services.agent.container import LOST_START
from picloud_services.agent.containers import Containers
from picloud_services.agent.control_link import ControlServer
from picloud_services.agent.incoming import blob_name, move_results
from picloud_services.agent.left_files import has_files, keep_files
from picloud_services.agent.outbox import FILE, Outbox, number_of, without_items
from picloud_services.agent.supervisor_client import SupervisorClient

log = logging.getLogger(__name__)

FULL_BYTES = 64 * 1024 * 1024  # of unacknowledged events: supervisors keep what comes then
BATCH = b'{"t":"batch"'
GONE = b'{"t":"gone"}'  # our own: nothing more comes of this supervisor
EXITED = b'{"t":"exited"'


LOST = {
    "t": "exited",
    "n": 0,
    "lease": "",
    "position": None,
    "wait_status": 9,
    "oom_count": 0,
    "asked": None,
    "lost": True,
    "message": "the process that supervised its container was killed",
}


def returned(lease: str, count: int) -> dict[str, Any]:
    """Return the event that gives a whole chunk back."""
    words = {"t": "returned", "n": 0, "lease": lease, "first": 0, "count": count}
    return {**words, "over": True}


class Books(Protocol):
    """Who must know how leases and containers fare: the desk."""

    def forget(self, lease: str) -> int:
        """Return how many elements the chunk of ``lease`` has, which is given back whole."""

    def lease_over(
        self, client: SupervisorClient, lease: str, usage: dict[str, Any] | None
    ) -> None:
        """``lease`` is over in a container that goes on."""

    def container_dead(self, client: SupervisorClient) -> None:
        """The container runs nothing any more; its leases were reported."""

    def running(
        self, client: SupervisorClient, lease: str | None, position: int | None
    ) -> None:
        """The container is at ``position`` of ``lease``; None: at nothing that is known."""


class Upstream:
    """Numbers events, keeps them until the control plane has them, and moves large results.

    Past 64 MiB of unacknowledged events it reads no more from supervisors, which keep their own.
    """

    def __init__(
        self, containers: Containers, control: ControlServer, incoming: Path, books: Books
    ) -> None:
        self._containers = containers
        self._control = control
        self._incoming = incoming
        self._books = books
        self._outbox = Outbox()
        self._is_paused = False
        self._moves: set[asyncio.Task[None]] = set()
        self._handlers: dict[
            str, Callable[[SupervisorClient, dict[str, Any], bytes, bytes], None]
        ] = {
            "batch": self._batch,
            "returned": self._returned,
            "exited": self._exited,
            "start_failed": self._start_failed,
            "started": self._started,
            "output": self._volatile,
            "ready": self._ready,
            "gone": lambda client, *_: self._lost(client),
        }

    @property
    def has_events(self) -> bool:
        """Whether there are events that the control plane does not have yet."""
        return len(self._outbox) > 0 or bool(self._moves)

    # --------------------------------------------------------------------------- the control plane
    def resend(self) -> None:
        """Send again all that is not acknowledged: the control plane has just connected."""
        for frame in self._outbox.frames():
            self._control.send_packed(frame)

    def reported(self) -> list[str]:
        """Return the leases of which the control plane hears by `resend`."""
        return self._outbox.leases()

    def acknowledge(self, n: int) -> None:
        """Forget events up to ``n`` and tell the supervisors."""
        for container, container_n in self._outbox.acknowledge(n).items():
            if (client := self._containers.get(container)) is not None:
                client.acknowledge(container_n)
        self._hold_back()

    def report(self, header: dict[str, Any]) -> None:
        """Send an event of the agent's own, kept until it is acknowledged.

        The second key of ``header`` is ``n``; its value is given here.
        """
        self._send(self._outbox.add(encode_json(header), lease=header["lease"]))

    def _pass(
        self, client: SupervisorClient, header: dict[str, Any], data: bytes, body: bytes
    ) -> None:
        """Pass on a numbered frame of ``client``: ``data`` is its header undecoded."""
        where = {"container": client.container, "lease": header["lease"]}
        self._send(self._outbox.add(data, body, container_n=header["n"], **where))

    def _send(self, frame: bytes) -> None:
        self._control.send_packed(frame)
        self._hold_back()

    def _hold_back(self) -> None:
        size = self._outbox.size_bytes
        if self._is_paused == (size > (FULL_BYTES // 2 if self._is_paused else FULL_BYTES)):
            return
        self._is_paused = not self._is_paused
        for client in self._containers.all():
            client.pause(paused=self._is_paused)

    # ------------------------------------------------------------------------------ the containers
    def on_frame(self, client: SupervisorClient, data: bytes, body: bytes) -> None:
        """Take one frame of a supervisor; frames behind a result on its way wait for it."""
        if (n := number_of(data)) and not client.is_news(n):
            return  # it came before the link broke
        if client.moving is not None:
            client.moving.append((data, body))
        elif data.startswith(EXITED) and has_files(_written_in(client)):
            self._begin_move(client, data, body)
        elif not data.startswith(BATCH):
            header = decode_header(data)
            self._handlers[header["t"]](client, header, data, body)
        elif FILE in data:
            self._begin_move(client, data, body)
        else:
            self._batch(client, without_items(data), data, body)
        client.took(n)  # not before: a frame that raised breaks the link, and comes again

    def _ready(
        self, client: SupervisorClient, header: dict[str, Any], _data: bytes, _body: bytes
    ) -> None:
        seconds = header.get("seconds") or 0.0
        log.info("the runner is ready after %.3f s", seconds, extra=_ids(client))
        self._books.running(client, next(iter(client.leases), None), 0)  # that is loaded now
        client.be_ready()

    def _batch(
        self, client: SupervisorClient, header: dict[str, Any], data: bytes, body: bytes
    ) -> None:
        self._pass(client, header, data, body)
        self._books.running(client, header["lease"], header["running"])
        if header["end"]:
            self._books.lease_over(client, header["lease"], header["usage"])

    def _begin_move(self, client: SupervisorClient, data: bytes, body: bytes) -> None:
        client.moving = deque([(data, body)])
        client.settled.clear()
        task = asyncio.create_task(self._move(client, client.moving))
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    async def _move(
        self, client: SupervisorClient, waiting: deque[tuple[bytes, bytes]]
    ) -> None:
        """Move the large results of a batch, then go on with the frames that waited behind it."""
        n = 0
        try:
            while waiting:
                data, body = waiting.popleft()
                n = number_of(data)
                header = decode_header(data)
                if FILE in data and header["t"] == "batch":
                    body = await asyncio.to_thread(self._take_files, client, header, body)
                    data = encode_json(header)
                elif header["t"] == "exited" and header["position"] is not None:
                    await asyncio.to_thread(self._keep_left, client, header)
                    data = encode_json(header)
                self._handlers[header["t"]](client, header, data, body)
            client.moving = None
        except Exception:  # the top of a task
            log.exception("what %s said could not be taken; it says it again", client.container)
            client.moving = None
            client.hear_again(n)
            if (GONE, b"") in waiting:  # nobody is there to say it again
                self._lost(client)
        finally:
            client.settled.set()

    def _take_files(
        self, client: SupervisorClient, header: dict[str, Any], body: bytes
    ) -> bytes:
        request = client.order.request
        owners = {request.host_uid, os.geteuid()}
        return move_results(
            *(header["lease"], header["items"], body),
            *(Path(request.out_dir), self._incoming, owners),
        )

    def _keep_left(self, client: SupervisorClient, header: dict[str, Any]) -> None:
        """Keep what the element wrote that went with its container."""
        if header["asked"] == "disk_full":  # to make room, not to fill it a second time
            return
        last = header["position"] + header.get("begun", 1) - 1  # of the one that ran
        target = self._incoming / blob_name(header["lease"], last, "files")
        try:
            files = keep_files(_written_in(client), target)
        except OSError as exc:
            log.warning("the files of a job in %s cannot be kept: %s", client.container, exc)
            return
        if files is not None:
            header["files"] = files

    def _returned(
        self, client: SupervisorClient, header: dict[str, Any], data: bytes, body: bytes
    ) -> None:
        self._pass(client, header, data, body)
        if header.get("over"):
            self._books.lease_over(client, header["lease"], None)

    def _exited(
        self, client: SupervisorClient, header: dict[str, Any], data: bytes, body: bytes
    ) -> None:
        client.has_ended = True
        if header["lease"] is not None:
            words = {name: header.get(name) for name in ("wait_status", "oom_count", "asked")}
            log.info("the container ended while it ran a job: %s", words, extra=_ids(client))
            if client.why_ended:
                data = encode_json({**header, "message": client.why_ended})
            self._pass(client, header, data, body)
        else:
            self._keep_silent(client, header["n"])
            if header["asked"] is None:
                log.warning("idle container %s ended by itself: %s", client.container, header)
        self.return_unsent(client)
        self._books.container_dead(client)

    def return_unsent(self, client: SupervisorClient) -> None:
        """Give back the chunks that never reached the supervisor."""
        for lease in client.take_unsent():
            client.leases.pop(lease, None)
            self.report(returned(lease, self._books.forget(lease)))

    def reconnected(self, client: SupervisorClient) -> None:
        """Give back the chunks that broke off with the link of ``client``."""
        for lease in client.take_cut():
            log.warning("the chunk of lease %s never reached %s", lease, client.container)
            self.report(returned(lease, self._books.forget(lease)))
            self._books.lease_over(client, lease, None)

    def lost(self, client: SupervisorClient) -> None:
        """The supervisor itself was lost; what it said before is still passed on, and first."""
        if client.moving is not None:
            client.moving.append((GONE, b""))
        else:
            self._lost(client)

    def _lost(self, client: SupervisorClient) -> None:
        """End the leases of a supervisor of whom nobody knows how far its chunks were."""
        if client.is_ready:
            self.return_unsent(client)
        else:
            self._fail_unsent(client)
        for lease in client.leases:
            self.report({**LOST, "lease": lease, "container": client.container})
        self._books.container_dead(client)

    def _fail_unsent(self, client: SupervisorClient) -> None:
        """Say that the start was lost that these chunks waited for: it may be, each time anew."""
        message = "the process that supervised its container was killed before it began"
        words = {"reason": LOST_START, "message": message}
        for lease in client.take_unsent():
            client.leases.pop(lease, None)
            self._books.forget(lease)
            self.report({"t": "start_failed", "n": 0, "lease": lease, **words})

    def _start_failed(
        self, client: SupervisorClient, header: dict[str, Any], data: bytes, body: bytes
    ) -> None:
        if header["lease"] is not None:
            self._pass(client, header, data, body)
            self._books.lease_over(client, header["lease"], None)
            return
        log.error("container %s could not be started: %s", client.container, header["message"])
        client.has_ended = True
        for lease in list(client.leases):
            self.report({**header, "lease": lease})
            self._books.lease_over(client, lease, None)
        self._keep_silent(client, header["n"])
        self._books.container_dead(client)

    def _keep_silent(self, client: SupervisorClient, container_n: int) -> None:
        """Acknowledge what the control plane need not know, once it has what came before."""
        if not self._outbox.add_silent(client.container, container_n):
            client.acknowledge(container_n)

    def _started(
        self, client: SupervisorClient, header: dict[str, Any], data: bytes, body: bytes
    ) -> None:
        self._books.running(client, header["lease"], header["position"])
        told = encode_json({**header, "container": client.container})
        self._volatile(client, header, told, body)

    def _volatile(
        self, _client: SupervisorClient, _header: dict[str, Any], data: bytes, body: bytes
    ) -> None:
        self._control.send_volatile(pack_raw(data, body))


def _ids(client: SupervisorClient) -> dict[str, object]:
    """Return what a line about a container names beside it."""
    return {"container": client.container, "leases": list(client.leases)}


def _written_in(client: SupervisorClient) -> Path:
    """Return where the container keeps what is written in its folder; a plain process has no such place."""
    return Path(client.order.request.layer_dir) / "files"
