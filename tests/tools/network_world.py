"""A machine of its own to try networks on: run as root, it prints what containers reached.

``python network_world.py pasta|proxy FOLDER root|user`` makes a network namespace that stands for the machine, with
a service on a non-loopback address (10.77.0.1), one on loopback, one on the metadata address, and a
resolver on 127.0.0.53. It attaches containers to it with the agent's own code and prints JSON.
With ``user`` the agent's code runs as an ordinary user, else as root.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import struct
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.jobs import ContainerKind, NetworkPolicy
from picloud_services.agent.network import Network, NetworkChoice, choose_network
from picloud_services.agent.network_plan import NetworkMode

Found = dict[str, Any]
UID = 70077
PUBLIC, METADATA = "10.77.0.1", "169.254.169.254"
PUBLIC_6, METADATA_6, LINK_LOCAL = "2001:db8:77::1", "fd00:ec2::254", "fe80::77"
LIBC = ctypes.CDLL(None, use_errno=True)

PROBE = """
import json, os, socket, sys, urllib.request
def get(url):
    with urllib.request.urlopen(url, timeout=3) as answer:
        return answer.read().decode()
def resolve(name):
    return sorted({found[4][0] for found in socket.getaddrinfo(name, 80)})
def tcp(host, port):
    with socket.create_connection((host, port), 2):
        return "connected"
