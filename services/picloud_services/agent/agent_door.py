"""Where the agent reaches a supervisor (L4): a socket that serves one agent, the newest."""

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.frames import (
    OLDEST_WIRE_VERSION,
    WIRE_VERSION,
    Buffer,
    FrameCounter,
    FrameError,
    FrameReader,
    decode_header,
    pack_frame,
    pack_raw,
)
from picloud_jupyter.transport.peers import peer_uid
from picloud_services.agent.supervision_words import check_command

log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024  # a larger block would be mapped anew for each read


def listen(path: str) -> socket.socket:
    """Return a socket that listens at ``path``, for our own uid alone.

    Raises:
        OSError: the path is too long, or its folder is gone.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(4)
    listener.setblocking(False)  # noqa: FBT003  # the standard library's signature
    return listener


@dataclass(frozen=True, slots=True)
class AgentFrame:
    """One frame of an agent; ``raw`` is its header as it came."""

    raw: bytes
    header: dict[str, Any]
    body: bytes

    def packed(self) -> bytes:
        """Return the frame as it came, to be sent on."""
        return pack_raw(self.raw, self.body)


class AgentConnection:
    """One connection from an agent. Never blocks; what cannot be sent now waits.

    ``greeting`` is called once, when the agent has said hello and is understood: what it returns
    goes out first.
    """

    def __init__(
        self, connected: socket.socket, greeting: Callable[[], Iterable[bytes]]
    ) -> None:
        connected.setblocking(False)  # noqa: FBT003  # the standard library's signature
        self.socket = connected
        self.fd = connected.fileno()
        self.is_open = True
        self._greeting = greeting
        self._is_greeted = False
        self._reader = FrameReader(counted=True)
        self._counter: FrameCounter | None = None
        self._unsent: deque[Buffer] = deque()

    def read(self) -> list[AgentFrame]:
        """Return the frames that came; `is_open` is false when the agent left or is cut off."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        try:
            frames = [
                AgentFrame(raw, decode_header(raw), body)
                for raw, body in self._reader.feed_raw(data)
            ]
            for frame in frames:
                check_command(frame.header)
        except FrameError as exc:
            log.warning("an agent is cut off: %s", exc)
            self._refuse(str(exc))
            return []
        if frames and not self._is_greeted:
            return self._greet(frames)
        return frames

    def _greet(self, frames: list[AgentFrame]) -> list[AgentFrame]:
        hello = frames.pop(0).header
        wire, oldest = hello.get("wire"), hello.get("oldest")
        if (
            hello.get("t") != "hello"
            or not isinstance(wire, int)
            or not isinstance(oldest, int)
        ):
            self._refuse("the first frame must be hello, with wire and oldest")
            return []
        if wire < OLDEST_WIRE_VERSION or oldest > WIRE_VERSION:
            self._refuse(
                f"this supervisor speaks wire versions {OLDEST_WIRE_VERSION} to {WIRE_VERSION}, the "
                f"agent {oldest} to {wire}; let its container end with the agent that started it"
            )
            return []
        self._is_greeted = True
        if hello.get("counts") is True:
            self._counter = FrameCounter()
        for frame in self._greeting():
            self._put(frame)
        self.flush()
        return frames

    def _refuse(self, message: str) -> None:
        self._unsent.append(pack_frame({"t": "refused", "message": message}))
        self.flush()
        self.close()

    def send(self, frame: Buffer) -> None:
        """Send one packed frame; before the hello it is left to the greeting."""
        if self._is_greeted and self.is_open:
            self._put(frame)
            self.flush()

    def _put(self, frame: Buffer) -> None:
        self._unsent.append(self._counter.number(frame) if self._counter else frame)

    @property
    def is_idle(self) -> bool:
        """Whether volatile frames may be sent: the agent takes what it is sent."""
        return self._is_greeted and self.is_open and not self._unsent

    @property
    def has_unsent(self) -> bool:
        """Whether the socket was full: call `flush` when it can be written."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what the socket takes."""
        unsent = self._unsent
        while unsent:
            try:
                sent = self.socket.send(unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if sent < len(unsent[0]):
                unsent[0] = memoryview(unsent[0])[sent:]
            else:
                unsent.popleft()

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self.is_open = False
        self._unsent.clear()
        self.socket.close()


def is_our_own(connected: socket.socket) -> bool:
    """Return whether the peer runs as our uid, or as root."""
    return peer_uid(connected) in (os.getuid(), 0)
