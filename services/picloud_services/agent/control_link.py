"""The agent's end of the link to the control plane (L2): one at a time, the newest wins."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.frames import decode_header
from picloud_jupyter.transport.peers import peer_uid
from picloud_services.base.frame_link import FrameLink, refusal

log = logging.getLogger(__name__)

VOLATILE_BYTES = 1024 * 1024  # behind so much unsent, what nobody must have is left out


class ControlServer:
    """Listens on ``path`` for the control plane of this user.

    ``on_hello`` is called with its hello when one takes over, ``on_frame`` with what it sends then,
    ``on_alone`` when it disconnected and there is no other.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_hello: Callable[[dict[str, Any]], None],
        on_frame: Callable[[bytes, bytes], None],
        on_alone: Callable[[], None],
    ) -> None:
        self._path = path
        self._on_hello = on_hello
        self._on_frame = on_frame
        self._on_alone = on_alone
        self.lost_at = time.monotonic()  # since when there is none
        self._server: asyncio.AbstractServer | None = None
        self._current: FrameLink | None = None
        self._links: set[FrameLink] = set()

    async def start(self) -> None:
        """Listen, or listen anew; only this user may open the socket, and only a process of it is heard.

        Raises:
            OSError: the socket cannot be made.
        """
        if self._server is not None:
            self._server.close()  # its socket's name has gone; its links stay
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._make_link, str(self._path))
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Stop listening and disconnect."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)
        for link in list(self._links):
            link.close()

    @property
    def link(self) -> FrameLink | None:
        """The control plane's link, if one is connected and said hello."""
        return self._current

    def send_packed(self, frame: bytes) -> None:
        """Send a frame that is kept elsewhere until it is acknowledged."""
        if self._current is not None:
            self._current.send_packed(frame)

    def send_volatile(self, frame: bytes) -> None:
        """Send a frame that may get lost, unless the control plane is behind with reading."""
        if self._current is not None and self._current.unsent_bytes < VOLATILE_BYTES:
            self._current.send_packed(frame)

    def _make_link(self) -> FrameLink:
        link = FrameLink(lambda data, _body: self._on_first_frame(link, data), self._on_closed)
        self._links.add(link)
        return link

    def _on_first_frame(self, link: FrameLink, data: bytes) -> None:
        header = decode_header(data)
        words = refusal(header)
        uid = peer_uid(link.peer_socket())
        if uid != os.geteuid():
            words = f"this agent works for uid {os.geteuid()}, not for uid {uid}"
        if words:
            log.warning("a control plane was refused: %s", words)
            link.send({"t": "refused", "message": words})
            link.close()
            return
        before, self._current = self._current, link
        if before is not None:
            log.warning("another control plane takes over")
            before.close()
        link.on_frame = self._on_frame_of(link)
        link.count_for(header)
        self._on_hello(header)

    def _on_frame_of(self, link: FrameLink) -> Callable[[bytes, bytes], None]:
        def on_frame(data: bytes, body: bytes) -> None:
            if link is self._current:  # what an older control plane still sends is not heard
                self._on_frame(data, body)

        return on_frame

    def _on_closed(self, link: FrameLink) -> None:
        self._links.discard(link)
        if link is self._current:
            self._current = None
            self.lost_at = time.monotonic()
            log.info("the control plane disconnected")
            self._on_alone()
