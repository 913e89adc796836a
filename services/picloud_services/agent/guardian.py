"""Keeps the other process alive: the control plane the agent, the agent the control plane.

The control plane restarts the agent always; the agent restarts the control plane only while it
holds work. The file ``intent`` says that the user wants the service down: then nobody restarts anybody.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from picloud_jupyter.protocol.codec import from_wire
from picloud_jupyter.protocol.frames import decode_header
from picloud_services.agent.processes import Process, find_process
from picloud_services.base.filesystem import write_atomically
from picloud_services.base.single_instance import is_alive, read_record
from picloud_services.config import Settings, command

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # while the other is connected: that its link breaks is seen at once
MISSING_SECONDS = 0.25  # between two looks while it is not
START_SECONDS = (
    10.0  # a process that was started and has not come up yet is left alone this long
)
CROWD_COUNT = 3
CROWD_SECONDS = 60.0
FIRST_DELAY_SECONDS = 0.25  # doubled by each further start within a minute
LONGEST_DELAY_SECONDS = 30.0


def delay_seconds(starts: Sequence[float], now: float) -> float:
    """Return how long to wait before the next start, the longer the more there were in a minute. Pure.

    Some processes killed in a row must be back at once; one that always crashes must not take a core.

    >>> delay_seconds([0.0, 1.0], 2.0)
    0.0
    >>> [delay_seconds([0.0] * count, 0.0) for count in (3, 4, 8, 20)]
    [0.25, 0.5, 8.0, 30.0]
    """
    recent = [start for start in starts if now - start < CROWD_SECONDS]
    if len(recent) < CROWD_COUNT:
        return 0.0
    delay = FIRST_DELAY_SECONDS * 2.0 ** (len(recent) - CROWD_COUNT)
    return max(0.0, recent[-1] + min(delay, LONGEST_DELAY_SECONDS) - now)


@dataclass(frozen=True, slots=True)
class Other:
    """The process to keep alive. ``log`` takes what it prints."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    is_alive: Callable[[], bool]


def the_agent(settings: Settings) -> Other:
    """Return the agent, as the control plane with ``settings`` keeps it alive."""
    path = agent_record(settings.run)
    return _other(settings, "agent", lambda: read_agent_process(path) is not None)


def the_control_plane(settings: Settings) -> Other:
    """Return the control plane, as the agent with ``settings`` keeps it alive."""

    def alive() -> bool:
        record = read_record(settings.paths.record)
        return record is not None and is_alive(record)

    return _other(settings, "control", alive)


def _other(settings: Settings, role: str, alive: Callable[[], bool]) -> Other:
    log_name = "agent.log" if role == "agent" else "service.log"
    return Other(
        "agent" if role == "agent" else "control plane",
        tuple(command(role, settings.paths)),
        settings.exported(),
        settings.home / log_name,
        alive,
    )


def agent_record(run: Path) -> Path:
    """Return where the agent of ``run`` says who it is."""
    return run / "agent.json"


def write_agent_process(path: Path, process: Process) -> None:
    """Say at ``path`` that ``process`` is the agent."""
    fields = {"pid": process.pid, "start_time": process.start_time}
    write_atomically(path, json.dumps(fields).encode())


def read_agent_process(path: Path) -> Process | None:
    """Return the agent's process if it lives."""
    try:
        process = from_wire(Process, decode_header(path.read_bytes()))
    except (OSError, ValueError):
        return None  # no agent was here, or the file is damaged: one is started
    return process if find_process(process.pid) == process else None


def start_detached(other: Other) -> int:
    """Start ``other`` in a session of its own, its output appended to its log; returns its pid.

    Raises:
        OSError: it cannot be started.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        other.command[0],
        other.command,
        {**os.environ, **other.environment},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(other.log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _has_ended(child: int) -> bool:
    """Whether our child ended; buries it then, for as a zombie its pid would look alive."""
    try:
        return os.waitpid(child, os.WNOHANG)[0] != 0
    except ChildProcessError:  # buried before
        return True


class Guardian:
    """Starts ``other`` whenever it is dead and wanted, as often as `look` is called.

    ``wanted`` is asked each time; nothing is started while the file ``intent`` exists.
    """

    def __init__(self, other: Other, *, wanted: Callable[[], bool], intent: Path) -> None:
        self._other = other
        self._wanted = wanted
        self._intent = intent
        self._starts: list[float] = []
        self._child: int | None = None
        self.started = 0  # how often it had to be
        self._told_of: float | None = None  # the last start when a delay was logged

    @property
    def is_expected(self) -> bool:
        """Whether the other process is there, or on its way."""
        if self._child is not None and _has_ended(self._child):
            self._child = None
        is_young = self._child is not None and (
            time.monotonic() - self._starts[-1] < START_SECONDS
        )
        return is_young or self._other.is_alive()

    def look(self) -> None:
        """Start the other process if it is needed, not coming already, and not crashing over and over."""
        if self.is_expected or not self._wanted() or self._intent.exists():
            return
        delay = delay_seconds(self._starts, time.monotonic())
        if delay:
            self._tell(delay)
            return
        self.start()

    def start(self) -> None:
        """Start the other process, whoever wants the service down."""
        log.warning("the %s is not running; starting it", self._other.name)
        now = time.monotonic()
        self._starts = [*(s for s in self._starts if now - s < CROWD_SECONDS), now]
        self.started += 1
        try:
            self._child = start_detached(self._other)
        except OSError:
            log.exception("the %s cannot be started", self._other.name)

    def _tell(self, delay: float) -> None:
        if self._told_of != self._starts[-1]:
            self._told_of = self._starts[-1]
            log.error(
                "the %s ended %d times within a minute; the next start is in %.2f s, see %s",
                *(self._other.name, len(self._starts), delay, self._other.log),
            )