def bound(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(2)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        sock.connect((host, port))
        return "connected"
def tunnel(host, port):
    with socket.create_connection(("127.0.0.1", 3128), 3) as sock:
        sock.sendall(f"CONNECT {host}:{port} HTTP/1.1\\r\\n\\r\\n".encode())
        return sock.recv(4096).decode().split("\\r\\n")[0]
def serve(port):
    serve.sock = socket.create_server(("", port))
    return "listening"
for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        answer = globals()[name](*arguments)
    except OSError as error:
        answer = "failed: " + str(error)
    print(json.dumps(answer), flush=True)
"""


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def become_ordinary() -> None:
    """Run on as an ordinary user, on a machine where everybody may open /dev/net/tun."""
    check(LIBC.mount(b"tmpfs", b"/dev/net", b"tmpfs", 0, b"mode=755"))
    os.mknod("/dev/net/tun", stat.S_IFCHR, os.makedev(10, 200))
    os.chmod("/dev/net/tun", 0o666)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    check(LIBC.prctl(4, 1, 0, 0, 0))


def leave_the_machine(resolv_conf: Path) -> int:
    """Enter new network and mount namespaces; return the descriptor that keeps the interface."""
    check(LIBC.unshare(0x40000000 | 0x00020000))
    check(LIBC.mount(b"none", b"/", None, 0x4000 | 1 << 18, None))
    check(LIBC.mount(os.fsencode(resolv_conf), b"/etc/resolv.conf", None, 0x1000, None))
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"lab0", 0x1002))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def address(number: int, name: str, text: str) -> None:
            packed = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
            fcntl.ioctl(sock, number, struct.pack("16s16s8x", name.encode(), packed))

        for name in ("lo", "lab0"):
            fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", name.encode(), 0x41))
        address(0x8916, "lab0", PUBLIC)
        address(0x891C, "lab0", "255.255.255.0")
        address(0x8916, "lab0:1", METADATA)
        route = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton("10.77.0.254"))
        empty = struct.pack("HH4s8x", socket.AF_INET, 0, bytes(4))
        entry = struct.pack("8x16s16s16sH54x", empty, route, empty, 0x3)
        fcntl.ioctl(sock, 0x890B, entry)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        for name in ("all", "lab0"):  # nobody else is there to have the same address
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
        for text in (PUBLIC_6, METADATA_6, LINK_LOCAL):
            packed = socket.inet_pton(socket.AF_INET6, text)
            index = socket.if_nametoindex("lab0")
            fcntl.ioctl(sock, 0x8916, struct.pack("=16sIi", packed, 64, index))
        router = socket.inet_pton(socket.AF_INET6, "2001:db8:77::fe")
        entry = struct.pack("32x16sIHHI4xQIi", router, 0, 0, 0, 1024, 0, 0x3, index)
        fcntl.ioctl(sock, 0x890B, entry)
    return tap


class Resolver(asyncio.DatagramProtocol):
    """Answers every A question with PUBLIC and every other one with nothing."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        end = data.index(b"\0", 12) + 5
        is_a = data[end - 4 : end - 2] == b"\0\1"
        head = data[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + bytes(4)
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4" + socket.inet_aton(PUBLIC)
        self.transport.sendto(head + data[12:end] + (record if is_a else b""), addr)


async def serve(host: str, port: int, body: str) -> None:
    async def answer(reader, writer):
        # A peer that leaves without a request is what a port scan looks like.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write((head + body).encode())
        writer.close()

    async with asyncio.timeout(10):
        while True:
            try:
                await asyncio.start_server(answer, host, port)
                break
            except OSError as error:  # an IPv6 address of a device that is not quite up yet
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
            await asyncio.sleep(0.01)


class Box:
    """A container with a probe inside."""

    def __init__(self, process, init_pid: int) -> None:
        self.process = process
        self.init_pid = init_pid

    @classmethod
    async def start(cls, network: Network, folder: Path, policy: NetworkPolicy) -> "Box":
        resolver = Path(tempfile.mkdtemp(dir=folder)) / "resolv.conf"
        resolver.parent.chmod(0o755)
        resolver.write_text(network.resolver(policy) or "")
        read_end, write_end = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *(shutil.which("bwrap") or "bwrap", "--unshare-all", "--ro-bind", "/", "/"),
            *("--dev", "/dev", "--proc", "/proc", "--info-fd", str(write_end)),
            *("--ro-bind", str(resolver), "/etc/resolv.conf", "--die-with-parent"),
            *("/usr/bin/python3", "-I", "-u", "-c", PROBE),
            env={"PATH": "/usr/bin:/bin", **network.variables(policy)},
            user=None if os.geteuid() else UID,
            group=None if os.geteuid() else UID,
            extra_groups=None if os.geteuid() else [],
            pass_fds=[write_end],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        os.close(write_end)
        info = await asyncio.to_thread(lambda: os.fdopen(read_end).read())
        return cls(process, json.loads(info)["child-pid"])

    async def ask(self, *question):
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        async with asyncio.timeout(20):
            return json.loads(await self.process.stdout.readline())

    async def end(self) -> None:
        self.process.kill()
        await self.process.wait()


async def reach(box: Box) -> Found:
    return {
        "public": await box.ask("get", f"http://{PUBLIC}:8000/"),
        "by_name": await box.ask("get", "http://answer.test:8000/"),
        "names": await box.ask("resolve", "answer.test"),
        "loopback": await box.ask("tcp", "127.0.0.1", 9000),
        "gateway": await box.ask("tcp", "198.18.255.241", 9000),
        "resolver": await box.ask("tcp", "198.18.255.243", 9000),
        "public_6": await box.ask("tcp", PUBLIC_6, 8000),
        "link_local": await box.ask("tcp", f"{LINK_LOCAL}%eth0", 8000),
        "link_local_bare": await box.ask("tcp", LINK_LOCAL, 8000),
        "metadata": await box.ask("tcp", METADATA, 8000),
        "metadata_bound": await box.ask("bound", METADATA, 8000),
        "metadata_6": await box.ask("tcp", METADATA_6, 8000),
        "metadata_6_bound": await box.ask("bound", METADATA_6, 8000),
        "metadata_get": await box.ask("get", f"http://{METADATA}:8000/"),
        "tunnel_public": await box.ask("tunnel", PUBLIC, 8000),
        "tunnel_loopback": await box.ask("tunnel", "127.0.0.1", 9000),
        "tunnel_metadata": await box.ask("tunnel", METADATA, 8000),
    }


async def outside(host: str) -> str:
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(host, 7000)
    except OSError as error:
        return f"failed: {error}"
    writer.close()
    return "connected"


def alive(path: Path) -> bool:
    found = json.loads(path.read_text())
    try:
        return Path(f"/proc/{found['pid']}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def try_lifecycle(network: Network, state: Path, box: Box, found: Found) -> None:
    path = state / "a.json"
    pid = json.loads(path.read_text())["pid"]
    os.kill(pid, 9)
    async with asyncio.timeout(10):
        while network.is_ready("a"):
            await asyncio.sleep(0.005)
    found["after_death"] = [await network.wait_ready("a"), await box.ask("tcp", PUBLIC, 8000)]
    network.suspend("a")
    found["suspended"] = [path.exists(), network.is_ready("a")]
    found["resumed"] = [await network.wait_ready("a"), await box.ask("tcp", PUBLIC, 8000)]
    await network.close(keep=True)
    found["kept"] = alive(path)
    again = Network(network.choice, state)
    pid = json.loads(path.read_text())["pid"]
    again.attach("a", box.init_pid, UID, UID, NetworkPolicy.INTERNET)
    found["taken_up"] = [
        await again.wait_ready("a"),
        json.loads(path.read_text())["pid"] == pid,
        await box.ask("tcp", PUBLIC, 8000),
    ]
    await again.close(keep=True)
    text = path.read_text()
    Network(network.choice, state).sweep(alive=[])
    found["swept"] = not path.exists()
    path.write_text(text)
    async with asyncio.timeout(5):
        while alive(path):
            await asyncio.sleep(0.005)


async def main(mode: str, folder: Path, *, is_user: bool) -> None:
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.53\n")
    tap = leave_the_machine(resolv_conf)
    await serve("0.0.0.0", 8000, "public")
    await serve(PUBLIC_6, 8000, "public")
    for address in (METADATA_6, f"{LINK_LOCAL}%lab0"):
        await serve(address, 8000, "private")
    await serve("127.0.0.1", 9000, "private")
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Resolver, ("127.0.0.53", 53))
    if is_user:
        os.chown(folder, UID, UID)
        become_ordinary()
    print(json.dumps(await try_out(mode, folder)), flush=True)
    os.close(tap)


async def try_out(mode: str, folder: Path) -> Found:
    choice = await choose_network(ContainerKind.ROOT, UID, UID)
    found: Found = {"chosen": choice.mode, "why": choice.why}
    if mode == "proxy":
        choice = NetworkChoice(NetworkMode.PROXY)
    network = Network(replace(choice), folder / "state")
    internet = NetworkPolicy.INTERNET
    box, other = [await Box.start(network, folder, internet) for _ in "ab"]
    alone = await Box.start(network, folder, NetworkPolicy.NONE)
    await other.ask("serve", 7000)
    began_at = asyncio.get_running_loop().time()
    for container, each in (("a", box), ("b", other)):
        network.attach(container, each.init_pid, UID, UID, internet)
    network.attach("c", alone.init_pid, UID, UID, NetworkPolicy.NONE)
    await asyncio.sleep(0.01)  # the helper has been started, but cannot have ended
    found["early"] = [network.is_ready(c) for c in "abc"]
    found["words"] = [await network.wait_ready(c) for c in "abc"]
    found["attach_seconds"] = asyncio.get_running_loop().time() - began_at
    found["internet"] = await reach(box)
    found["none"] = await reach(alone)
    found["neighbour"] = await box.ask("tcp", "198.18.255.242", 7000)
    found["inwards"] = [await outside(host) for host in ("198.18.255.242", "127.0.0.1", PUBLIC)]
    found["traffic"] = network.traffic("a")
    if mode == "pasta":
        await try_lifecycle(network, folder / "state", box, found)
    await network.close(keep=False)
    for each in (box, other, alone):
        await each.end()
    return found


asyncio.run(main(sys.argv[1], Path(sys.argv[2]), is_user=sys.argv[3] == "user"))
