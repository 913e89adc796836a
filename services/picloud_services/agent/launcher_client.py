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
    """Starts supervisors through one launcher process, which is started again when it is lost.

    ``first`` is one that was forked (`launcher.fork`); by default `start` starts one.
    """

    def __init__(self, first: tuple[int, socket.socket] | None = None) -> None:
        self._first = first
        self._link: FrameLink | None = None
        self._pid = 0
        self._answers: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._losses = 0  # launchers in a row that ended without an answer
        self._starting = asyncio.Lock()

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
        async with self._starting:
            if self._link is None:
                await self._bury()
                await asyncio.sleep(pause_seconds(self._losses))
                await self.start()
        if self._link is None:  # it ended at once
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

    async def _bury(self) -> None:
        if self._pid:
            _, status = await asyncio.to_thread(os.waitpid, self._pid, 0)
            self._pid = 0
            log.error(
                "the launcher ended with wait status %s; starting it again, see agent.log",
                status,
            )


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
