"""Brings containers to the network: the one door to pasta, the proxy and network namespaces.

A container is born with an empty network namespace of its own. `Network.attach` begins to connect
it while its interpreter starts, and the first job waits for `Network.wait_ready`. Nothing on the
machine's loopback, no metadata service and no other container is ever reachable, and nothing is
forwarded inwards. See `reachability` for the rule and `network_plan` for the addresses.
"""

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from picloud_jupyter.protocol.codec import from_wire
from picloud_jupyter.protocol.frames import decode_header
from picloud_jupyter.protocol.jobs import ContainerKind, NetworkPolicy
from picloud_services.agent.namespace_calls import Answer, ask, listen_request, pasta_request
from picloud_services.agent.network_plan import (
    NO_RESOLVER,
    HostNetwork,
    NetworkMode,
    PastaPlan,
    plan_pasta,
    proxy_variables,
    read_host_network,
)
from picloud_services.agent.processes import Process, find_process, process_uid
from picloud_services.agent.proxy import Proxy
from picloud_services.base.filesystem import file_identity

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # pause before a connection that died is made again
FAILED_SECONDS = 10.0  # jobs start without a network for so long before it is tried again


@dataclass(frozen=True, slots=True)
class NetworkChoice:
    """How this machine keeps the policy `internet`, found by trial.

    ``why`` says why something better was refused ("" if nothing was).
    """

    mode: NetworkMode
    program: str = ""
    why: str = ""


async def choose_network(kind: ContainerKind, uid: int, gid: int) -> NetworkChoice:
    """Return the best way that works for containers of ``kind`` that run as ``uid``:``gid``.

    Each way is tried once in namespaces made for it; takes about a tenth of a second.
    """
    if kind is ContainerKind.PLAIN:
        why = "plain containers share the network of this machine, its loopback included"
        return NetworkChoice(NetworkMode.HOST, why=why)
    program = find_pasta()
    plan = plan_pasta(host_network())
    if program is None:
        why = "pasta is not installed (Debian and Ubuntu: sudo apt install passt)"
    elif isinstance(plan, str):
        why = plan
    else:
        request = pasta_request(program, plan, uid, gid)
        why = (await ask([*request, "trial=1"])).words
        if not why:
            return NetworkChoice(NetworkMode.PASTA, program)
    listen = [*listen_request(), f"uid={uid}", f"gid={gid}", "trial=1"]
    refused = (await ask(listen)).words
    if not refused:
        return NetworkChoice(NetworkMode.PROXY, why=why)
    return NetworkChoice(NetworkMode.NONE, why=f"{why}; {refused}")


def find_pasta() -> str | None:
    """Return the path of pasta, None where it is not installed."""
    return shutil.which("pasta", path="/usr/local/bin:/usr/bin:/bin")


def conditions() -> str:
    """Return what `choose_network` depends on and may change without a boot, as a text to compare."""
    host, program = host_network(), find_pasta()
    has_tun = os.access("/dev/net/tun", os.R_OK | os.W_OK)
    identity = file_identity(program) if program else None
    return repr((program, identity, has_tun, host.default_route, bool(host.interfaces)))


