"""Two stream connections joined end to end: what one side sends, the other receives.

Bytes are not looked at. At most `BUFFER_BYTES` wait in each direction: a slow reader slows the
writer. A side that has sent all may still receive (half-close).
"""

import asyncio
from collections.abc import Callable
from typing import cast

BUFFER_BYTES = 256 * 1024


class Side(asyncio.Protocol):
    """One end of a splice.

    ``active_at`` is loop time of the last byte in either direction, ``received_bytes`` what came
    in at this end and was passed on.
    """

    def __init__(self, on_lost: Callable[["Side"], None] | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: Side | None = None
        self.active_at = 0.0
        self.received_bytes = 0
        self._on_lost = on_lost
        self._held: bytearray | None = bytearray()  # came before `join`; None: is dropped
        self._ended = False
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self.active_at = self._loop.time()

    def data_received(self, data: bytes) -> None:
        """Pass ``data`` on; before `join`, hold what came and read no more."""
        peer = self.peer
        if peer is None:
            # Reading is not paused earlier: Python 3.11.2 forgets a pause made in connection_made.
            if self._held is not None and self.transport is not None:
                self._held += data
                self.transport.pause_reading()
        elif peer.transport is not None:
            self.active_at = peer.active_at = self._loop.time()
            self.received_bytes += len(data)
            peer.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end on; keep the other direction open until it ends too."""
        self._ended = True
        peer = self.peer
        if peer is None:
            return self._held is not None  # `join` passes it on
        if peer.transport is None or peer.transport.is_closing():
            return False
        if peer.transport.can_write_eof():
            peer.transport.write_eof()
        return not peer._ended  # noqa: SLF001  # both are sides of one splice

    def pause_writing(self) -> None:
        """Stop reading from the peer: this side's receiver is slow."""
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read from the peer again."""
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the peer once it has sent what it holds."""
        self.transport = None
        peer, self.peer = self.peer, None
        if peer is not None and peer.transport is not None:
            peer.transport.close()
        if self._on_lost is not None:
            self._on_lost(self)

    def read_away(self) -> None:
        """Drop what comes from now on: this side will not be joined, only answered."""
        self._held = None
        if self.transport is not None:
            self.transport.resume_reading()

    def pass_on_held(self) -> None:
        """Read again, and pass on what came before `join`; called by that alone."""
        if self.transport is None or self.peer is None or self.peer.transport is None:
            return
        self.transport.resume_reading()
        if self._held:
            data, self._held = bytes(self._held), bytearray()
            self.data_received(data)
        if self._ended and not self.eof_received():
            self.transport.close()

    def close(self) -> None:
        """Close this side at once, and with it the peer."""
        if self.transport is not None:
            self.transport.abort()


def join(one: Side, other: Side) -> None:
    """Splice two connected sides; if one was lost meanwhile, the other is closed."""
    if one.transport is None or other.transport is None:
        one.close()
        other.close()
        return
    one.peer, other.peer = other, one
    one.pass_on_held()
    other.pass_on_held()
