"""The words of answers: what comes back from each operation of `protocol.operations`. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from picloud_jupyter.protocol.jobs import (
    ContainerKind,
    EndReason,
    LimitsGrade,
    Resources,
    Status,
)
from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_jupyter.protocol.nodes import KindTrial, NodeReport
from picloud_jupyter.protocol.requests import Jid, Limits
from picloud_jupyter.protocol.secrets import SecretLine
from picloud_jupyter.protocol.users import UserReport

Count = Annotated[int, Limits(0)]


class Scope(StrEnum):
    """Whom a service serves."""

    USER = "user"  # its owner
    SYSTEM = "system"  # every user of the machine


@dataclass(frozen=True, slots=True)
class Nothing:
    """It is done, and there is nothing to say of it."""


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """The service, and what the caller has in it."""

    pid: int
    agent_pid: int | None
    version: str
    wire: int
    scope: Scope
    user_id: int
    home: str
    host: str
    started_at: float
    note: str
    container_kind: ContainerKind | None
    limits_grade: LimitsGrade | None
    network: str | None
    network_note: str
    trials: tuple[KindTrial, ...]
    capacity: Resources | None
    disk: dict[str, int]
    counts: dict[str, Count]
    user: UserReport
    nodes: tuple[NodeReport, ...]
    caps: dict[str, int]
    uploads_local: bool
    core_types: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """A job; ``cached``: it is finished already, with a kept result."""

    jid: Jid
    cached: bool
    repeated: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MapAnswer:
    """A map that may now take parts; ``first_jid`` is null while its length is unknown."""

    map: int
    first_jid: Jid | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """Where the jobs of a part are."""

    first_jid: Jid
    count: int


@dataclass(frozen=True, slots=True)
class SealAnswer:
    """The jobs of a map, in order."""

    jids: tuple[tuple[Jid, Jid], ...]


@dataclass(frozen=True, slots=True)
class JobLine:
    """One line of a listing."""

    jid: Jid
    status: Status
    reason: EndReason | None
    label: str | None
    function: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    map: int | None
    core_type: str
    cores: int
    why: str


@dataclass(frozen=True, slots=True)
class JobsAnswer:
    """Jobs of the caller, newest first."""

    jobs: tuple[JobLine, ...]


@dataclass(frozen=True, slots=True)
class StatusesAnswer:
    """Runs of jobs that have one status."""

    statuses: tuple[tuple[Jid, Jid, Status], ...]


@dataclass(frozen=True, slots=True)
class WaitAnswer:
    """How far jobs are; ``failed`` and ``pending`` name the first of each."""

    finished: bool
    counts: dict[str, Count]
    failed: tuple[tuple[Jid, Status, EndReason], ...]
    pending: tuple[tuple[Jid, Jid], ...]
    why: dict[str, str]


@dataclass(frozen=True, slots=True)
class ResultLine:
    """The end of one job; its bytes are behind the header unless ``blob`` is set."""

    jid: Jid
    status: Status
    reason: EndReason
    size: Count
    message: str
    file: str | None
    blob: bool
    digest: str


@dataclass(frozen=True, slots=True)
class ResultsAnswer:
    """The header of results; ``more``: a limit cut them short."""

    items: tuple[ResultLine, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class InfoAnswer:
    """The wanted fields of each job, by its jid."""

    info: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class KillAnswer:
    """How many jobs were ended."""

    killed: Count


@dataclass(frozen=True, slots=True)
class DeleteAnswer:
    """How many jobs were removed."""

    deleted: Count


@dataclass(frozen=True, slots=True)
class FileLine:
    """A file that a job wrote in its folder."""

    path: str
    size_bytes: Count
    modified_at: float


@dataclass(frozen=True, slots=True)
class FileLeft:
    """One that was not kept."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class FilesAnswer:
    """What a job wrote in its folder."""

    files: tuple[FileLine, ...]
    left: tuple[FileLeft, ...]
    note: str


@dataclass(frozen=True, slots=True)
class SamplesAnswer:
    """What a job used, over time."""

    samples: tuple[ResourceSample, ...]


@dataclass(frozen=True, slots=True)
class UploadAnswer:
    """An upload that waits for its bytes; ``path``: the file that the client may write itself."""

    upload: str
    path: str | None


@dataclass(frozen=True, slots=True)
class UploadedAnswer:
    """What came."""

    size_bytes: Count
    digest: str


@dataclass(frozen=True, slots=True)
class NodesAnswer:
    """The machines that run jobs."""

    nodes: tuple[NodeReport, ...]


@dataclass(frozen=True, slots=True)
class SecretsAnswer:
    """The caller's secrets, without their values."""

    secrets: tuple[SecretLine, ...]


@dataclass(frozen=True, slots=True)
class SecretAnswer:
    """A secret, without its value."""

    secret: SecretLine


@dataclass(frozen=True, slots=True)
class UsersAnswer:
    """Everybody who ever used the service."""

    users: tuple[UserReport, ...]


@dataclass(frozen=True, slots=True)
class UserAnswer:
    """One user."""

    user: UserReport


@dataclass(frozen=True, slots=True)
class DiagnosisAnswer:
    """What is asked of a service in which something does not work."""

    versions: dict[str, Any]
    settings: dict[str, Any]
    store: dict[str, Any]
    upkeep: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What went wrong: ``code`` is of a closed list, ``retry`` says whether it may work later."""

    code: str
    message: str
    status: int
    retry: bool
    hint: str | None
    jid: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """The answer of each operation that could not be done."""

    error: ErrorBody
