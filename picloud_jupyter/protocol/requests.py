"""The words of requests: what travels with each operation of `protocol.operations`.

The gateway reads these fields one by one, with its own words about what is wrong; here they are
declared for `protocol.openapi`. Pure.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from picloud_jupyter.protocol.ids import MAX_JID
from picloud_jupyter.protocol.jobs import MAX_MAP_COUNT, MAX_PART_COUNT, JobSpec, PayloadRef

MAX_RANGES = 250_000
MAX_KEY_CHARACTERS = 64
MIB = 1024**2
MAX_RESULTS_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """The least and the most: of a number, of the characters of a text, of the items of a list."""

    low: int | None = None
    high: int | None = None


Jid = Annotated[int, Limits(1, MAX_JID)]
Ranges = Annotated[tuple[tuple[Jid, Jid], ...], Limits(0, MAX_RANGES)]
Key = Annotated[str, Limits(1, MAX_KEY_CHARACTERS)]
Seconds = Annotated[float, Limits(0, 60)]
MapCount = Annotated[int, Limits(0, MAX_MAP_COUNT)]
SizeBytes = Annotated[int, Limits(0, MAX_JID)]


class Until(StrEnum):
    """What a wait is for."""

    ALL = "all"
    ERROR = "error"  # one failed, or all are finished
    CHANGE = "change"  # counts differ from counts_seen


@dataclass(frozen=True, slots=True)
class CallSubmit:
    """The header of a call; behind it the bytes of function and arguments that are in no upload."""

    spec: JobSpec
    key: Key
    function: PayloadRef
    arguments: PayloadRef


@dataclass(frozen=True, slots=True)
class MapSubmit:
    """The header of a new map; ``count`` is null while its length is unknown."""

    spec: JobSpec
    key: Key
    function: PayloadRef
    count: MapCount | None = None


@dataclass(frozen=True, slots=True)
class MapPart:
    """The header of a part of a map; behind it a pack of its arguments."""

    first_index: MapCount
    count: Annotated[int, Limits(1, MAX_PART_COUNT)]
    uploads: tuple[tuple[int, PayloadRef], ...] = ()


@dataclass(frozen=True, slots=True)
class MapSeal:
    """The end of a map; ``short``: fewer than it was made for, no more comes."""

    count: MapCount
    parts: MapCount
    short: bool = False


@dataclass(frozen=True, slots=True)
class JobsNamed:
    """Jobs by their ids."""

    jids: Ranges


@dataclass(frozen=True, slots=True)
class WaitWish:
    """Jobs to wait for."""

    jids: Ranges
    timeout_seconds: Seconds = 0.0
    until: Until = Until.ALL
    counts_seen: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class ResultsWish:
    """Jobs whose results are wanted; with ``wait_seconds`` as soon as one of them is finished."""

    jids: Ranges
    limit_bytes: Annotated[int, Limits(1, MAX_RESULTS_BYTES)] = 16 * MIB
    local: bool = False
    wait_seconds: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class InfoWish:
    """At most 10,000 jobs, and the names of `cloud.info` that are wanted of them."""

    jids: Ranges
    fields: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class KillWish:
    """Jobs to end; null = everything unfinished."""

    jids: Ranges | None


@dataclass(frozen=True, slots=True)
class DeleteWish:
    """Finished jobs to remove; repeated with its ``key`` it gives the same answer."""

    jids: Ranges
    key: Annotated[str, Limits(0, MAX_KEY_CHARACTERS)] | None = None


@dataclass(frozen=True, slots=True)
class UploadBegin:
    """How large a payload will be."""

    size_bytes: SizeBytes


@dataclass(frozen=True, slots=True)
class UploadEnd:
    """What the client wrote into the file of an upload itself."""

    size_bytes: SizeBytes
    digest: Annotated[str, Limits(0, 64)] | None = None


@dataclass(frozen=True, slots=True)
class StopWish:
    """How the service ends: without ``kill_jobs`` those that run go on."""

    kill_jobs: bool = False
    purge: bool = False
