"""The words of `supervision`: the state of a chunk, and one frozen dataclass per action."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from picloud_jupyter.protocol.frames import FrameError
from picloud_jupyter.protocol.ids import count_ranges
from picloud_services.agent.container import LOST_START

WISHED = ("killed", "timeout", "shutdown")  # asked for whatever the container does
SIGKILL = 9
HELLO_SECONDS = 60.0  # a runner that is not ready by then has failed to start
END_SECONDS = 60.0  # for a runner to come back after the last element of a chunk


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Put the tokens of ``lease`` into the pipe and send its chunk to the runner."""

    lease: str


@dataclass(frozen=True, slots=True)
class DropChunk:
    """Forget the chunk of ``lease``; the runner keeps its function."""

    lease: str


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Drain the token pipe and answer with `Supervision.taken_back` at once."""

    lease: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the agent these results; ``end`` when nothing of the lease runs any more."""

    lease: str
    items: list[Any]
    running: int | None
    end: bool


@dataclass(frozen=True, slots=True)
class Started:
    """Tell the agent that this element was seen running."""

    lease: str
    position: int


@dataclass(frozen=True, slots=True)
class Return:
    """Tell the agent that these elements never started; ``over`` when it was all of the lease."""

    lease: str
    first: int
    count: int
    over: bool


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Tell the agent that nothing of ``lease`` (None: of any lease) was or will be started."""

    lease: str | None
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Exited:
    """Tell the agent how the container ended and which elements it took with it.

    ``begun`` elements from ``position`` (None: no element) on had begun and have no result that is
    believed: more than one only where what the runner said behind the first was not heard.
    """

    lease: str | None
    position: int | None
    begun: int
    wait_status: int
    oom_count: int
    asked: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End every process of the container."""


@dataclass(frozen=True, slots=True)
class StopRunner:
    """Ask the runner to leave."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Clean up and end the supervisor."""


Action = (
    SendChunk
    | DropChunk
    | TakeBack
    | Report
    | Started
    | Return
    | StartFailed
    | Exited
    | Kill
    | StopRunner
    | Leave
)


class Phase(Enum):
    """Where the container is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    DYING = "dying"
    GONE = "gone"


@dataclass(slots=True)
class LeasedChunk:
    """A chunk in this container. Elements from ``limit`` on were taken back."""

    lease: str
    slot: str
    count: int
    max_runtime_seconds: float | None = None
    limit: int = 0
    began_at: float = 0.0  # sent to the runner
    taken: int = 0  # tokens seen taken
    finished: int = 0  # results received
    marked: list[int] = field(default_factory=lambda: [0, 0])  # markers in stdout, in stderr
    reported: int = 0
    unreported: list[Any] = field(default_factory=list)
    unreported_bytes: int = 0
    announced: int = -1  # the last position said to be running
    jids: list[Any] = field(default_factory=list)  # for the next agent
    running_since: float | None = None
    ended: bool = False

    def running(self) -> int | None:
        """Return the position that is running as far as seen; None between elements."""
        return self.finished if not self.ended and self.taken > self.finished else None

    def is_whole(self, left: int) -> bool:
        """Return whether nothing of it began, with ``left`` tokens not taken."""
        return self.limit > 0 and not (self.ended or self.finished or self.begun(left))

    def begun(self, left: int) -> int:
        """Return how many elements have begun and have no result; ``left`` tokens are in the pipe.

        A runner that puts tokens of its own there hides nothing that was seen to begin.
        """
        return 0 if self.ended else max(self.taken, self.limit - left) - self.finished


_FIELDS: dict[str, dict[str, type]] = {
    "chunk": {
        "lease": str,
        "slot": str,
        "jids": list,
        "function": str,
        "function_bytes": int,
        "files": list,
    },
    "revoke": {"lease": str},
    "kill": {"asked": str},
    "ack": {"n": int},
}


def check_command(header: Mapping[str, Any]) -> None:
    """Return if the frame with ``header`` has what a supervisor reads of it.

    Raises:
        FrameError: a field is missing or wrong; the message names it.
    """
    for name, kind in _FIELDS.get(str(header.get("t")), {}).items():
        if type(header.get(name)) is not kind:
            raise FrameError(f"the frame {header['t']} comes without, or with a wrong {name}")
    for pair in header.get("jids", ()):
        if not (isinstance(pair, list) and list(map(type, pair)) == [int, int]):
            raise FrameError(f"the jids of the frame {header['t']} are no ranges")
    seconds = header.get("max_runtime_seconds")
    if seconds is not None and type(seconds) not in (int, float):
        raise FrameError(f"the max_runtime_seconds of the frame {header['t']} is no number")


def read_chunk(header: Mapping[str, Any]) -> LeasedChunk:
    """Return the chunk that the frame with ``header``, which was checked, brings."""
    return LeasedChunk(
        lease=header["lease"],
        slot=header["slot"],
        count=count_ranges(header["jids"]),
        max_runtime_seconds=header.get("max_runtime_seconds"),
        jids=header["jids"],
    )


def why_nothing_began(
    asked: str | None, message: str, wait_status: int, oom_count: int, words: str
) -> tuple[str, str]:
    """Return the reason and the words for a container that ended before anything began in it.

    ``asked`` is why we ended it ourselves, ``words`` are what it said. One that was killed from outside
    is lost: its start did not fail, and is tried anew.

    >>> why_nothing_began(None, "", 9, 0, "")[0], why_nothing_began(None, "", 9, 1, "")[0]
    ('lost_worker', 'oom')
    """
    if asked == "oom" or (oom_count and not message):
        reason, why = "oom", "it ran out of memory before it began"
    elif asked:
        reason, why = LOST_START, message or f"it was ended before it began ({asked})"
    elif message:
        reason, why = "start_failed", message
    elif wait_status & 0x7F == SIGKILL:
        reason, why = LOST_START, "its container was killed (SIGKILL) before it began"
    else:
        reason = "start_failed"
        why = f"the runner ended before it was ready (wait status {wait_status})"
    return reason, f"{why}; it said: {words}" if words else why


def why_late(phase: Phase, chunk: LeasedChunk | None) -> str:
    """Return why a container is ended that did not come to its own end in time; "" for one that had to leave."""
    if phase is Phase.STARTING:
        return f"the runner was not ready within {HELLO_SECONDS:.0f} seconds"
    if phase is Phase.STOPPING and chunk is None:
        return ""
    if chunk and chunk.finished == chunk.limit:
        return f"the runner did not come back within {END_SECONDS:.0f} seconds after its last element"
    return "the job closed the runner's own file descriptors (3 or 4)"
