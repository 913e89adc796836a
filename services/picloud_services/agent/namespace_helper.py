"""Works inside a container's network namespace for the agent: a program of its own.

It is run once per container as ``python -I -S namespace_helper.py REQUEST``, because entering a
user namespace needs a process with a single thread. REQUEST is JSON; the answer is one JSON
message on the socket ``reply_fd``, ``{"error": ""}`` when all went well. Standard library only.

* ``{"do": "pasta", "pid", "uid", "gid", "program", "arguments", "blocked"}``: makes the networks
  in ``blocked`` unreachable inside, starts pasta as uid:gid; the answer has its ``pid``.
* ``{"do": "listen", "pid", "port"}``: the answer carries a socket that listens on 127.0.0.1
  inside, by SCM_RIGHTS.
* With ``"trial": true`` there is no ``pid``: the same is done to namespaces made for it, and all
  of it is ended afterwards.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import sys

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_NS_GET_USERNS = 0xB701
_MS_NOSUID_NOEXEC = 0x2 | 0x8
_MS_PRIVATE_RECURSIVE = 0x4000 | 1 << 18
_PR_SET_DUMPABLE = 4
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40
_TUN = "/dev/net/tun"
_TUN_DEVICE = os.makedev(10, 200)

_libc = ctypes.CDLL(None, use_errno=True)


class HelperError(Exception):
    """What could not be done, in words for the user."""


def main() -> None:
    """Do what the request says and send the answer."""
    request = json.loads(sys.argv[1])
    reply = socket.socket(fileno=request["reply_fd"])
    fds: list[int] = []
    try:
        answer = _trial(request, fds) if request.get("trial") else _do(request, fds)
    except (HelperError, OSError) as error:
        answer = {"error": str(error)}
    socket.send_fds(reply, [json.dumps({"error": "", **answer}).encode()], fds)


def _do(request: dict, fds: list[int]) -> dict:  # type: ignore[type-arg]  # plain JSON
    namespaces = _Namespaces(request["pid"])
    if request["do"] == "listen":
        fds.append(namespaces.call(lambda: _listen(request["port"])))
        return {}
    namespaces.call(lambda: _block(request["blocked"]))
    return {"pid": _start_pasta(request, namespaces)}


def _trial(request: dict, fds: list[int]) -> dict:  # type: ignore[type-arg]
    child = _make_namespaces(request["uid"], request["gid"])
    pasta = 0
    try:
        answer = _do({**request, "pid": child}, fds)
        pasta = answer.get("pid", 0)
        if pasta and not _has_default_route(child):
            raise HelperError("pasta started but made no route")
    finally:
        fds.clear()
        for pid in (pasta, child):
            if pid:
                os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
    return {}


def _make_namespaces(uid: int, gid: int) -> int:
    """Return the pid of a waiting child in new user and network namespaces owned by ``uid``."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            _become(uid, gid)
            _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET), "make a network namespace")
            _bring_up_loopback()
            os.write(write_end, b"+")
            os.close(write_end)
            signal.pause()
        except (HelperError, OSError) as error:
            os.write(write_end, str(error).encode())
        os._exit(1)
    os.close(write_end)
    said = os.read(read_end, 4096)
    os.close(read_end)
    if said != b"+":
        os.waitpid(child, 0)
        raise HelperError(said.decode() or "a network namespace could not be made")
    return child


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def _has_default_route(pid: int) -> bool:
    # Bytes: this user may not be able to read the interpreter's modules, so nothing may be
    # imported from here on, codecs included.
    with open(f"/proc/{pid}/net/route", "rb") as file:
        return any(line.split()[1] == b"00000000" for line in file.readlines()[1:])


class _Namespaces:
    """The network namespace of a process, and the user namespace that *owns* it.

    The process itself may be in a user namespace further in (bubblewrap makes two), which has no
    power over the network.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        self.user = fcntl.ioctl(self.net, _NS_GET_USERNS)
        own = os.stat("/proc/self/ns/user")
        found = os.fstat(self.user)
        self.user_is_ours = (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)
        if os.path.samefile(f"/proc/self/fd/{self.net}", "/proc/self/ns/net"):
            raise HelperError(f"process {pid} is in this machine's own network namespace")

    def call(self, work) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001  # () -> fd | None
        """Run ``work`` inside, in a child; return the descriptor it returned, or -1.

        Raises:
            HelperError: it could not enter, or ``work`` failed.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            try:
                self._enter()
                fd = work()
                socket.send_fds(theirs, [b"+"], [] if fd is None else [fd])
            except (HelperError, OSError) as error:
                theirs.send(str(error).encode())
            os._exit(0)
        theirs.close()
        said, fds, _, _ = socket.recv_fds(ours, 4096, 1)
        ours.close()
        os.waitpid(child, 0)
        if said != b"+":
            raise HelperError(said.decode() or "the namespace could not be entered")
        return fds[0] if fds else -1

    def _enter(self) -> None:
        if not self.user_is_ours:
            _check(
                _libc.setns(self.user, _CLONE_NEWUSER), "enter the container's user namespace"
            )
        _check(_libc.setns(self.net, _CLONE_NEWNET), "enter the container's network namespace")


