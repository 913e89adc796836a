"""Asks the namespace helper: the agent's side of `namespace_helper`."""

import asyncio
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from picloud_services.agent import namespace_helper
from picloud_services.agent.network_plan import INTERFACE, PROXY_PORT, PastaPlan
from picloud_services.agent.reachability import BLOCKED_NETWORKS

HELPER_TIMEOUT_SECONDS = 10.0


def pasta_request(program: str, plan: PastaPlan, uid: int, gid: int) -> list[str]:
    """Return the request to start pasta as ``uid``:``gid``."""
    return [
        *("pasta", f"uid={uid}", f"gid={gid}", f"program={program}"),
        *(f"argument={argument}" for argument in plan.arguments),
        f"interface={INTERFACE}",
        *(f"blocked={network}" for network in BLOCKED_NETWORKS),
    ]


def listen_request() -> list[str]:
    """Return the request for a socket on the proxy's port inside."""
    return ["listen", f"port={PROXY_PORT}"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the helper said: why it failed ("" = it did not), a number, descriptors."""

    words: str
    number: int = 0
    fds: tuple[int, ...] = ()


async def ask(request: list[str]) -> Answer:
    """Return what the helper answers; it is given `HELPER_TIMEOUT_SECONDS`.

    Raises:
        OSError: it could not be started.
    """
    return await asyncio.to_thread(_run_helper, request)


def _run_helper(request: list[str]) -> Answer:
    """Run the helper and return its answer; in a worker thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        program = [sys.executable, "-I", "-S", str(namespace_helper.__file__)]
        helper = subprocess.Popen(
            [*program, str(theirs.fileno()), *request],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        ours.settimeout(HELPER_TIMEOUT_SECONDS)
        try:
            said, fds, _, _ = socket.recv_fds(ours, 65536, 1)
        except TimeoutError:
            helper.kill()
            said, fds = b"", []
        helper.wait()
    for fd in fds:  # recv_fds leaves them open in programs that are started later
        os.set_inheritable(fd, False)  # noqa: FBT003
    if said.startswith(b"+"):
        return Answer("", int(said[1:]), tuple(fds))
    words = said[1:].decode(errors="replace")
    return Answer(words or "the network helper gave no answer; the agent's log may say why")
