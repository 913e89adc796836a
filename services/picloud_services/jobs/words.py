"""What goes in and out of the job service. Plain values; times are UTC seconds, sizes bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.protocol.ids import JidRange
from picloud_services.blobs.store import BlobRef

Payload = bytes | BlobRef  # small ones are bytes, others a durable blob


@dataclass(frozen=True, slots=True)
class Function:
    """A pickled function. ``digest`` is the sha256 in hex of its bytes."""

    payload: Payload
    digest: str


@dataclass(frozen=True, slots=True)
class CallReceipt:
    """What a client gets for a call. ``cached``: it is finished already with a kept result."""

    jid: int
    cached: bool = False
    repeated: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MapReceipt:
    """What a client gets for a new map; ``first_jid`` is None while its length is unknown."""

    map: int
    first_jid: int | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """Where the jobs of a part are: ``count`` jids from ``first_jid`` on."""

    first_jid: int
    count: int


@dataclass(frozen=True, slots=True)
class WaitAnswer:
    """How far a set of jobs is. ``counts`` has a status only where it is not 0."""

    finished: bool
    counts: dict[str, int]
    failed: list[tuple[int, str, str]] = field(default_factory=list)  # jid, status, reason
    pending: list[JidRange] = field(default_factory=list)
    why: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResultItem:
    """The end of one finished job.

    ``body`` holds the result (done) or the failure frame (error, see docs/internals.md 2), unless
    it is large: then ``blob`` names it. Neither is set for a job that ended without either.
    ``files`` holds what the job wrote in its folder.
    """

    jid: int
    status: str
    reason: str
    message: str = ""
    size_bytes: int = 0
    digest: str = ""
    body: bytes | None = None
    blob: BlobRef | None = None
    files: BlobRef | None = None


@dataclass(frozen=True, slots=True)
class ResultsAnswer:
    """Finished jobs in the order asked; ``more`` if ``limit_bytes`` or the count cut it short."""

    items: list[ResultItem]
    more: bool = False


@dataclass(frozen=True, slots=True)
class JobLine:
    """One line of a listing."""

    jid: int
    status: str
    reason: str | None
    label: str | None
    function: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    map: int | None
    core_type: str
    cores: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class OutputPlace:
    """Where an element's output is: for `Engine.read_output`."""

    node: str
    lease: str
    position: int
    attempt: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Cached:
    """An earlier job whose result may be used again."""

    jid: int
    item: list[Any]
    body: bytes
    result: int


Info = dict[str, Any]
Ranges = Sequence[JidRange]
