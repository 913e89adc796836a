"""The launcher: forks supervisors, so that a container's start does not wait for a Python's.

The agent's process makes it by `fork` before it imports what only an agent needs; one that was
lost is replaced by ``python -m picloud_services.agent.launcher FD``. It stays single-threaded; each
supervisor shares its memory and then belongs to nobody: it outlives launcher and agent.
"""

import contextlib
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from picloud_jupyter.protocol.frames import FrameReader, pack_frame
from picloud_services.agent.agent_door import listen
from picloud_services.agent.container import LOST_START, ContainerError
from picloud_services.agent.kinds import make_container
from picloud_services.agent.leftovers import hold_layer
from picloud_services.agent.orders import StartOrder, read_start_frame
from picloud_services.agent.processes import find_process
from picloud_services.agent.supervisor import Supervisor
from picloud_services.base.logs import LineFormatter, log_beside

log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_SUPERVISOR_FD = 100  # its listener, out of the way of the runner's descriptors 3 and 4


def serve(link: socket.socket) -> None:
    """Answer each order on ``link`` in turn, until the agent closes it."""
    reader = FrameReader()
    with contextlib.suppress(ConnectionError):  # the agent died: the same as a closed link
        while data := link.recv(_READ_BYTES):
            for header, _ in reader.feed(data):
                if _is_closed(link):
                    return  # nobody would know of that container
                link.sendall(pack_frame(_answer(header)))


def _is_closed(link: socket.socket) -> bool:
    poll = select.poll()
    poll.register(link, select.POLLRDHUP)
    return bool(poll.poll(0))


def _answer(header: dict[str, Any]) -> dict[str, Any]:
    container = header.get("container")
    try:
        order = read_start_frame(header)
        found = _start(order)
    except ContainerError as exc:
        return _failed(container, exc)
    except (ValueError, OSError) as exc:
        return _failed(container, ContainerError(f"the container could not be started: {exc}"))
    return {"t": "started", "container": container, **found}


def _failed(container: object, why: ContainerError) -> dict[str, Any]:
    words = {"reason": why.reason, "message": str(why)}
    return {"t": "failed", "container": container, **words}


def _start(order: StartOrder) -> dict[str, Any]:
    """Fork a supervisor that is nobody's child; return its pid and start time once it listens.

    Raises:
        OSError: it said why it cannot be one.
        ContainerError: it was lost before it said anything.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _fork_again(order, write)
    os.close(write)
    with open(read, "rb") as said:
        answer = said.read()
    os.waitpid(child, 0)
    if not answer:
        words = "the container's supervisor ended before it was ready; see agent.log"
        raise ContainerError(words, reason=LOST_START)
    found: dict[str, Any] = json.loads(answer)
    if "message" in found:
        raise OSError(found["message"])
    return found


def _fork_again(order: StartOrder, write: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        status = 0 if os.fork() else _be_supervisor(order, write)
    except Exception:
        log.exception("container %s could not be supervised", order.container)
    os._exit(status)


def _be_supervisor(order: StartOrder, write: int) -> int:
    answer = os.dup2(write, _SUPERVISOR_FD + 1, inheritable=False)
    try:
        _settle(keep=answer)
        hold_layer(order.request.layer_dir, answer + 1)
        listener = listen(f"{order.folder}/supervisor.sock")
        process = find_process(os.getpid())
        assert process is not None
    except OSError as exc:
        os.write(answer, json.dumps({"message": str(exc)}).encode())
        return 1
    moved = socket.socket(fileno=os.dup2(listener.fileno(), _SUPERVISOR_FD, inheritable=False))
    listener.close()
    # Not by standard error: the agent begins new files, and this process outlives several.
    log_beside(Path(order.logs).parent / "agent.log", "supervisor", container=order.container)
    container = make_container(order.kind, order.program)
    supervisor = Supervisor(order, container, moved, process.start_time)
    found = {"pid": process.pid, "start_time": process.start_time}
    os.write(answer, json.dumps(found).encode())
    os.close(answer)
    supervisor.run()
    return 0


def _settle(keep: int) -> None:
    """Close what the launcher holds, standard streams apart, and take back its signals."""
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def fork() -> tuple[int, socket.socket]:
    """Return the pid of a launcher that shares this process's memory, and our end of its link (L3).

    Only for a process with a single thread and no descriptors but the standard ones.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _leave_agent(ours, theirs)
    theirs.close()
    return pid, ours


def _leave_agent(ours: socket.socket, theirs: socket.socket) -> NoReturn:
    status = 1
    try:
        ours.close()
        os.setsid()
        _be_launcher(theirs)
        status = 0
    except Exception:
        log.exception("the launcher failed")
    os._exit(status)


def _be_launcher(link: socket.socket) -> None:
    handler = logging.StreamHandler()  # agent.log, as the agent's own standard error
    handler.setFormatter(LineFormatter("launcher"))
    logging.basicConfig(handlers=[handler])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
    gc.freeze()  # what is shared with the supervisors must not be written to by their collector
    gc.enable()
    serve(link)


def main() -> None:
    """Serve the agent at the descriptor that the command line names."""
    _be_launcher(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