def host_network() -> HostNetwork:
    """Return what this machine's network looks like now."""
    return read_host_network(
        _text(Path("/proc/net/route")),
        _text(Path("/proc/net/if_inet6")),
        _text(Path("/etc/resolv.conf")),  # the one that pasta reads
        [name for _, name in socket.if_nameindex()],
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # no IPv6, or no resolver
        return ""


@dataclass(slots=True)
class _Attachment:
    """One container's way to the network.

    ``words`` is "" while it works, else why not; before ``again_at`` (loop time) it is not tried
    again.
    """

    container: str
    init_pid: int
    uid: int
    gid: int
    words: str = "not connected yet"
    again_at: float = 0.0
    task: asyncio.Task[None] | None = None
    pasta: Process | None = None
    proxy: Proxy | None = None
    forget: list[Callable[[], None]] = field(default_factory=list)


class Network:
    """The networks of all containers of one agent. On the event loop; never blocks it.

    ``state`` is a private folder of the agent, where the pids of pasta processes are kept, so
    that an agent that comes back finds those it left.
    """

    def __init__(self, choice: NetworkChoice, state: Path) -> None:
        self.choice = choice
        self._state = state
        self._attached: dict[str, _Attachment] = {}

    def mode(self, policy: NetworkPolicy) -> NetworkMode:
        """Return how a container with ``policy`` is connected."""
        if self.choice.mode is not NetworkMode.HOST and policy is NetworkPolicy.NONE:
            return NetworkMode.NONE
        return self.choice.mode

    def variables(self, policy: NetworkPolicy) -> dict[str, str]:
        """Return the environment variables that a container with ``policy`` needs."""
        return proxy_variables() if self.mode(policy) is NetworkMode.PROXY else {}

    def resolver(self, policy: NetworkPolicy) -> str | None:
        """Return the text of the container's /etc/resolv.conf; None = leave the machine's."""
        mode = self.mode(policy)
        if mode is NetworkMode.HOST:
            return None
        plan = plan_pasta(host_network())
        if mode is NetworkMode.PASTA and isinstance(plan, PastaPlan):
            return plan.resolv_conf
        return NO_RESOLVER

    def attach(
        self, container: str, init_pid: int, uid: int, gid: int, policy: NetworkPolicy
    ) -> None:
        """Begin to connect ``container``, whose first process is ``init_pid``, run by ``uid``.

        After a restart of the agent this takes up the connection that is still there.
        """
        if self.mode(policy) not in (NetworkMode.PASTA, NetworkMode.PROXY):
            return
        if container in self._attached:
            return
        attachment = self._attached[container] = _Attachment(container, init_pid, uid, gid)
        self._begin(attachment)

    def is_ready(self, container: str) -> bool:
        """Return whether a job may start in ``container`` without a wait."""
        attachment = self._attached.get(container)
        return attachment is None or not attachment.words or self._is_given_up(attachment)

    def traffic(self, container: str) -> tuple[int, int] | None:
        """Return the bytes (received, sent) that ``container`` passed through the proxy.

        None where the interfaces of its namespace say it: anything but the proxy.
        """
        attachment = self._attached.get(container)
        if attachment is None or self.choice.mode is not NetworkMode.PROXY:
            return None
        return attachment.proxy.traffic if attachment.proxy is not None else (0, 0)

    async def wait_ready(self, container: str) -> str:
        """Return "" once ``container`` is connected, else why it has no network.

        A connection that failed is tried again, at most every `FAILED_SECONDS`. Never raises: a job
        without a network runs.
        """
        attachment = self._attached.get(container)
        if attachment is None or not attachment.words:
            return ""
        if self._is_given_up(attachment):
            return attachment.words
        if attachment.task is None:
            self._begin(attachment)
        if attachment.task is not None:
            await asyncio.wait([attachment.task])
        return attachment.words

    def _is_given_up(self, attachment: _Attachment) -> bool:
        return attachment.task is None and self._now() < attachment.again_at

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def detach(self, container: str) -> None:
        """Disconnect ``container`` and forget it; unknown ones are ignored."""
        attachment = self._attached.pop(container, None)
        if attachment is not None:
            await self._end(attachment)

    def suspend(self, container: str) -> None:
        """Disconnect ``container``, which is idle, at once; `wait_ready` connects it again.

        pasta keeps about 20 MB of memory for each container, the proxy next to none.
        """
        attachment = self._attached.get(container)
        if attachment is not None and attachment.pasta is not None:
            self._unwatch(attachment)
            self._end_pasta(attachment, attachment.pasta)
            attachment.words = "suspended while idle"

    async def close(self, *, keep: bool) -> None:
        """Let go of all containers; with ``keep`` what needs no agent stays connected."""
        attachments = list(self._attached.values())
        self._attached.clear()
        for attachment in attachments:
            await self._end(attachment, keep_pasta=keep)

    def sweep(self, alive: Iterable[str]) -> None:
        """End what earlier agents left connected for containers that are not ``alive``."""
        names = set(alive) | set(self._attached)
        if not self._state.is_dir():
            return
        for path in self._state.glob("*.json"):
            if path.stem not in names:
                process = _read_state(path)
                if process is not None:
                    process.kill(signal.SIGKILL)
                path.unlink(missing_ok=True)

    def _begin(self, attachment: _Attachment) -> None:
        name = f"network of {attachment.container}"
        attachment.task = asyncio.get_running_loop().create_task(
            self._connect(attachment), name=name
        )

    async def _connect(self, attachment: _Attachment) -> None:
        is_pasta = self.choice.mode is NetworkMode.PASTA
        connect = self._connect_pasta if is_pasta else self._connect_proxy
        try:
            words = await connect(attachment)
        except OSError as error:  # no process, no descriptor or no room for one more
            words = f"the network could not be connected: {error}"
        attachment.task = None
        attachment.words = words
        if words:
            attachment.again_at = self._now() + FAILED_SECONDS
            logger.warning("container %s: %s", attachment.container, words)

    async def _connect_pasta(self, attachment: _Attachment) -> str:
        path = self._state / f"{attachment.container}.json"
        process = _read_state(path)
        if process is None:
            answer = await self._start_pasta(attachment)
            if answer.words:
                return answer.words
            process = find_process(answer.number)
            if process is None:
                return "pasta ended at once"
            if process_uid(process.pid) != attachment.uid:
                # The number passed through a process of the user, and we end what it names.
                return f"process {process.pid}, which is said to be pasta, is not the user's"
            try:
                _write_state(path, process)
            except OSError:
                process.kill()  # the next try could not make its device beside it
                raise
        attachment.pasta = process
        self._watch(attachment, process)
        return ""

    async def _start_pasta(self, attachment: _Attachment) -> Answer:
        plan = plan_pasta(host_network())
        if isinstance(plan, str):
            return Answer(plan)
        request = pasta_request(self.choice.program, plan, attachment.uid, attachment.gid)
        return await ask([*request, f"pid={attachment.init_pid}"])

    async def _connect_proxy(self, attachment: _Attachment) -> str:
        answer = await ask([*listen_request(), f"pid={attachment.init_pid}"])
        if not answer.words:
            attachment.proxy = Proxy(socket.socket(fileno=answer.fds[0]))
            attachment.proxy.start()
        return answer.words

    def _watch(self, attachment: _Attachment, process: Process) -> None:
        """Connect again, after a pause, when pasta ends and nobody asked it to."""
        loop = asyncio.get_running_loop()
        fd = process.open_pidfd()

        def forget() -> None:
            loop.remove_reader(fd)
            os.close(fd)

        def ended() -> None:
            self._unwatch(attachment)
            self._pasta_ended(attachment)

        attachment.forget.append(forget)
        loop.add_reader(fd, ended)

    def _pasta_ended(self, attachment: _Attachment) -> None:
        logger.warning("container %s: its pasta ended; connecting again", attachment.container)
        attachment.pasta = None
        attachment.words = "its pasta process ended"
        (self._state / f"{attachment.container}.json").unlink(missing_ok=True)
        timer = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._retry, attachment)
        attachment.forget.append(timer.cancel)

    def _retry(self, attachment: _Attachment) -> None:
        if attachment.words and attachment.task is None:
            self._begin(attachment)

    def _unwatch(self, attachment: _Attachment) -> None:
        for forget in attachment.forget:
            forget()
        attachment.forget.clear()

    async def _end(self, attachment: _Attachment, *, keep_pasta: bool = False) -> None:
        if attachment.task is not None:
            # The helper may have started pasta already: its pid must not be lost.
            await asyncio.wait([attachment.task])
        self._unwatch(attachment)
        if attachment.proxy is not None:
            await attachment.proxy.close()
            attachment.proxy = None
        if attachment.pasta is not None and not keep_pasta:
            self._end_pasta(attachment, attachment.pasta)

    def _end_pasta(self, attachment: _Attachment, pasta: Process) -> None:
        pasta.kill(signal.SIGKILL)
        attachment.pasta = None
        (self._state / f"{attachment.container}.json").unlink(missing_ok=True)


def _read_state(path: Path) -> Process | None:
    """Return the live process that ``path`` names, or None."""
    try:
        expected = from_wire(Process, decode_header(path.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError:  # cut short by a crash of the machine: its processes are gone
        return None
    return expected if find_process(expected.pid) == expected else None


def _write_state(path: Path, process: Process) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    partial = path.with_suffix(".partial")
    text = json.dumps({"pid": process.pid, "start_time": process.start_time})
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
