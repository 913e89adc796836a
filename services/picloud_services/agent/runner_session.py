"""One runner as its supervisor sees it: chunks in; results, output and figures out."""

import os
import signal
import time
from collections.abc import Generator, Iterator
from typing import Any

from picloud_jupyter.protocol.frames import OLDEST_WIRE_VERSION, WIRE_VERSION, pack_frame
from picloud_jupyter.protocol.jobs import EndReason, Kind
from picloud_services.agent.agent_door import AgentFrame
from picloud_services.agent.container import RunningContainer
from picloud_services.agent.meters import LONG_SECONDS, Meter, Meters, make_meter
from picloud_services.agent.orders import StartOrder
from picloud_services.agent.output_files import OutputWriter
from picloud_services.agent.output_split import OutputSplitter
from picloud_services.agent.pace import Pace
from picloud_services.agent.runner_frames import (
    BrokenProtocol,
    ChunkEnd,
    Results,
    RunnerFrames,
    RunnerHello,
    Said,
)
from picloud_services.agent.runner_link import RunnerLink, open_payloads
from picloud_services.agent.supervision import Supervision
from picloud_services.agent.supervision_words import Action

MAX_WORDS_BYTES = 4096  # kept of what a runner prints before its first chunk
_MARKER_BYTES = 16
_KILLED = 128 + signal.SIGKILL  # the exit code of a command, as shells say it


