"""A man in the middle of a unix socket: passes bytes or frames on, and spoils those it is told to."""

import contextlib
import ctypes
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from picloud_jupyter.protocol.frames import PREFIX

READ_BYTES = 64 * 1024
MISCHIEF = ("double", "swap", "delay", "tear", "garbage", "cut")  # of frames
HTTP_MISCHIEF = ("again", "delay", "tear", "cut")
SWAP_SECONDS = 0.3  # for a frame to come that can overtake
_PIDFD_GETFD = 438  # the same number on every machine; pidfd_getfd(2)
_libc = ctypes.CDLL(None, use_errno=True)


class Middle:
    """Stands at ``path`` in the place of who listens there, who is found at ``path``.true.

    ``by_frames``: what is spoilt is a whole frame, else what one read brought.
    """

    def __init__(self, path: Path, chance: random.Random, *, by_frames: bool) -> None:
        self.path = path
        self.passed = 0  # pieces
        self.on_request: Callable[[bytes], None] = lambda _piece: None  # what clients send
        self._true = path.with_name(path.name + ".true")
        self._random = chance
        self._by_frames = by_frames
        self._order = ""  # what the next piece suffers
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        path.rename(self._true)
        self._listener = _listen(path)
        threading.Thread(target=self._serve, daemon=True).start()

    def order(self, mischief: str) -> None:
        """Let the next piece suffer ``mischief``."""
        self._done.clear()
        with self._lock:
            self._order = mischief

    def wait(self, seconds: float = 5.0) -> bool:
        """Return when what was ordered is done, or withdraw it after ``seconds``; whether it was done."""
        came = self._done.wait(seconds)
        with self._lock:
            self._order = ""
        return came or self._done.is_set()

    def strike(self, mischief: str, seconds: float = 5.0) -> bool:
        """Let the next piece suffer ``mischief``; whether one came within ``seconds``."""
        self.order(mischief)
        return self.wait(seconds)

    def leave(self) -> None:
        """Give the place back, and cut what goes through here."""
        with contextlib.suppress(FileNotFoundError):  # it went with its owner
            self._true.rename(self.path)
        _shut(self._listener)
        for end in list(self._open):
            _shut(end)

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                self._listener.close()
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                _reach(far, self._true)
            except OSError:
                near.close()
                far.close()
                continue
            self._open |= {near, far}
            pumps = [
                threading.Thread(target=self._pump, args=arguments, daemon=True)
                for arguments in ((near, far, self.on_request), (far, near, lambda _: None))
            ]
            for pump in pumps:
                pump.start()
            threading.Thread(target=self._bury, args=(pumps, near, far), daemon=True).start()

    def _bury(self, pumps: list[threading.Thread], *ends: socket.socket) -> None:
        for pump in pumps:
            pump.join()
        for end in ends:
            self._open.discard(end)
            end.close()

    def _pump(
        self, source: socket.socket, target: socket.socket, tell: Callable[[bytes], None]
    ) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := source.recv(READ_BYTES):
                pieces, rest = _cut(rest + data) if self._by_frames else ([data], b"")
                held = b""
                for piece in pieces:
                    tell(piece)
                    held = self._pass(piece, held, target)
                if held:
                    source.settimeout(SWAP_SECONDS)
                    with contextlib.suppress(TimeoutError):
                        target.sendall(source.recv(READ_BYTES))
                    source.settimeout(None)
                    target.sendall(held)
        _shut(source)
        _shut(target)

    def _pass(self, piece: bytes, held: bytes, target: socket.socket) -> bytes:
        """Send ``piece``, spoilt if that was ordered, then ``held``; return what is to be held now."""
        with self._lock:
            order, self._order = self._order, ""
        self.passed += 1
        if order == "swap":
            self._done.set()
            return held + piece
        try:
            if order:
                self._spoil(order, piece, target)
            else:
                target.sendall(piece)
            target.sendall(held)
        finally:
            if order:
                self._done.set()
        return b""

    def _repeat(self, request: bytes) -> None:
        """Send ``request`` on a connection of its own; what is answered is not heard."""
        with socket.socket(socket.AF_UNIX) as other:
            _reach(other, self._true)
            other.sendall(request)
            other.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                other.recv(READ_BYTES)

    def _spoil(self, order: str, piece: bytes, target: socket.socket) -> None:
        where = self._random.randrange(len(piece))
        match order:
            case "double":
                target.sendall(piece + piece)
            case "delay":
                time.sleep(self._random.uniform(0.05, 0.5))
                target.sendall(piece)
            case "tear":
                target.sendall(piece[:where])
                time.sleep(self._random.uniform(0.05, 0.2))
                target.sendall(piece[where:])
            case "again":  # as a client does that heard no answer
                self._repeat(piece)
                target.sendall(piece)
            case "garbage":
                target.sendall(self._random.randbytes(self._random.randint(1, 200)) + piece)
            case "cut":
                target.sendall(piece[:where])
                raise ConnectionAbortedError


def _cut(data: bytes) -> tuple[list[bytes], bytes]:
    """Return (whole frames, what is left)."""
    frames = []
    while len(data) >= PREFIX.size:
        header_bytes, body_bytes = PREFIX.unpack_from(data)
        end = PREFIX.size + header_bytes + body_bytes % 2**32  # above it is the frame's number
        if end > len(data):
            break
        frames.append(data[:end])
        data = data[end:]
    return frames, data


def connections(pid: int, path: Path) -> Iterator[socket.socket]:
    """Yield the connections of another process to the socket ``path``, as descriptors of our own."""
    for end in descriptors(pid):
        with end, contextlib.suppress(OSError):
            if end.family == socket.AF_UNIX and end.getpeername() == str(path):
                yield end


def descriptors(pid: int) -> Iterator[socket.socket]:
    """Yield sockets that another process has open, as descriptors of our own: close them."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            for number in _sockets_of(pid):
                fd = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
                if fd >= 0:
                    yield socket.socket(fileno=fd)
        finally:
            os.close(pidfd)


def cut_connections(pid: int, path: Path) -> int:
    """End the connections of another process to ``path``; return how many there were."""
    count = 0
    for end in connections(pid, path):
        _shut(end)
        count += 1
    return count


def _sockets_of(pid: int) -> list[int]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                found.append(int(name))
    return found


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(64)
    return listener


def _reach(end: socket.socket, path: Path) -> None:
    folder = os.open(path.parent, os.O_PATH)
    try:
        end.connect(f"/proc/self/fd/{folder}/{path.name}")  # its own path may be too long
    finally:
        os.close(folder)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
