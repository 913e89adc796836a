"""The words about jobs: statuses, end reasons, core types, specs.

Times are UTC seconds since 1970 (``_at``), durations seconds, sizes bytes.
"""

from dataclasses import dataclass
from enum import StrEnum

INLINE_BYTES = 64 * 1024  # payloads up to this size live in the store, larger ones in files
MAX_MAP_COUNT = 1_000_000
MAX_PART_COUNT = 1_000  # rows of a map committed at once
MAX_RESULT_COUNT = 2_000  # results handed over by one request
DEFAULT_PRIORITY = 5
GIB = 1024**3


class Status(StrEnum):
    """PiCloud's job statuses."""

    WAITING = "waiting"  # dependencies are not done yet
    QUEUED = "queued"  # ready, waits for a core
    PROCESSING = "processing"  # its function runs
    DONE = "done"
    ERROR = "error"
    KILLED = "killed"
    STALLED = "stalled"  # it can never start or may not start again


FINISHED_STATUSES = (Status.DONE, Status.STALLED, Status.ERROR, Status.KILLED)


class Kind(StrEnum):
    """What a job runs."""

    CALL = "call"
    CELL = "cell"
    SHELL = "shell"
    HANDLER = "handler"
    KERNEL = "kernel"
    MACHINE = "machine"
    SETUP = "setup"


class EndReason(StrEnum):
    """Why a job ended: the closed list. Each is explained in docs/end-reasons.md."""

    DONE = "done"
    ERROR = "error"  # the function raised
    EXIT_CODE = "exit_code"  # a shell command ended with a code other than 0
    OOM = "oom"
    DISK_FULL = "disk_full"
    TIMEOUT = "timeout"  # ran longer than its max_runtime
    KILLED = "killed"  # somebody asked for it
    LOST_WORKER = "lost_worker"  # its container was killed by others, or was good no more
    NODE_LOST = "node_lost"
    SPOT_RECLAIMED = "spot_reclaimed"
    ENV_MISSING = "env_missing"
    ENV_BUILD_FAILED = "env_build_failed"
    INPUT_UNDESERIALIZABLE = "input_undeserializable"
    RESULT_UNSERIALIZABLE = "result_unserializable"
    RESULT_TOO_LARGE = "result_too_large"
    POISON = "poison"  # its container was lost three times
    NEVER_SCHEDULED = "never_scheduled"  # nothing here can ever hold it
    DEPENDENCY_FAILED = "dependency_failed"
    CRASHED = "crashed"  # a signal or an exit from inside ended the interpreter
    ABANDONED = "abandoned"  # its map was never finished by the client
    INCOMPATIBLE = "incompatible"  # client and runner do not understand each other
    CAP_REACHED = "cap_reached"  # a quota of the user: more is refused
    START_FAILED = "start_failed"  # the container could not be started
    SECRET_MISSING = "secret_missing"  # noqa: S105  # one of its secrets was deleted before it began


class ContainerKind(StrEnum):
    """How a container is made on a node; chosen by trial, see docs/platforms.md."""

    ROOT = "root"
    ROOTLESS = "rootless"
    PLAIN = "plain"  # a subprocess with limits: NOT isolated


class LimitsGrade(StrEnum):
    """How limits are held on a node."""

    CGROUP = "cgroup"
    DELEGATED = "delegated"
    WATCHED = (
        "watched"  # memory is read several times a second and the job killed over its limit
    )


class NetworkPolicy(StrEnum):
    """What a job's network reaches."""

    INTERNET = "internet"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class CoreType:
    """One of PiCloud's core types: what a core of it is worth and which counts are sold.

    ``share`` is how much of a real core one core of this type occupies. ``memory_bytes`` is per
    core, before the cut to what the machine has. Source: the PiCloud documentation of 2013 for
    names and core counts; memory is this product's own.
    """

    name: str
    memory_bytes: int
    core_counts: tuple[int, ...]
    share: float = 1.0
    price_per_core_hour: float = 0.05