def _listen(port: int) -> int:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(64)
    return sock.detach()


def _block(networks: list[str]) -> None:
    """Make ``networks`` unreachable by rtnetlink routes of type unreachable."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        for text in networks:
            address, _, length = text.partition("/")
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
                continue
            sock.send(
                _unreachable_route(family, socket.inet_pton(family, address), int(length))
            )
            error = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
            if error not in (0, 17):  # EEXIST: attached before
                raise OSError(error, f"cannot block {text}: {os.strerror(error)}")


def _unreachable_route(family: int, address: bytes, length: int) -> bytes:
    # rtmsg: family, destination length, source length, tos, table main, protocol static, scope
    # universe, type unreachable, flags; then the attributes RTA_DST and RTA_PRIORITY.
    body = struct.pack("=8BI", family, length, 0, 0, 254, 4, 0, 7, 0)
    body += struct.pack("=HH", 4 + len(address), 1) + address
    body += struct.pack("=HHI", 8, 6, 1)
    # nlmsghdr: length, RTM_NEWROUTE, request | ack | create | excl, sequence, port
    return struct.pack("=IHHII", 16 + len(body), 24, 0x605, 1, 0) + body


def _start_pasta(request: dict, namespaces: _Namespaces) -> int:  # type: ignore[type-arg]
    """Start pasta and return its pid once it forwards.

    pasta enters the user namespace first, from where it may open this process's descriptors no
    more, but the container's namespace by its path.
    """
    read_out, write_out = os.pipe()
    read_error, write_error = os.pipe()
    os.fchown(write_out, request["uid"], request["gid"])  # pasta opens it by name, as that user
    _make_tun_usable(request["uid"])
    _become(request["uid"], request["gid"])
    where = ["--netns", f"/proc/{namespaces.pid}/ns/net"]
    if namespaces.user_is_ours:
        where.append("--netns-only")
    else:
        where += ["--userns", f"/proc/{os.getpid()}/fd/{namespaces.user}"]
    pid = os.posix_spawn(
        request["program"],
        ["pasta", *request["arguments"], "-P", "/proc/self/fd/1", *where],
        {"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, write_out, 1),
            (os.POSIX_SPAWN_DUP2, write_error, 2),
        ],
        setsigdef=[signal.SIGPIPE],  # Python ignores it; pasta refuses to start that way
    )
    os.close(write_out)
    os.close(write_error)
    _, status = os.waitpid(pid, 0)  # it goes to the background once it is ready
    said = os.read(read_error, 4096).decode(errors="replace") if status else ""
    if status:
        words = [line for line in said.splitlines() if "syslog" not in line]
        raise HelperError("pasta: " + (" ".join(words) or f"ended with wait status {status}"))
    return int(os.read(read_out, 64))


def _make_tun_usable(uid: int) -> None:
    """Give this process its own /dev/net/tun where that of the machine is root's alone."""
    if not os.path.exists(_TUN):
        raise HelperError(f"{_TUN} is missing; load it with `sudo modprobe tun`")
    if os.geteuid() != 0 or os.stat(_TUN).st_mode & 0o006 == 0o006:
        return
    _check(_libc.unshare(_CLONE_NEWNS), "make a mount namespace")
    _check(_libc.mount(b"none", b"/", None, _MS_PRIVATE_RECURSIVE, None), "keep mounts private")
    folder = os.path.dirname(_TUN).encode()
    options = b"size=4k,mode=755"
    _check(_libc.mount(b"tmpfs", folder, b"tmpfs", _MS_NOSUID_NOEXEC, options), f"mount {_TUN}")
    os.mknod(_TUN, stat.S_IFCHR | 0o600, _TUN_DEVICE)
    os.chown(_TUN, uid, -1)


def _become(uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        # Else nobody but root may open the namespaces of this process.
        _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "show this process to its own user")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