class RunnerSession:
    """Reads and writes everything of one runner and tells ``machine`` what happened."""

    def __init__(self, order: StartOrder, machine: Supervision) -> None:
        self._container = order.container
        self._keep_free_bytes = order.keep_free_bytes
        self.link = RunnerLink()
        self.marker = os.urandom(_MARKER_BYTES)
        self.hello: RunnerHello | None = None
        self.has_new_output = False
        self._machine = machine
        self._logs = order.logs
        self._frames = RunnerFrames()
        self._splitters = (OutputSplitter(self.marker), OutputSplitter(self.marker))
        self._open = {0: True, 1: True}  # the pipes
        self._is_linked = True
        self._is_closed = False  # and the machine knows
        self._ended: list[int] = []
        self._lease = ""  # of the chunk that was sent, until its end
        self._count = 0
        self._writer: OutputWriter | None = None  # once the chunk printed something
        self._words = b""
        self._meter: Meter | None = None
        self._before = Meters()
        self._sent_at = 0.0
        self._cpu_seconds = 0.0
        self._peak_bytes = 0
        self._oom_count: int | None = None  # before the chunk, if it is of commands
        self._end: ChunkEnd | None = None
        self._pace = Pace()
        self._hold_seconds = 0.0

    def measure(self, running: RunningContainer) -> None:
        """Begin to read the figures of the container that was started."""
        self._meter = make_meter(running)

    @property
    def sources(self) -> list[int]:
        """What to watch: `pump` when one of them can be read."""
        return [self.link.fd, *self.link.outputs]

    @property
    def rss_bytes(self) -> int:
        """What the runner held when it last said so."""
        if self._end:
            return self._end.rss_bytes
        return self.hello.rss_bytes if self.hello else 0

    # ------------------------------------------------------------------------------ chunks

    def send_chunk(self, frame: AgentFrame, now: float) -> None:
        """Let the runner begin with the elements of the machine's current chunk.

        Raises:
            OSError: a payload cannot be opened; nothing was sent.
            BrokenProtocol: the pipe of tokens takes no more; nothing was sent.
        """
        chunk = self._machine.current
        assert chunk is not None
        fds, files = open_payloads(frame.header["files"])
        packed = (
            pack_frame({**frame.header, "files": files}, frame.body)
            if files
            else frame.packed()
        )
        try:
            self.link.put_tokens(chunk.count)
        except BrokenProtocol:
            for fd in fds:
                os.close(fd)
            raise
        self.link.send_packed(packed, fds)
        self._lease, self._count = chunk.lease, chunk.count
        self._sent_at = now
        self._cpu_seconds = 0.0
        self._peak_bytes = 0
        self._pace.begin(now)
        self._oom_count = None
        if self._meter:
            self._meter.reset_peak()
            if frame.header.get("kind") == Kind.SHELL:
                self._oom_count = self._meter.oom_count()

    def usage(self, now: float) -> dict[str, Any]:
        """Return the figures of the chunk that has just ended."""
        end, meter = self._end, self._meter
        assert end is not None
        assert meter is not None
        usage: dict[str, Any] = {
            "rss_bytes": end.rss_bytes,
            "threads": end.threads,
            "children": end.children,
            "spent": end.spent is not None,
            "container": self._container,
            "elements": self._machine.elements,
            "cpu_seconds": self._cpu_seconds,
            "memory_peak_bytes": max(self._peak_bytes, meter.peak_bytes()),
            "approximate": meter.approximate,
        }
        if self.output_bytes:
            usage["output_bytes"] = self.output_bytes
        is_long = now - self._sent_at >= LONG_SECONDS
        usage["shared"] = not is_long or self._count > 1
        if is_long:
            usage.update(meter.counters().minus(self._before))
        return usage

    def exit_figures(self) -> dict[str, Any]:
        """Return what is told of the chunk that was cut off by the container's end."""
        return {"output_bytes": self.output_bytes, "container": self._container}

    @property
    def output_bytes(self) -> int:
        """How many bytes the chunk's output files hold."""
        return self._writer.kept_bytes if self._writer else 0

    def end_chunk(self) -> None:
        """Close the chunk's output; what is read next belongs to another one."""
        if self._writer:
            self._writer.close()
            self._writer = None
        self._lease = ""
        self.has_new_output = False
        if self._meter and time.monotonic() - self._sent_at >= LONG_SECONDS:
            self._before = self._meter.counters()

    # ----------------------------------------------------------------------------- reading

    def pump(self, now: float) -> Iterator[Action]:
        """Read once what the runner sent and printed; yield what follows from it.

        The socket is read before the pipes: the markers of the results that it brought are in the
        pipes by then, so that a result never waits for another turn.
        """
        said, broken = self._read_frames()
        count = 0
        for stream in (0, 1):
            if self._open[stream]:
                count += yield from self._read_output(stream, now)
        finished = 0
        for word in said or ():
            if isinstance(word, Results):
                finished += len(word.items)
            elif isinstance(word, ChunkEnd) and not word.spent:
                yield from self._end_output(now)
            yield from self._hear(word, now)
        yield from self._after_link(broken, now)
        chunk = self._machine.current
        if chunk:
            done = chunk.finished if finished else 0
            self._hold_seconds = self._pace.hold(now, count, done, chunk.limit - chunk.finished)

    def drain(self, now: float, wait_status: int) -> Iterator[Action]:
        """Read everything to its end, as the container is gone; yield what follows."""
        while self._is_linked:
            said, broken = self._read_frames()
            for word in said or ():
                yield from self._hear(word, now)
            if broken:
                yield from self._machine.broken(broken, now)
            if said is None:
                break
        for stream in (0, 1):
            more = self._open[stream]
            while more:
                more = bool((yield from self._read_output(stream, now)))
            self._keep(stream, [self._splitters[stream].finish()])
        self._ended.clear()
        words = self._words.decode("utf-8", "replace").strip()
        oom_count = self._meter.oom_count() if self._meter else 0
        left = self.link.take_back_tokens()
        yield from self._machine.exited(wait_status, oom_count, left, words)
        self.end_chunk()

    def take_ended(self) -> list[int]:
        """Return what must not be watched any more: links and pipes that have ended."""
        ended, self._ended = self._ended, []
        return ended

    def take_hold(self) -> float:
        """Return for how long not to read on."""
        hold, self._hold_seconds = self._hold_seconds, 0.0
        return hold

    def take_output_sizes(self) -> dict[str, Any] | None:
        """Return how much the running element has printed, None for nothing."""
        self.has_new_output = False
        assert self._writer is not None
        position, out_bytes = self._writer.sizes(0)
        other, err_bytes = self._writer.sizes(1)
        if not out_bytes and not err_bytes:
            return None
        return {
            "lease": self._lease,
            "position": max(position, other),
            "out_bytes": out_bytes if position >= other else 0,
            "err_bytes": err_bytes if other >= position else 0,
        }

    def _read_frames(self) -> tuple[list[Said] | None, str]:
        """Return (what was said, how the protocol was broken); None when there is nothing to read."""
        data = self.link.read() if self._is_linked else b""
        if data == b"":
            return None, ""
        try:
            if data is not None:
                return self._frames.feed(data), ""
            said, broken = None, ""
        except BrokenProtocol as exc:
            said, broken = exc.said, str(exc)
        self._is_linked = False
        self._ended.append(self.link.fd)
        return said, broken

    def _after_link(self, broken: str, now: float) -> list[Action]:
        if broken:
            return self._machine.broken(broken, now)
        if not self._is_linked and not self._is_closed:
            self._is_closed = True
            return self._machine.closed(now)
        return []

    def _read_output(self, stream: int, now: float) -> Generator[Action, None, int]:
        data = self.link.read_output(stream)
        if data is None:
            self._open[stream] = False
            self._ended.append(self.link.outputs[stream])
            return 0
        if not data:
            return 0
        pieces = self._splitters[stream].feed(data)
        self._keep(stream, pieces)
        if len(pieces) > 1:
            yield from self._machine.markers(stream, len(pieces) - 1, now)
        return len(data)

    def _end_output(self, now: float) -> Iterator[Action]:
        """Give what is in the pipes to the chunk's last element, whose end the runner does not mark."""
        chunk = self._machine.current
        if chunk is None or chunk.limit < chunk.count:
            return  # the last one never ran
        for stream in (0, 1):
            left = self.link.waiting_output_bytes(stream)
            while left > 0 and (count := (yield from self._read_output(stream, now))):
                left -= count
            if chunk.marked[stream] == chunk.count - 1:
                self._keep(stream, [self._splitters[stream].finish(), b""])
                yield from self._machine.markers(stream, 1, now)

    def _keep(self, stream: int, pieces: list[bytes]) -> None:
        if not (self._writer or any(pieces)):
            return
        if self._lease:
            if self._writer is None:
                assert self._machine.current is not None
                marked = self._machine.current.marked
                self._writer = OutputWriter(
                    self._logs, self._lease, marked, keep_free_bytes=self._keep_free_bytes
                )
            self._writer.feed(stream, pieces)
            self.has_new_output = self.has_new_output or bool(pieces[-1])
        elif self._machine.elements == 0 and len(self._words) < MAX_WORDS_BYTES:
            self._words += b"".join(pieces)[:MAX_WORDS_BYTES]

    def _hear(self, word: Said, now: float) -> list[Action]:
        match word:
            case Results():
                if not self._has_begun(len(word.items)):
                    how = "sent results of elements that it had not begun"
                    return self._machine.broken(how, now)
                self._find_oom(word)
                if word.longest_seconds >= LONG_SECONDS:
                    self._add_peak(word)
                self._cpu_seconds += word.cpu_seconds
                entries = list(zip(word.items, word.bodies, strict=True))
                return self._machine.results(entries, word.size_bytes, now)
            case ChunkEnd():
                if word.spent is not None and self.link.tokens_left():
                    return self._machine.broken(
                        "gave back elements that it may still begin", now
                    )
                self._end = word
                return self._machine.end(word.lease, now, word.spent)
            case RunnerHello():
                if word.wire < OLDEST_WIRE_VERSION or word.oldest > WIRE_VERSION:
                    return self._machine.broken(f"speaks wire version {word.wire}", now)
                self.hello = self.hello or word
                return self._machine.hello(now)

    def _has_begun(self, count: int) -> bool:
        """Return whether the runner took tokens for ``count`` more results.

        One that took none would run for ever unseen, and fill the pipe with those of later chunks.
        """
        chunk = self._machine.current
        return chunk is None or self.link.tokens_left() <= chunk.limit - chunk.finished - count

    def _find_oom(self, results: Results) -> None:
        """Name what ended a command: the kernel killed it for its memory, and left its runner alone."""
        if self._oom_count is None or self._meter is None:
            return
        for item in results.items:
            if item[1] == EndReason.EXIT_CODE and (item[7] or {}).get("exit") == _KILLED:
                before, self._oom_count = self._oom_count, self._meter.oom_count()
                if self._oom_count > before:
                    item[1] = EndReason.OOM.value

    def _add_peak(self, results: Results) -> None:
        assert self._meter is not None
        peak = self._meter.peak_bytes()
        self._meter.reset_peak()
        self._peak_bytes = max(self._peak_bytes, peak)
        for item in results.items:
            if item[3] >= LONG_SECONDS:
                item[7] = {**(item[7] or {}), "memory_peak_bytes": peak}
