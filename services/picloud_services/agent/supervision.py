"""What a supervisor does next: a pure state machine of one container and its leases.

Each method takes one event (times are monotonic seconds) and returns the actions it asks for,
in order. The machine never reports an element twice, never loses one, and never reports a
result before its output markers: every position of a lease ends up in exactly one of a `Report`,
an `Exited`, a `Return` or a `StartFailed`. What may have begun is never in the last two: whoever
hears of them gives the element out again as if nothing had happened.
"""

from typing import Any

from picloud_services.agent.container import LOST_START
from picloud_services.agent.pace import gather_seconds
from picloud_services.agent.supervision_words import (
    END_SECONDS,
    HELLO_SECONDS,
    WISHED,
    Action,
    DropChunk,
    Exited,
    Kill,
    LeasedChunk,
    Leave,
    Phase,
    Report,
    Return,
    SendChunk,
    Started,
    StartFailed,
    StopRunner,
    TakeBack,
    why_late,
    why_nothing_began,
)

FLUSH_BYTES = 256 * 1024
LOOK_SECONDS = 0.02  # how often to look whether the next element has taken its token
CLOSED_SECONDS = 1.0  # between the end of the runner's link and the end of its process
STOP_SECONDS = 5.0  # for a runner that was asked to stop


class Supervision:
    """The state of one container, from its start until nobody needs to hear of it any more."""

    def __init__(self, *, now: float, orphan_seconds: float) -> None:
        self.phase = Phase.STARTING
        self.current: LeasedChunk | None = None
        self.waiting: LeasedChunk | None = None
        self.asked: str | None = None
        self.elements = 0  # run by this runner so far
        self._message = ""
        self._is_believed = True  # what the runner says
        self._orphan_seconds = orphan_seconds
        self._has_room = True
        self._doomed: tuple[str, int | None, str] | None = None  # lease, position, asked
        self._start_failed = False
        self._stop_sent = False
        self._flush_at: float | None = None
        self._look_at: float | None = None
        self._limit_at: float | None = now + HELLO_SECONDS
        self._orphan_at: float | None = now + orphan_seconds

    # ------------------------------------------------------------------------- the agent

    def chunk(self, chunk: LeasedChunk, now: float) -> list[Action]:
        """Take a chunk: run it, let it wait, or give it back where neither is possible."""
        if any(known.lease == chunk.lease for known in self.chunks()):
            return []
        if self.phase is Phase.GONE and self._start_failed:
            return []
        if self.waiting or self.phase in (Phase.STOPPING, Phase.DYING, Phase.GONE):
            return [Return(chunk.lease, 0, chunk.count, over=True)]
        chunk.limit = chunk.count
        self.waiting = chunk
        return self._next_chunk(now)

    def revoke(self, lease: str, now: float) -> list[Action]:
        """Take back what has not started of ``lease``."""
        if self.waiting and self.waiting.lease == lease:
            return self._return_waiting()
        if self.current and self.current.lease == lease and self.phase is not Phase.DYING:
            return [TakeBack(lease)]
        return []

    def taken_back(self, lease: str, count: int, now: float) -> list[Action]:
        """Hear that ``count`` tokens of the running chunk were still in the pipe."""
        chunk = self.current
        if chunk is None or chunk.lease != lease:
            return []
        count = min(count, chunk.limit - chunk.taken)  # more can only be the runner's own
        chunk.limit -= count
        chunk.taken = chunk.limit
        if chunk.finished == chunk.limit:
            self._limit(now + END_SECONDS)
        doomed, self._doomed = self._doomed, None
        kill: list[Action] = []
        runs_last = chunk.running() == chunk.limit - 1
        if doomed and doomed[0] == lease and runs_last and doomed[1] in (None, chunk.running()):
            kill = self._kill(doomed[2], now)
        if kill and not count:
            return kill
        return [Return(lease, chunk.limit, count, over=False), *kill]

    def kill(
        self, asked: str, lease: str | None, position: int | None, now: float
    ) -> list[Action]:
        """End the container: at once, or only if it runs ``position`` (None: anything) of ``lease``."""
        if lease is None:
            return self._kill(asked, now)
        if self.current and self.current.lease == lease:
            self._doomed = (lease, position, asked)
        return self.revoke(lease, now)

    def retire(self, now: float) -> list[Action]:
        """Stop the container when its running chunk ends."""
        if self.phase is Phase.STARTING:
            return self._kill("shutdown", now)
        if self.phase is not Phase.READY:
            return []
        self.phase = Phase.STOPPING
        return [*self._return_waiting(), *self._next_chunk(now)]

    def room(self, *, has_room: bool, now: float) -> list[Action]:
        """Hear whether unacknowledged frames leave room for another chunk's results."""
        self._has_room = has_room
        return self._next_chunk(now)

    def acknowledged(self) -> list[Action]:
        """Hear that nothing is left to be acknowledged."""
        return [Leave()] if self.phase is Phase.GONE else []

    def agent_came(self) -> None:
        """Hear that an agent is connected."""
        self._orphan_at = None

    def agent_left(self, now: float) -> None:
        """Hear that no agent is connected any more."""
        self._orphan_at = now + self._orphan_seconds

    # ------------------------------------------------------------------------ the runner

    def hello(self, now: float) -> list[Action]:
        """Hear that the runner is ready."""
        if self.phase is not Phase.STARTING:
            return []
        self.phase = Phase.READY
        self._limit_at = None
        return self._next_chunk(now)

    def results(self, items: list[Any], size_bytes: int, now: float) -> list[Action]:
        """Take the results of the next ``len(items)`` elements, ``size_bytes`` of bodies."""
        chunk = self.current
        if not self._is_believed:
            return []
        if chunk is None or not items or chunk.finished + len(items) > chunk.limit:
            return self.broken("sent more results than it has elements", now) if items else []
        chunk.unreported += items
        chunk.unreported_bytes += size_bytes
        chunk.finished += len(items)
        chunk.taken = max(chunk.taken, chunk.finished)
        chunk.running_since = None
        self.elements += len(items)
        if self._flush_at is None:
            self._flush_at = now + gather_seconds(now - chunk.began_at, chunk.finished)
        self._look_at = now + LOOK_SECONDS
        if chunk.finished == chunk.limit:
            self._limit(now + END_SECONDS)
        return self._maybe_report(now)

    def markers(self, stream: int, count: int, now: float) -> list[Action]:
        """Hear that the output of ``count`` more elements is complete (0 stdout, 1 stderr)."""
        chunk = self.current
        if chunk is None or chunk.marked[stream] + count > chunk.limit:
            return self.broken("ended more elements' output than it has elements", now)
        chunk.marked[stream] += count
        return self._maybe_report(now)

    def end(self, lease: object, now: float, spent: int | None = None) -> list[Action]:
        """Hear that the runner has run all of ``lease`` that it was left; see `ChunkEnd`."""
        chunk = self.current
        if not self._is_believed:
            return []
        if chunk is None or chunk.lease != lease or chunk.ended:
            return self.broken("ended a chunk that it does not run", now)
        if chunk.finished != chunk.limit - (spent or 0):
            return self.broken("ended a chunk without the results of all its elements", now)
        chunk.ended = True
        actions: list[Action] = []
        if spent:
            chunk.limit = chunk.taken = chunk.finished
            actions.append(Return(chunk.lease, chunk.limit, spent, over=False))
        if spent is not None and self.phase is Phase.READY:
            self.phase = Phase.STOPPING
            actions += self._return_waiting()
        return [*actions, *self._maybe_report(now)]

    def broken(self, how: str, now: float) -> list[Action]:
        """Hear that the runner did what no runner of ours does: nothing it says after is believed."""
        self._is_believed = False
        self._message = self._message or f"the runner broke the protocol: it {how}"
        return self._kill("broken", now)

    def closed(self, now: float) -> list[Action]:
        """Hear that the runner closed its link; its process should end at once."""
        if self.phase is not Phase.GONE:
            self._limit(now + CLOSED_SECONDS)
        return []

    # --------------------------------------------------------------------- the container

    def start_failed(self, reason: str, message: str) -> list[Action]:
        """Hear that the container could not be made."""
        self.phase = Phase.GONE
        self._start_failed = True
        self.current = self.waiting = None
        self._flush_at = self._look_at = self._limit_at = None
        return [StartFailed(None, reason, message)]

    def chunk_failed(self, lease: str, message: str, now: float) -> list[Action]:
        """Hear that the chunk just sent could not be opened; nothing of it reached the runner."""
        chunk, self.current = self.current, None
        if chunk is None or chunk.lease != lease:
            raise ValueError(f"lease {lease} is not the one that runs")
        self._settle()
        return [StartFailed(lease, "start_failed", message), *self._next_chunk(now)]

    def exited(
        self, wait_status: int, oom_count: int, left: int, words: str = ""
    ) -> list[Action]:
        """Hear that the container is gone, its links and pipes are read to their end.

        ``left`` is how many tokens were still in the pipe, ``words`` what it said before it was
        ready.
        """
        actions: list[Action] = []
        chunk, lease, position = self.current, None, None
        begun = chunk.begun(left) if chunk else 0
        if begun > 1 and self.asked:
            self.asked = "broken"  # nobody knows which of them it was asked of
        nothing_began = chunk.is_whole(left) if chunk else not self.elements
        if nothing_began and self.asked not in WISHED:
            how = self.asked, self._message, wait_status, oom_count, words
            reason, why = why_nothing_began(*how)
            if chunk is None or not self.elements:
                return self.start_failed(reason, why)
            actions.append(StartFailed(chunk.lease, LOST_START, why))  # others ran here before
        elif chunk:
            lease = None if chunk.ended else chunk.lease
            actions += self._report(chunk, len(chunk.unreported))
            position = chunk.finished if begun else None
            first = chunk.finished + begun
            if first < chunk.limit:
                actions.append(Return(chunk.lease, first, chunk.limit - first, over=False))
        self.current = None
        actions += self._return_waiting()
        self.phase = Phase.GONE
        self._settle()
        end = Exited(lease, position, begun, wait_status, oom_count, self.asked, self._message)
        return [*actions, end]

    # ---------------------------------------------------------------------------- time

    def next_at(self) -> float | None:
        """Return when `time` must be called next, None for never."""
        timeout_at = self._timeout_at()
        moments = (self._flush_at, self._look_at, self._limit_at, self._orphan_at, timeout_at)
        return min([at for at in moments if at is not None], default=None)

    def wants_tokens(self, now: float) -> bool:
        """Return whether `time` should be told how many tokens are in the pipe."""
        return any(at is not None and now >= at for at in (self._flush_at, self._look_at))

    def time(self, now: float, left: int | None = None) -> list[Action]:
        """Do what is due at ``now``; ``left`` is how many tokens are in the pipe."""
        actions: list[Action] = []
        chunk = self.current
        if chunk and left is not None:
            chunk.taken = max(chunk.taken, chunk.limit - left)
        if self._flush_at is not None and now >= self._flush_at:
            self._flush_at = None
            if chunk and (ready := self._reportable(chunk)):
                actions += self._report(chunk, ready)
        if chunk and self._look_at is not None and now >= self._look_at:
            actions += self._look(chunk, now)
        timeout_at = self._timeout_at()
        if chunk and timeout_at is not None and now >= timeout_at:
            actions += self.kill("timeout", chunk.lease, chunk.finished, now)
        if self._limit_at is not None and now >= self._limit_at:
            if self.phase is not Phase.DYING:
                self._message = self._message or why_late(self.phase, self.current)
            actions += self._kill(self.asked, now)
        return actions + self._orphaned(now)

    def chunks(self) -> list[LeasedChunk]:
        """Return the running chunk and the waiting one, as far as there are any."""
        return [chunk for chunk in (self.current, self.waiting) if chunk]

    # -------------------------------------------------------------------------- inside

    def _look(self, chunk: LeasedChunk, now: float) -> list[Action]:
        position = chunk.running()
        if position is None:
            self._look_at = None if chunk.finished == chunk.limit else now + LOOK_SECONDS
            return []
        self._look_at = None
        chunk.running_since = now
        if chunk.announced >= position:
            return []
        chunk.announced = position
        return [Started(chunk.lease, position)]

    def _orphaned(self, now: float) -> list[Action]:
        if self._orphan_at is None or now < self._orphan_at:
            return []
        if self.phase is Phase.GONE:
            self._orphan_at = None
            return [Leave()]
        self._orphan_at = now + CLOSED_SECONDS
        return self._kill("shutdown", now)

    def _next_chunk(self, now: float) -> list[Action]:
        if self.current is not None:
            return []
        if self.phase is Phase.STOPPING:
            if self._stop_sent:
                return []
            self._stop_sent = True
            self.asked = "shutdown"
            self._limit_at = now + STOP_SECONDS
            return [StopRunner()]
        if self.waiting is None or self.phase is not Phase.READY or not self._has_room:
            return []
        self.current, self.waiting = self.waiting, None
        self.current.began_at = now
        self._look_at = now + LOOK_SECONDS
        return [SendChunk(self.current.lease)]

    def _return_waiting(self) -> list[Action]:
        chunk, self.waiting = self.waiting, None
        if chunk is None:
            return []
        return [DropChunk(chunk.lease), Return(chunk.lease, 0, chunk.count, over=True)]

    def _reportable(self, chunk: LeasedChunk) -> int:
        return min(chunk.finished, *chunk.marked) - chunk.reported

    def _maybe_report(self, now: float) -> list[Action]:
        chunk = self.current
        if chunk is None:
            return []
        ready = self._reportable(chunk)
        if chunk.ended and chunk.reported + ready == chunk.finished:
            actions = self._report(chunk, ready)
            self.current = None
            self._settle()
            return [*actions, *self._next_chunk(now)]
        if ready and (self._flush_at is None or chunk.unreported_bytes >= FLUSH_BYTES):
            return self._report(chunk, ready)
        return []

    def _report(self, chunk: LeasedChunk, count: int) -> list[Action]:
        if not count and not chunk.ended:
            return []
        items, chunk.unreported = chunk.unreported[:count], chunk.unreported[count:]
        chunk.unreported_bytes = 0
        chunk.reported += count
        self._flush_at = self._flush_at if chunk.unreported else None
        running = chunk.running()
        if running is not None:
            chunk.announced = running
        return [Report(chunk.lease, items, running, chunk.ended)]

    def _settle(self) -> None:
        """Between chunks only the end of a stopping or dying container is waited for."""
        self._flush_at = self._look_at = self._doomed = None
        if self.phase in (Phase.READY, Phase.GONE):
            self._limit_at = None

    def _limit(self, at: float) -> None:
        self._limit_at = at if self._limit_at is None else min(at, self._limit_at)

    def _timeout_at(self) -> float | None:
        chunk = self.current
        if not chunk or chunk.running_since is None or chunk.max_runtime_seconds is None:
            return None
        if self.phase is Phase.DYING:
            return None
        return chunk.running_since + chunk.max_runtime_seconds

    def _kill(self, asked: str | None, now: float) -> list[Action]:
        if self.phase is Phase.GONE:
            return []
        if self.phase is not Phase.DYING:
            self.phase = Phase.DYING
            self.asked = asked
        self._limit_at = now + CLOSED_SECONDS  # and again, until it is gone
        return [Kill()]
