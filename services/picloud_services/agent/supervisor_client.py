"""The agent's end of the link to one supervisor (L4)."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from picloud_jupyter.protocol.frames import Buffer, decode_header, pack_frame, pack_raw
from picloud_services.agent.orders import StartOrder
from picloud_services.agent.processes import Process, find_process
from picloud_services.base.frame_link import FrameLink, hello, refusal

log = logging.getLogger(__name__)

KEPT_FUNCTIONS = 16  # the last sent: surely among the 64 by use that the runner keeps
RECONNECT_TRIES = 20
RECONNECT_SECONDS = 0.05
CALM_SECONDS = 5.0  # a link that held so long was no failure; and the longest wait for the next
ACK_SECONDS = 0.02  # one acknowledgement for many short jobs; a chunk takes it along sooner


class SupervisorClient:
    """One container, as the agent sees it.

    ``on_frame`` gets each frame after the hello, ``on_hello`` is called at each connection,
    ``on_gone`` once, when the supervisor has left or was lost. Frames that are sent while the gate is
    shut wait: until the supervisor listens, and until the container's network is there.
    """

    def __init__(
        self,
        order: StartOrder,
        *,
        on_hello: Callable[["SupervisorClient"], None],
        on_frame: Callable[["SupervisorClient", bytes, bytes], None],
        on_gone: Callable[["SupervisorClient"], None],
    ) -> None:
        self.order = order
        self.container = order.container
        self.process: Process | None = None
        self.facts: dict[str, Any] = {}  # the supervisor's hello
        self.leases: dict[str, None] = {}  # sent and not over, in order
        self.has_ended = False  # its `exited` or `start_failed` came
        self.why_ended = ""  # what we ended it for, in words, where its jobs are to hear of it
        self.moving: deque[tuple[bytes, bytes]] | None = (
            None  # frames behind a result on its way
        )
        self.settled = asyncio.Event()  # no result is on its way out of the container's folders
        self.settled.set()
        self.is_adopted = (
            False  # an earlier agent started it, and its books are not taken over yet
        )
        self.greeted = asyncio.Event()  # its first hello came, or it was gone
        self.busy_at = time.monotonic()  # when it last had work
        self._on_hello = on_hello
        self._on_frame = on_frame
        self._on_gone = on_gone
        self._link: FrameLink | None = None
        self._heard_n = 0  # the last numbered frame of the supervisor that was taken
        self._commands: list[tuple[str, bytes]] = []  # sent; a link that breaks may lose them
        self._is_open = False
        self._is_ready = (
            False  # the runner said hello: two chunks may be there, before that one
        )
        self._queue: deque[tuple[str, bytes]] = deque()  # lease of a chunk, or ""; frame
        self._functions: dict[str, None] = {}
        self._acknowledged_n = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_leaving = False
        self._connected_at = 0.0  # loop time
        self._failures = 0  # links in a row that broke soon

    # ------------------------------------------------------------------------------ the connection
    def connect(self, process: Process) -> None:
        """Begin to speak with the supervisor ``process``."""
        self.process = process
        self._task = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        """Connect, again and again while the process is there."""
        loop = asyncio.get_running_loop()
        if self._failures > 1:  # one that is refused would be so for ever
            wait_seconds = RECONNECT_SECONDS * 2 ** min(self._failures, 10)
            await asyncio.sleep(min(wait_seconds, CALM_SECONDS))
        path = f"{self.order.folder}/supervisor.sock"
        for _ in range(RECONNECT_TRIES):
            try:
                _, link = await loop.create_unix_connection(self._make_link, path)
            except OSError:
                if not self.is_alive():
                    break
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._link = link
            self._connected_at = loop.time()
            self._functions.clear()
            link.send(hello("agent"))
            return
        self._is_open = False
        self._on_gone(self)

    def _make_link(self) -> FrameLink:
        return FrameLink(self._on_first_frame, self._on_lost)

    def _on_first_frame(self, data: bytes, _body: bytes) -> None:
        header = decode_header(data)
        if words := refusal(header):
            words = str(header.get("message") or words)  # its own, if it refuses us
            log.error("container %s cannot be used: %s", self.container, words)
            assert self._link is not None
            self._link.abort()
            return
        assert self._link is not None
        self.facts = header
        self._link.on_frame = lambda head, body: self._on_frame(self, head, body)
        self._link.count_for(header)
        self._is_ready = header["ready"]
        if self._acknowledged_n:  # what it has not heard of, it sends again
            self._link.send_packed(self._take_acknowledgement())
        for lease, frame in self._commands:
            if not lease or lease in self.leases:
                self._link.send_packed(frame)
        self._on_hello(self)

    def is_news(self, n: int) -> bool:
        """Return whether its frame ``n`` was not taken yet, on this link or an earlier one."""
        return n > self._heard_n

    def took(self, n: int) -> None:
        """Take note that its frames up to ``n`` need not be said again."""
        self._heard_n = max(self._heard_n, n)

    def hear_again(self, n: int) -> None:
        """Have it say its frames from ``n`` on again, on another link."""
        self._heard_n = min(self._heard_n, n - 1)
        if self._link is not None:
            self._link.abort()

    def take_cut(self) -> list[str]:
        """Return the leases whose chunks were sent and did not reach the supervisor that said hello."""
        if "reported" not in self.facts:  # of an older version, it does not say what has ended
            return []
        queued = {lease for lease, _ in self._queue}
        there = {lease for lease, _ in self.facts["leases"]} | set(self.facts["reported"])
        return [lease for lease in self.leases if lease not in queued | there]

    def _on_lost(self, _link: FrameLink) -> None:
        self._link = None
        self._is_open = False
        calm = asyncio.get_running_loop().time() - self._connected_at > CALM_SECONDS
        self._failures = 0 if calm else self._failures + 1
        if not self._is_leaving:
            self._task = asyncio.create_task(self._connect())

    def is_alive(self) -> bool:
        """Whether the very process of the supervisor still runs."""
        return self.process is not None and find_process(self.process.pid) == self.process

    def leave(self) -> None:
        """Disconnect; the supervisor goes on."""
        self._is_leaving = True
        if self._ack_timer is not None:
            self._send_acknowledgement()
        if self._task is not None:
            self._task.cancel()
        if self._link is not None:
            self._link.close()

    # ------------------------------------------------------------------------------------- sending
    @property
    def is_open(self) -> bool:
        """Whether chunks may go out."""
        return self._is_open

    def open(self) -> None:
        """Send what waited, and from now on everything at once."""
        self._is_open = self._link is not None
        self._flush()

    @property
    def is_ready(self) -> bool:
        """Whether the runner said hello: what comes to nothing before that is a lost start."""
        return self._is_ready

    def shut(self) -> None:
        """Let frames wait until `open`."""
        self._is_open = False

    def be_ready(self) -> None:
        """The runner is there: the chunk behind the first one may go out, too."""
        self._is_ready = True
        self._flush()

    def take_unsent(self) -> list[str]:
        """Return the leases whose chunks never left, and forget these."""
        unsent = [lease for lease, _ in self._queue if lease]
        self._queue.clear()
        return unsent

    def _flush(self) -> None:
        """Send in order what may go out now."""
        while self._queue and self._is_open and self._link is not None:
            lease, frame = self._queue[0]
            if lease and not self._is_ready and next(iter(self.leases), lease) != lease:
                break
            self._queue.popleft()
            if self._ack_timer is not None:
                self._link.send_packed(self._take_acknowledgement(), frame)
            else:
                self._link.send_packed(frame)

    def send_chunk(
        self, raw: bytes, header: dict[str, Any], function: bytes, arguments: Buffer
    ) -> None:
        """Send a chunk; ``raw`` is its header as it came, with or without the function."""
        if not (self._is_open and self._is_ready):
            pass  # it may go out on another connection, so it brings its function along
        elif function and header["function"] not in self._functions:
            self._functions[header["function"]] = None
            if len(self._functions) > KEPT_FUNCTIONS:
                del self._functions[next(iter(self._functions))]
        else:
            function = b""
        if header["function_bytes"] == len(function):
            frame = pack_raw(raw, function, arguments)
        else:
            frame = pack_frame({**header, "function_bytes": len(function)}, function, arguments)
        self._send(frame, header["lease"])

    def _send(self, frame: bytes, lease: str = "") -> None:
        self._queue.append((lease, frame))
        self._flush()

    def revoke(self, lease: str) -> None:
        """Take back what of ``lease`` has not started."""
        self._command(pack_frame({"t": "revoke", "lease": lease}), lease)

    def kill(self, asked: str, lease: str | None = None, position: int | None = None) -> None:
        """End the container, or only if it runs ``position`` (None: anything) of ``lease``."""
        frame = pack_frame({"t": "kill", "asked": asked, "lease": lease, "position": position})
        self._command(frame, lease or "", at_once=lease is None)

    def _command(self, frame: bytes, lease: str = "", *, at_once: bool = False) -> None:
        """Send what must not get lost: on the next link again, as long as ``lease`` is not over."""
        kept = [item for item in self._commands if not item[0] or item[0] in self.leases]
        self._commands = [*(item for item in kept if item[1] != frame), (lease, frame)]
        if at_once and self._link is not None:
            self._link.send_packed(frame)  # not behind chunks that wait for a network
        else:
            self._send(frame)

    def retire(self) -> None:
        """Let the container end when its running chunk has."""
        self._command(pack_frame({"t": "retire"}))

    def acknowledge(self, n: int) -> None:
        """Say soon that the control plane has the events up to ``n``."""
        self._acknowledged_n = n
        if self.has_ended:
            self._send_acknowledgement()  # it waits for nothing else
        elif self._ack_timer is None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(ACK_SECONDS, self._send_acknowledgement)

    def _send_acknowledgement(self) -> None:
        frame = self._take_acknowledgement()
        if self._link is not None:
            self._link.send_packed(frame)

    def _take_acknowledgement(self) -> bytes:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        return pack_frame({"t": "ack", "n": self._acknowledged_n})

    def pause(self, *, paused: bool) -> None:
        """Stop reading what the supervisor sends, or go on."""
        if self._link is not None:
            (self._link.pause if paused else self._link.resume)()
