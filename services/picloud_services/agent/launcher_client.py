"""The agent's end of the link to the launcher (L3)."""

import asyncio
import logging
import os
import socket
from collections import deque
from typing import Any

from picloud_jupyter.protocol.frames import decode_header
from picloud_services.agent.container import LOST_START, ContainerError
from picloud_services.agent.orders import StartOrder, launcher_command, start_frame
from picloud_services.agent.processes import Process
from picloud_services.base.frame_link import FrameLink

log = logging.getLogger(__name__)

LINK_FD = 3  # the launcher's end of the link
CALM_SECONDS = 5.0  # the longest pause before another launcher
LOST = {
    "t": "failed",
    "reason": LOST_START,
    "message": "the launcher, which starts containers, ended; see agent.log",
}


class LauncherClient:
    """Starts supervisors through one launcher process; one that is lost is replaced at once.

    So the next order finds one that is ready: it would be in the hands of a new one ten times as long.
    ``first`` is one that was forked (`launcher.fork`); by default `start` starts one.
    """

    def __init__(self, first: tuple[int, socket.socket] | None = None) -> None:
        self._first = first
        self._link: FrameLink | None = None
        self._pid = 0
        self._answers: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._losses = 0  # launchers in a row that ended without an answer
        self._revival: asyncio.Task[None] | None = None
        self._is_closing = False

    async def start(self) -> None:
        """Have a launcher; a new one takes a tenth of a second to be ready, orders may come at once.

        Raises:
            OSError: there are no processes or descriptors left.
        """
        (self._pid, ours), self._first = self._first or _spawn(), None
        loop = asyncio.get_running_loop()
        _, self._link = await loop.create_unix_connection(
            lambda: FrameLink(self._on_frame, self._on_lost), sock=ours
        )

    async def launch(self, order: StartOrder) -> Process:
        """Return the supervisor of a new container; it listens already.

        Raises:
            ContainerError: there is none; the message says why.
        """
        if self._link is None:
            await asyncio.wait([self._revive_once()])
        if self._link is None:
            raise _error(LOST)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._link.send(start_frame(order))
        header = await answer
        if header["t"] != "started":
            raise _error(header)
        return Process(int(header["pid"]), int(header["start_time"]))

    async def close(self) -> None:
        """End the launcher; the supervisors stay."""
        self._is_closing = True
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.wait([self._revival])
        if self._link is not None:
            self._link.close()
        if self._pid:
            await asyncio.to_thread(os.waitpid, self._pid, 0)
            self._pid = 0

    def _on_frame(self, data: bytes, _body: bytes) -> None:
        self._losses = 0
        answer = self._answers.popleft()
        if not answer.done():
            answer.set_result(decode_header(data))

    def _on_lost(self, _link: FrameLink) -> None:
        self._link = None
        self._losses += 1
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_result(LOST)
        if not self._is_closing:
            self._revive_once()

    def _revive_once(self) -> asyncio.Task[None]:
        if self._revival is None or self._revival.done():
            self._revival = asyncio.get_running_loop().create_task(self._revive())
        return self._revival

    async def _revive(self) -> None:
        if self._pid:
            pid, self._pid = self._pid, 0
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            log.error("the launcher ended with wait status %s; another is started", status)
        await asyncio.sleep(pause_seconds(self._losses))
        try:
            await self.start()
        except OSError as exc:  # the next order tries again
            self._losses += 1
            log.warning("there is no launcher: %s", exc)


def pause_seconds(losses: int) -> float:
    """Return how long to wait for another launcher when ``losses`` in a row were of no use.

    >>> pause_seconds(0), pause_seconds(1), pause_seconds(2), pause_seconds(99)
    (0.0, 0.0, 0.1, 5.0)
    """
    return min(0.1 * 2.0 ** min(losses - 2, 9), CALM_SECONDS) if losses > 1 else 0.0


def _error(header: dict[str, Any]) -> ContainerError:
    return ContainerError(header["message"], reason=header["reason"])


def _spawn() -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        command = launcher_command(LINK_FD)
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), LINK_FD),
            ],
            setsid=True,
        )
    return pid, ours
