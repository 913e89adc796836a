"""The seam between the supervisor and the ways to make a container."""

from dataclasses import dataclass, field
from typing import Protocol

from picloud_jupyter.protocol.jobs import ContainerKind, EndReason, SandboxSpec

# Why a start broke off that nobody reports an error of: who made the container, or it itself, was
# killed from outside. It is tried anew, at no cost of the job's.
LOST_START = EndReason.LOST_WORKER.value


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """What the supervisor wants started. Paths are the host's.

    ``run_dir`` appears inside as /run/picloud, ``out_dir`` as /run/picloud/out, ``bundle`` as
    /run/picloud/bundle, ``code`` (a zip file) as /run/picloud/code.zip. ``layer_dir`` is private
    to this container and holds its writable layer. ``command_tail`` follows the Python
    executable of ``spec.host_python``. ``pass_fds`` are inherited under the same numbers.
    ``host_uid`` is the uid that the job runs as on the host (root kind). ``hidden`` are folders of
    the service (its home and its run directory): empty inside, even where the submitting folder
    or a volume would show them.
    """

    container: str
    spec: SandboxSpec
    run_dir: str
    out_dir: str
    layer_dir: str
    bundle: str
    code: str
    stdout_fd: int
    stderr_fd: int
    pass_fds: tuple[int, ...]
    host_uid: int
    variables: dict[str, str] = field(default_factory=dict)
    command_tail: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    devices: tuple[tuple[str, str], ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunningContainer:
    """A started container. ``pid`` is our direct child; ``init_pid`` the first process inside.

    ``cgroups`` are the folders that hold its limits and counters (`cgroup.CgroupReader`), empty
    where there are none. ``mounts`` is empty while mounts live in a namespace of the child.
    """

    pid: int
    init_pid: int
    cgroups: tuple[str, ...]
    mounts: tuple[str, ...]


class Container(Protocol):
    """One way to make containers. Sync; used in the supervisor, a process of its own."""

    kind: ContainerKind

    def start(self, request: ContainerRequest) -> RunningContainer:
        """Start the runner in a new container and return at once, before it is ready.

        To be called on the main thread: the container ends with the thread that started it.

        Raises:
            ContainerError: it could not be made; nothing is left behind.
        """

    def inside_paths(self, request: ContainerRequest) -> dict[str, str]:
        """Return what the runner's CONFIG calls home, run_dir, out_dir, bundle and code."""

    def wait_status(self, status: int) -> int:
        """Return the runner's wait status, given what waitpid said of ``RunningContainer.pid``."""

    def kill(self, running: RunningContainer) -> None:
        """End every process of the container within a second, whatever it does."""

    def clean(self, request: ContainerRequest, running: RunningContainer | None) -> None:
        """Remove mounts, cgroups and the layer; may be called twice and after a crash."""


class ContainerError(Exception):
    """Raised when a container cannot be started. ``reason`` is an end reason's value."""

    def __init__(self, message: str, *, reason: str = "start_failed") -> None:
        super().__init__(message)
        self.reason = reason
