"""The agent's end of the link to the launcher (L3)."""

import asyncio
import logging
import socket
import subprocess
from collections import deque
from typing import Any

from picloud_jupyter.protocol.frames import decode_header
from picloud_services.agent.container import ContainerError
from picloud_services.agent.orders import StartOrder, launcher_command, start_frame
from picloud_services.agent.processes import Process
from picloud_services.base.frame_link import FrameLink

log = logging.getLogger(__name__)

LOST = {"t": "failed", "reason": "start_failed", "message": "the launcher process ended"}


class LauncherClient:
    """Starts supervisors through one launcher process, which is started again when it is lost."""

    def __init__(self) -> None:
        self._link: FrameLink | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start the launcher, which takes a tenth of a second to be ready; orders may come at once.

        Raises:
            OSError: there are no processes or descriptors left.
        """
        self._process, ours = _spawn()
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
                self._bury()
                await self.start()
        if self._link is None:  # it ended at once
            raise ContainerError(str(LOST["message"]), reason=str(LOST["reason"]))
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._link.send(start_frame(order))
        header = await answer
        if header["t"] != "started":
            raise ContainerError(
                f"the container could not be started: {header['message']}",
                reason=header["reason"],
            )
        return Process(int(header["pid"]), int(header["start_time"]))

    async def close(self) -> None:
        """End the launcher; the supervisors stay."""
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def _on_frame(self, data: bytes, _body: bytes) -> None:
        answer = self._answers.popleft()
        if not answer.done():
            answer.set_result(decode_header(data))

    def _on_lost(self, _link: FrameLink) -> None:
        self._link = None
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_result(LOST)

    def _bury(self) -> None:
        if self._process is not None:
            status = self._process.poll()
            log.error(
                "the launcher ended with status %s; starting it again, see agent.log", status
            )


def _spawn() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            launcher_command(theirs.fileno()),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    return process, ours
