"""What earlier agents and lost supervisors left: found again, ended, cleaned. Sync."""

import contextlib
import fcntl
import logging
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.frames import decode_header
from picloud_services.agent.container import ContainerRequest
from picloud_services.agent.kinds import make_container
from picloud_services.agent.orders import StartOrder, read_start_frame
from picloud_services.agent.overlay import remove_tree
from picloud_services.agent.plain_process import MARK
from picloud_services.agent.process_table import (
    Table,
    descendants,
    end_all,
    marked,
    read_process,
    read_table,
)
from picloud_services.agent.processes import Process, find_process

log = logging.getLogger(__name__)

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
END_SECONDS = 2.0
FORK_SECONDS = 2.0  # between a supervisor's lock and its first status, at most
START_TICKS = (
    30 * CLOCK_TICKS
)  # a container's first process starts so soon after its supervisor
PASTA_DEPTH = 2  # pid namespaces: the agent's, in which it names its container, and its own
# As `namespace_helper` starts it.
_PASTA = re.compile(
    rb"pasta\0.*\0-P\0/proc/self/fd/1\0--netns\0/proc/([0-9]+)/ns/net\0", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Found:
    """A container in the run directory; ``supervisor`` is None when it is dead."""

    order: StartOrder
    supervisor: Process | None


def find_containers(run: Path, home: Path) -> Iterator[Found]:
    """Yield what is in RUN/c; folders without a readable order go, with what runs in their layer."""
    for folder in sorted((run / "c").glob("*")):
        try:
            order = read_start_frame(decode_header((folder / "order.json").read_bytes()))
        except (OSError, ValueError):
            _end_holders(str(home / "layers" / folder.name))  # a damaged one had a container
            with contextlib.suppress(OSError):  # what cannot be removed now is tried next time
                remove_tree(str(folder))
            continue
        yield Found(order, _await_supervisor(order))


def end_container(order: StartOrder, supervisor: Process) -> None:
    """End a container and its ``supervisor``, of which nothing can be learned any more."""
    supervisor.kill()
    for process in _first_processes(_status(Path(order.folder))):
        process.kill()


def clean_up(order: StartOrder) -> None:
    """End what still runs of a container that nobody will use any more, and remove all that it had.

    Its supervisor, too: a launcher that was killed may have begun one without a word. May be called
    twice, and after the supervisor cleaned up itself.

    Raises:
        OSError: something of it cannot be ended or removed yet; call it again later.
    """
    with _taken(order.request.layer_dir) as was_held:
        status = _status(Path(order.folder))
        for process in _first_processes(status):
            log.warning("container %s: process %d is ended", order.container, process.pid)
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        if status or was_held:
            make_container(order.kind, order.program).clean(_request(order), None)
        remove_tree(order.request.layer_dir)
        remove_tree(order.folder)


@contextlib.contextmanager
def _taken(layer_dir: str) -> Iterator[bool]:
    """Hold a layer for the time of the block, so that no supervisor can begin there.

    Gives whether one had to be ended for that.

    Raises:
        OSError: it cannot be ended yet.
    """
    was_held = _is_held(layer_dir) and _end_holders(layer_dir)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(FileNotFoundError):  # then nobody can begin there either
            held.callback(os.close, hold_layer(layer_dir))
        yield was_held


def hold_layer(layer_dir: str, least: int = 3) -> int:
    """Mark a layer as in use while this process lives; return the descriptor that does.

    ``least`` is the lowest number that it may have.

    Raises:
        OSError: it is not there, or another process holds it.
    """
    layer = os.open(layer_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(layer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fcntl.fcntl(layer, fcntl.F_DUPFD_CLOEXEC, least)
    finally:
        os.close(layer)


def remove_stray_layers(home: Path, alive: set[str]) -> None:
    """Remove layers whose container is not in ``alive``: their run directory went with a reboot.

    Without a reboot a supervisor may have outlived it: what one holds stays. Where it was killed, too,
    plain processes of the container may have outlived both; others end with their supervisor.
    """
    with contextlib.ExitStack() as held:
        strays = []
        for folder in (home / "layers").glob("*"):
            if folder.name not in alive:
                with contextlib.suppress(OSError):
                    held.callback(os.close, hold_layer(str(folder)))
                    strays.append(folder)
        if strays:
            marks = [f"{MARK}={folder.name}" for folder in strays]
            end_all(
                lambda table: descendants(table, marked(table, *marks)),
                within_seconds=END_SECONDS,
            )
        for folder in strays:
            with contextlib.suppress(OSError):  # what cannot be removed now is tried next time
                remove_tree(str(folder))


def end_stray_pasta(pids: Iterable[int]) -> list[int]:
    """End those of ``pids`` that are a pasta whose container is gone; return them.

    It keeps its network alive by itself. Whoever started it was killed before it said so, or with the
    run directory that said so, and may have been of another service: so only it itself tells.
    """
    ended = []
    for pid in pids:
        container = _connected_by(pid)
        process = find_process(pid) if container else None
        if process is None or _connected_by(pid) != container:  # another one has the number now
            continue
        if _has_ended(container, process.start_time):
            with contextlib.suppress(PermissionError):  # another user's, who has an agent
                process.kill()
                ended.append(pid)
    return ended


def _connected_by(pid: int) -> int:
    """Return the container's first process where ``pid`` is a pasta that we may judge, else 0."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            found = _PASTA.match(file.read())
        if found is None:
            return 0
        with open(f"/proc/{pid}/status", "rb") as file:
            depth = sum(len(line.split()) - 1 for line in file if line.startswith(b"NStgid:"))
    except OSError:  # it has ended, or is hidden
        return 0
    return int(found[1]) if depth == PASTA_DEPTH else 0


def _has_ended(pid: int, since: int) -> bool:
    """Return whether the process ``pid`` of ``since`` (ticks) is gone; one that we may not see is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    process = read_process(pid)
    return process is not None and process.start_ticks > since


def _status(folder: Path) -> dict[str, Any]:
    try:
        return decode_header((folder / "status.json").read_bytes())
    except (OSError, ValueError):  # it was cleaned, never came so far, or is damaged
        return {}


def _number(status: dict[str, Any], name: str) -> int:
    found = status.get(name)
    return found if type(found) is int else 0


def _await_supervisor(order: StartOrder) -> Process | None:
    """Return the supervisor, also one that the launcher of a killed agent is just forking."""
    folder, end_at = Path(order.folder), time.monotonic() + FORK_SECONDS
    while not (status := _status(folder)) and time.monotonic() < end_at:
        if not _is_held(order.request.layer_dir):
            break
        time.sleep(0.005)
    return _supervisor(status)


def _is_held(layer_dir: str) -> bool:
    try:
        os.close(hold_layer(layer_dir))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _end_holders(layer_dir: str) -> bool:
    """End the supervisor that marks a layer as its own, and all below it; return whether there was one.

    Nothing else tells of it where its files were damaged.
    """
    victims = _holders(layer_dir)
    if not victims:
        return False
    log.warning("nobody knows the supervisor of %s any more; it is ended", layer_dir)

    def find(table: Table) -> set[int]:
        victims.update(descendants(table, victims))
        return victims & table.keys()

    end_all(find, within_seconds=END_SECONDS)
    return True


def _holders(layer_dir: str) -> set[int]:
    """Return the other processes that have the folder of a layer open."""
    found, layer = set(), os.path.realpath(layer_dir)
    for pid in read_table().keys() - {os.getpid()}:
        with contextlib.suppress(OSError):  # it is another user's, or has ended
            folder = f"/proc/{pid}/fd"
            if any(os.readlink(f"{folder}/{fd}") == layer for fd in os.listdir(folder)):
                found.add(pid)
    return found


def _supervisor(status: dict[str, Any]) -> Process | None:
    process = Process(_number(status, "pid"), _number(status, "start_time"))
    return process if process.pid and find_process(process.pid) == process else None


def _first_processes(status: dict[str, Any]) -> Iterator[Process]:
    """Yield the first process of the container, if the pid in its status is still that process.

    It was started within seconds after the supervisor; a process that got the pid later was not.
    """
    pid, since = _number(status, "init_pid"), _number(status, "start_time")
    process = find_process(pid) if pid else None
    if process is not None and since <= process.start_time <= since + START_TICKS:
        yield process


def _request(order: StartOrder) -> ContainerRequest:
    request = order.request
    return ContainerRequest(
        container=request.container,
        spec=request.spec,
        run_dir=request.run_dir,
        out_dir=request.out_dir,
        layer_dir=request.layer_dir,
        bundle=request.bundle,
        code=request.code,
        stdout_fd=-1,
        stderr_fd=-1,
        pass_fds=(),
        host_uid=request.host_uid,
    )
