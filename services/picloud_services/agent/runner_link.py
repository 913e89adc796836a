"""The supervisor's end of the runner: the socket, the token pipe, stdout and stderr (L5)."""

import array
import errno
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from collections.abc import Sequence
from typing import Any

from picloud_jupyter.protocol.frames import (
    OLDEST_WIRE_VERSION,
    WIRE_VERSION,
    Buffer,
    pack_frame,
)
from picloud_services.agent.runner_frames import BrokenProtocol

RUNNER_SOCKET_FD = 3
RUNNER_TOKEN_FD = 4
_READ_BYTES = 64 * 1024  # a larger block would be mapped anew for each read
_PIPE_BYTES = 64 * 1024  # a pipe's usual capacity: one read empties it
_DESCRIPTORS_PER_MESSAGE = 200  # the kernel allows 253
_HIGH_FD = 10  # our own descriptors are moved here, out of the way of 3 and 4


class RunnerLink:
    """Both ends of everything between a supervisor and its runner, until `close_far_ends`.

    Made in a process whose descriptors 3 and 4 are free; they become the runner's.
    """

    def __init__(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket = socket.socket(fileno=_high(near.detach()))
        self.socket.setblocking(False)  # noqa: FBT003  # the standard library's signature
        self.fd = self.socket.fileno()
        self._far = [_place(far.detach(), RUNNER_SOCKET_FD)]
        token_read, token_write = os.pipe()
        self._token_write = _high(token_write)
        os.set_blocking(self._token_write, False)
        os.set_blocking(token_read, False)
        # A description of our own: user code may make the runner's one block.
        self._token_read = os.open(
            f"/proc/self/fd/{token_read}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )
        self._token_read = _high(self._token_read)
        self._far.append(_place(token_read, RUNNER_TOKEN_FD))
        self.outputs: list[int] = []
        for _ in ("stdout", "stderr"):
            read, write = os.pipe()
            self.outputs.append(_high(read))
            self._far.append(_high(write))
        for fd in self.outputs:
            os.set_blocking(fd, False)
        self._unsent: deque[tuple[Buffer, Sequence[int]]] = deque()
        hello = {"t": "hello", "wire": WIRE_VERSION, "oldest": OLDEST_WIRE_VERSION}
        self.send_packed(pack_frame({**hello, "role": "supervisor"}))

    @property
    def stdout_fd(self) -> int:
        """The runner's stdout: to be inherited."""
        return self._far[2]

    @property
    def stderr_fd(self) -> int:
        """The runner's stderr: to be inherited."""
        return self._far[3]

    def close_far_ends(self) -> None:
        """Close what the runner has inherited."""
        for fd in self._far:
            os.close(fd)
        self._far.clear()

    def close(self) -> None:
        """Close everything; may be called once."""
        self.close_far_ends()
        self.socket.close()
        for fd in (self._token_write, self._token_read, *self.outputs):
            os.close(fd)

    # ------------------------------------------------------------------------- tokens

    def put_tokens(self, count: int) -> None:
        """Allow the runner to start ``count`` elements.

        Raises:
            BrokenProtocol: the pipe is full, which only the runner can bring about.
        """
        try:
            os.write(self._token_write, bytes(count))
        except BlockingIOError:
            raise BrokenProtocol("filled the pipe of its tokens") from None

    def tokens_left(self) -> int:
        """Return how many elements the runner may still start."""
        return _readable_bytes(self._token_read)

    def take_back_tokens(self) -> int:
        """Forbid the runner to start anything more; return how many elements that were."""
        try:
            return len(os.read(self._token_read, _PIPE_BYTES))
        except BlockingIOError:
            return 0

    # ------------------------------------------------------------------------ frames

    def send_packed(self, data: Buffer, fds: Sequence[int] = ()) -> None:
        """Send one frame; ``fds`` go along with its first bytes and are closed here."""
        while len(fds) > _DESCRIPTORS_PER_MESSAGE:
            self._unsent.append((data[:1], fds[:_DESCRIPTORS_PER_MESSAGE]))
            data, fds = memoryview(data)[1:], fds[_DESCRIPTORS_PER_MESSAGE:]
        self._unsent.append((data, fds))
        self.flush()

    @property
    def has_unsent(self) -> bool:
        """Whether the socket was full: call `flush` when it can be written."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what the socket takes. What a dead runner never read is dropped."""
        unsent = self._unsent
        while unsent:
            data, fds = unsent[0]
            try:
                sent = self.socket.sendmsg([data], _rights(fds))
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise
                sent = len(data)
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                unsent[0] = memoryview(data)[sent:], ()
            else:
                unsent.popleft()

    def read(self) -> bytes | None:
        """Return what the runner has sent: b"" for nothing now, None when it closed the link."""
        try:
            return self.socket.recv(_READ_BYTES) or None
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            return None

    def read_output(self, stream: int) -> bytes | None:
        """Return what is in the pipe of stream 0 or 1: b"" for nothing now, None for its end."""
        try:
            return os.read(self.outputs[stream], _PIPE_BYTES) or None
        except BlockingIOError:
            return b""

    def waiting_output_bytes(self, stream: int) -> int:
        """Return how much is in the pipe of stream 0 or 1 now."""
        return _readable_bytes(self.outputs[stream])


def open_payloads(files: list[list[Any]]) -> tuple[list[int], list[list[Any]]]:
    """Return (descriptors, the same list without paths) for the ``files`` of a chunk.

    Raises:
        OSError: one of them cannot be opened as a plain file; none stays open.
    """
    fds: list[int] = []
    try:
        for _, path, _, _ in files:
            fds.append(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds, [[position, "", size, digest] for position, _, size, digest in files]


def _readable_bytes(pipe_fd: int) -> int:
    answer = fcntl.ioctl(pipe_fd, termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", answer)[0])


def _rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    return (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    )


def _high(fd: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    os.close(fd)
    return moved


def _place(fd: int, wanted: int) -> int:
    if fd != wanted:
        os.dup2(fd, wanted, inheritable=False)
        os.close(fd)
    return wanted