CORE_TYPES: dict[str, CoreType] = {
    t.name: t
    for t in (
        CoreType("c1", 2 * GIB, (1,), price_per_core_hour=0.05),
        CoreType("c2", 2 * GIB, (1, 2, 4, 8), price_per_core_hour=0.13),
        CoreType("f2", 4 * GIB, (1, 2, 4, 8, 16), price_per_core_hour=0.22),
        CoreType("m1", 8 * GIB, (1, 2, 4, 8), price_per_core_hour=0.30),
        CoreType("s1", 1 * GIB, (1,), share=0.2, price_per_core_hour=0.04),
    )
}


@dataclass(frozen=True, slots=True)
class Resources:
    """A vector of what a job occupies or a node has."""

    cores: float
    memory_bytes: int
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class HostPython:
    """The submitter's own Python: what must be visible in the container, at the same paths.

    ``paths`` are the realpaths of sys.prefix, sys.base_prefix, of every sys.path entry and of
    editable targets that exist; ``sys_path`` is the order in which the runner imports.
    ``packages_digest`` changes when a package is installed, upgraded or removed.
    """

    executable: str
    prefix: str
    base_prefix: str
    version: str
    paths: tuple[str, ...] = ()
    sys_path: tuple[str, ...] = ()
    packages_digest: str = ""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Everything that makes two containers interchangeable; its digest is the runner key.

    ``cores`` counts cores of ``core_type``; ``cpu_cores`` is the enforced limit in real cores.
    ``folder`` is the submitting folder, shown read-only at the same path ("" = none).
    ``volumes`` are (host path, path inside, mode "ro" or "rw"). ``secrets`` are (variable, name,
    version): values come with each chunk, and a changed one gets another container.
    """

    user_id: int
    host_python: HostPython
    core_type: str = "c1"
    cores: int = 1
    cpu_cores: float = 1.0
    memory_bytes: int = 2 * GIB
    pids: int = 1024
    folder: str = ""
    code_version: str = ""
    volumes: tuple[tuple[str, str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    network: NetworkPolicy = NetworkPolicy.INTERNET
    environment_id: str = ""
    secrets: tuple[tuple[str, str, int], ...] = ()
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and for which end reasons a job is run again by the user's wish.

    ``reasons`` empty means: any failure of the job's own (error, exit_code, oom, timeout, crashed).
    """

    count: int = 0
    reasons: tuple[EndReason, ...] = ()
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the client asks for: one spec for a call, and one for all jobs of a map.

    ``secrets`` are (variable, name), never values; ``secret_versions`` is filled in by the service.
    """

    function_name: str
    host_python: HostPython
    kind: Kind = Kind.CALL
    label: str | None = None
    priority: int = DEFAULT_PRIORITY
    restartable: bool = True
    depends_on: tuple[tuple[int, int], ...] = ()
    depends_on_errors: str = "abort"
    fast_serialization: int = 0
    core_type: str = "c1"
    cores: int = 1
    environment: str | None = None
    volumes: tuple[str, ...] = ()
    max_runtime_seconds: float | None = None
    profile: bool = False
    kill_process: bool = False
    variables: tuple[tuple[str, str], ...] = ()
    network: NetworkPolicy = NetworkPolicy.INTERNET
    retries: RetryPolicy = RetryPolicy()
    cache: bool = False
    folder: str = ""
    code_version: str = ""
    max_result_bytes: int | None = None
    parent_jid: int | None = None
    host_name: str = ""
    process_id: int = 0
    client_version: str = ""
    secrets: tuple[tuple[str, str], ...] = ()
    secret_versions: tuple[int, ...] = ()
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class PayloadRef:
    """Where the bytes of a function or of arguments are.

    Either in the frame's body (``size_bytes`` of it, in the order the header names) or in a
    finished upload (``upload`` is its id). ``digest`` is the sha256 in hex of the bytes; required
    for functions and code, optional for arguments.
    """

    size_bytes: int
    digest: str = ""
    upload: str | None = None


@dataclass(frozen=True, slots=True)
class JobUsage:
    """What one job used. ``shared`` = measured for its chunk as a whole, not for it alone."""

    runtime_seconds: float = 0.0
    cpu_user_seconds: float = 0.0
    cpu_system_seconds: float = 0.0
    memory_peak_bytes: int = 0
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0
    shared: bool = False
    approximate: bool = False
