"""The runner's end of the link to its supervisor: frames with descriptors, and the token pipe."""

import array
import os
import socket
from collections import deque
from typing import Any

from picloud_jupyter.protocol.frames import FrameReader

_RECEIVE_BYTES = 64 * 1024
_MAX_DESCRIPTORS = 253  # the kernel's limit for one message
_DESCRIPTOR_BYTES = array.array("i").itemsize
_FIRST_PRIVATE_FD = 200  # out of the way of code that closes low descriptors


def private_duplicate(fd: int) -> int:
    """Return a duplicate of ``fd`` that programs started from here do not inherit."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_PRIVATE_FD)


def take_private(fd: int) -> int:
    """Return a private duplicate of ``fd``, which is closed."""
    private = private_duplicate(fd)
    os.close(fd)
    return private


class Link:
    """Frames in both directions. Blocking; used by the runner's main thread only."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=take_private(fd))
        self._socket.setblocking(True)  # noqa: FBT003  # the standard library's signature
        self._reader = FrameReader()
        self._frames: deque[tuple[dict[str, Any], bytes]] = deque()
        self._descriptors: deque[int] = deque()
        self._ancillary_bytes = socket.CMSG_SPACE(_MAX_DESCRIPTORS * _DESCRIPTOR_BYTES)
        self._space = memoryview(bytearray(_RECEIVE_BYTES))  # a new one costs page faults
        self.send = self._socket.sendall

    def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """Return the next (header, body), or None when the supervisor closed the link.

        Raises:
            FrameError: what came is not a frame.
        """
        while not self._frames:
            size, ancillary, _flags, _address = self._socket.recvmsg_into(
                (self._space,), self._ancillary_bytes, socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(
                        content[: len(content) // _DESCRIPTOR_BYTES * _DESCRIPTOR_BYTES]
                    )
                    self._descriptors.extend(found)
            if not size:
                return None
            self._frames.extend(self._reader.feed(self._space[:size]))
        return self._frames.popleft()

    def take_descriptors(self, count: int) -> list[int]:
        """Return the next ``count`` descriptors that came with frames; the caller closes them.

        Raises:
            OSError: fewer came, as this process may not open more.
        """
        if len(self._descriptors) < count:
            raise OSError(f"{count} files were sent along and {len(self._descriptors)} came")
        return [self._descriptors.popleft() for _ in range(count)]


class Tokens:
    """The right to start elements, one byte each; the supervisor may take unused ones back."""

    def __init__(self, fd: int) -> None:
        self._fd = take_private(fd)
        os.set_blocking(self._fd, False)

    def take(self) -> bool:
        """Return whether the next element may start."""
        try:
            return bool(os.read(self._fd, 1))
        except BlockingIOError:
            return False

    def take_all(self) -> int:
        """Return how many elements were still to start; none of them will."""
        count = 0
        while self.take():
            count += 1
        return count
