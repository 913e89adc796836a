"""One end of a stream of frames, on asyncio; used by the agent and by the local engine."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from picloud_jupyter.protocol.frames import (
    OLDEST_WIRE_VERSION,
    WIRE_VERSION,
    Buffer,
    FrameCounter,
    FrameError,
    FrameReader,
    pack_frame,
)

log = logging.getLogger(__name__)

OnFrame = Callable[[bytes, bytes], None]
READ_BYTES = 64 * 1024


class FrameLink(asyncio.BufferedProtocol):
    """A connection that speaks frames.

    ``on_frame`` gets (header as JSON bytes, body) of each frame, many per read and without a task;
    ``on_closed`` is called once, also after our own `close`. Set both before frames arrive.
    """

    def __init__(self, on_frame: OnFrame, on_closed: Callable[["FrameLink"], None]) -> None:
        self.on_frame = on_frame
        self._on_closed = on_closed
        self._reader = FrameReader(counted=True)
        self._counter: FrameCounter | None = None
        self._space = memoryview(bytearray(READ_BYTES))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where asyncio reads into: one block for the life of the link."""
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on the frames that the last read completed; called by asyncio."""
        try:
            for header, body in self._reader.feed_raw(self._space[:nbytes]):
                self.on_frame(header, body)
        except FrameError as exc:
            log.warning("a peer is cut off, what it sends are not frames: %s", exc)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner; called by asyncio."""
        self._transport = None
        self._on_closed(self)

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent now."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, header: dict[str, Any], *parts: Buffer) -> None:
        """Send one frame; dropped when the link is closed (the owner hears of that apart)."""
        self.send_packed(pack_frame(header, *parts))

    def send_packed(self, *frames: bytes) -> None:
        """Send whole frames in one write."""
        if self._transport is None:
            return
        if self._counter is not None:
            frames = tuple(map(self._counter.number, frames))
        self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def count_for(self, peer_hello: dict[str, Any]) -> None:
        """Number what is sent from now on, if the peer that said ``peer_hello`` takes numbers."""
        if peer_hello.get("counts") is True:
            self._counter = FrameCounter()

    @property
    def unsent_bytes(self) -> int:
        """What was sent here but not yet taken by the kernel."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def pause(self) -> None:
        """Stop reading until `resume`: the peer keeps what it has."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None:
            self._transport.resume_reading()

    def peer_socket(self) -> Any:  # noqa: ANN401  # asyncio's TransportSocket
        """Return the socket below, to ask who the peer is."""
        assert self._transport is not None
        return self._transport.get_extra_info("socket")

    def close(self) -> None:
        """Send what is buffered, then close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


def hello(role: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  # header fields
    """Return the header of the first frame that ``role`` sends on a link."""
    return {
        "t": "hello",
        "wire": WIRE_VERSION,
        "oldest": OLDEST_WIRE_VERSION,
        "role": role,
        "counts": True,
        **fields,
    }


def refusal(header: dict[str, Any]) -> str:
    """Return why the peer that sent hello ``header`` cannot be spoken with; "" if it can."""
    wire, oldest = header.get("wire"), header.get("oldest")
    if header.get("t") != "hello" or not isinstance(wire, int) or not isinstance(oldest, int):
        return "the first frame of a link must be hello with its wire version"
    if wire < OLDEST_WIRE_VERSION or oldest > WIRE_VERSION:
        return (
            f"the {header.get('role', 'peer')} speaks wire versions {oldest} to {wire}, this side "
            f"{OLDEST_WIRE_VERSION} to {WIRE_VERSION}; restart both with `picloud up --replace`"
        )
    return ""
