"""Works inside a container's network namespace for the agent: a program of its own.

It is run once per container as ``python -I -S namespace_helper.py REPLY_FD DO NAME=VALUE…``, because
entering a user namespace needs a process with a single thread. The answer is one message on the
socket REPLY_FD: ``+`` and a number when all went well, else ``-`` and the reason in words.

* DO ``pasta`` with uid, gid, program, argument…, interface, blocked…: makes the networks ``blocked``
  unreachable inside and starts pasta as uid:gid, which makes ``interface``; the number is its pid.
* DO ``listen`` with port: the answer carries a socket that listens on 127.0.0.1 inside, by
  SCM_RIGHTS.
* The container is named by ``pid``, a process in it. With ``trial`` = 1 and uid, gid instead, the
  same is done to namespaces made for it, and all of it is ended afterwards.

Its start is on the way to a job's first network access: it imports as little as it can.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import stat
import struct
import sys

TYPE_CHECKING = False  # typing costs a third of this program's start
if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_NS_GET_USERNS = 0xB701
_MS_NOSUID_NOEXEC = 0x2 | 0x8
_MS_PRIVATE_RECURSIVE = 0x4000 | 1 << 18
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40
_TUN = "/dev/net/tun"
_TUN_DEVICE = os.makedev(10, 200)

_libc = ctypes.CDLL(None, use_errno=True)


class HelperError(Exception):
    """What could not be done, in words for the user."""


class _Request:
    """What is asked; a value may be given several times."""

    def __init__(self, do: str, arguments: list[str]) -> None:
        self.do = do
        self._values: dict[str, list[str]] = {}
        for argument in arguments:
            name, _, value = argument.partition("=")
            self._values.setdefault(name, []).append(value)

    def text(self, name: str) -> str:
        return self._values[name][0]

    def number(self, name: str) -> int:
        return int(self._values.get(name, ("0",))[0])

    def texts(self, name: str) -> list[str]:
        return self._values.get(name, [])


def main() -> None:
    """Do what is asked and send the answer."""
    reply = socket.socket(fileno=int(sys.argv[1]))
    request = _Request(sys.argv[2], sys.argv[3:])
    fds: list[int] = []
    try:
        if request.number("trial"):
            _try_out(request)
            answer = "+0"
        else:
            answer = f"+{_carry_out(request, request.number('pid'), fds)}"
    except (HelperError, OSError) as error:
        answer = f"-{error}"
    socket.send_fds(reply, [answer.encode()], fds)
    os._exit(
        0
    )  # a job waits for the end of this process, not for an interpreter that tidies up


def _carry_out(request: _Request, pid: int, fds: list[int]) -> int:
    """Do it to the namespace of ``pid``; return pasta's pid, or 0 and a descriptor in ``fds``."""
    namespaces = _Namespaces(pid)
    if request.do == "listen":
        fds.append(namespaces.call(lambda: _listen(request.number("port"))))
        return 0
    namespaces.call(lambda: _block(request.texts("blocked")))
    pasta = _start_pasta(request, namespaces)
    try:
        namespaces.call(lambda: _keep(request.texts("blocked"), request.text("interface")))
    except (HelperError, OSError):
        _end(pasta)
        raise
    return pasta


def _try_out(request: _Request) -> None:
    child = _make_namespaces(request.number("uid"), request.number("gid"))
    pasta = 0
    try:
        pasta = _carry_out(request, child, [])
        if pasta and not _has_default_route(child):
            raise HelperError("pasta started but made no route")
    finally:
        for pid in (pasta, child):
            if pid:
                _end(pid)
        os.waitpid(child, 0)


def _end(pid: int) -> None:
    try:  # noqa: SIM105  # contextlib is an import more
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended; what went wrong before is what matters
        pass


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
            # Else it waits for ever where this helper is killed; nobody else knows of it.
            _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "be ended in time")
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

    def call(self, work: Callable[[], int | None]) -> int:
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
    """Make ``networks`` unreachable, by rules that are asked before all routes but local ones.

    A route would not do: a socket that names its device, as one to a link-local address does, passes
    over IPv6 routes of type unreachable.
    """
    for family, address, length in _parse(networks):
        header = (family, length, 0, 0, 0, 0, 0, 7, 0)  # action unreachable
        _change_routing(32, header, ((1, address), (6, struct.pack("=I", 1))))  # RTM_NEWRULE


def _keep(networks: list[str], interface: str) -> None:
    """Have packets for IPv4 ``networks`` end inside, those sent by way of ``interface`` too.

    Where IPv4 finds no way for a packet that names its device, it takes the device as it is. A way
    that ends inside is one.
    """
    index = struct.pack("=I", socket.if_nametoindex(interface))
    for family, address, length in _parse(networks):
        if family == socket.AF_INET:
            header = (
                family,
                length,
                0,
                0,
                255,
                4,
                254,
                2,
                0,
            )  # table local, scope host, type local
            _change_routing(24, header, ((1, address), (4, index)))  # RTM_NEWROUTE


def _parse(networks: list[str]) -> list[tuple[int, bytes, int]]:
    """Return (family, address, length of prefix) of those whose family this kernel knows."""
    found = []
    for text in networks:
        address, _, length = text.partition("/")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if family == socket.AF_INET or os.path.exists("/proc/net/if_inet6"):
            found.append((int(family), socket.inet_pton(family, address), int(length)))
    return found


def _change_routing(
    kind: int, header: tuple[int, ...], attributes: tuple[tuple[int, bytes], ...]
) -> None:
    """Add a rule or a route; one that is there already is fine."""
    body = struct.pack("=8BI", *header)  # struct rtmsg, struct fib_rule_hdr
    for number, value in attributes:
        body += struct.pack("=HH", 4 + len(value), number) + value
    # nlmsghdr: length, kind, request | ack | create | excl, sequence, port
    head = struct.pack("=IHHII", 16 + len(body), kind, 0x605, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(head + body)
        error = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
    if error not in (0, 17):  # EEXIST: attached before
        raise OSError(error, f"metadata services cannot be blocked: {os.strerror(error)}")


def _start_pasta(request: _Request, namespaces: _Namespaces) -> int:
    """Start pasta and return its pid once it forwards.

    pasta enters the user namespace first, from where it may open this process's descriptors no
    more, but the container's namespace by its path.
    """
    read_out, write_out = os.pipe()
    read_error, write_error = os.pipe()
    uid, gid = request.number("uid"), request.number("gid")
    os.fchown(write_out, uid, gid)  # pasta opens it by name, as that user
    _make_tun_usable(uid)
    _become(uid, gid)
    where = ["--netns", f"/proc/{namespaces.pid}/ns/net"]
    if namespaces.user_is_ours:
        where.append("--netns-only")
    else:
        where += ["--userns", f"/proc/{os.getpid()}/fd/{namespaces.user}"]
    pid = os.posix_spawn(
        request.text("program"),
        ["pasta", *request.texts("argument"), "-P", "/proc/self/fd/1", *where],
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
    if os.geteuid() != 0:
        if not os.access(_TUN, os.R_OK | os.W_OK):
            raise HelperError(
                f"{_TUN} is closed to this user; open it with `sudo chmod 666 {_TUN}`"
            )
        return
    if os.stat(_TUN).st_mode & 0o006 == 0o006:
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
