"""The supervisor: the one process that stays with a container, whoever else comes and goes.

It feeds `Supervision` with what happens and does what that decides; it decides nothing itself.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterable
from typing import Any

from picloud_jupyter.protocol.frames import (
    OLDEST_WIRE_VERSION,
    WIRE_VERSION,
    Buffer,
    pack_frame,
)
from picloud_services.agent.agent_door import AgentConnection, AgentFrame, is_our_own
from picloud_services.agent.container import Container, ContainerError
from picloud_services.agent.container_process import ContainerProcess, StatusFile
from picloud_services.agent.orders import StartOrder
from picloud_services.agent.runner_frames import BrokenProtocol
from picloud_services.agent.runner_session import RunnerSession
from picloud_services.agent.spool import Spool
from picloud_services.agent.supervision import Supervision
from picloud_services.agent.supervision_words import (
    Action,
    DropChunk,
    Exited,
    Kill,
    Leave,
    Phase,
    Report,
    Return,
    SendChunk,
    Started,
    StartFailed,
    StopRunner,
    TakeBack,
    read_chunk,
)
from picloud_services.agent.termination import termination_fd
from picloud_services.agent.watcher import Watcher

log = logging.getLogger(__name__)

MAX_UNSENT_BYTES = 64 * 1024 * 1024  # past this the next chunk waits
OUTPUT_SECONDS = 0.25  # between two words about how much was printed
FIRST_OUTPUT_SECONDS = 0.05  # a job that ends sooner is read when it has ended
CLEAN_TRIES = 5
FORGOTTEN_SECONDS = 5.0  # how often to look whether anybody may still ask for the last frames


class Supervisor:
    """Runs one container for one order; `run` returns when nobody needs to hear of it any more."""

    def __init__(
        self, order: StartOrder, container: Container, listener: socket.socket, start_time: int
    ) -> None:
        now = time.monotonic()
        self._order = order
        self._start_time = start_time
        self._began_at = now
        self._machine = Supervision(now=now, orphan_seconds=order.orphan_seconds)
        self._process = ContainerProcess(order, container)
        self._status = StatusFile(order, start_time)
        self._runner = RunnerSession(order, self._machine)
        self._spool = Spool()
        self._has_room = True
        self._chunks: dict[str, AgentFrame] = {}  # not sent to the runner yet
        self._agent: AgentConnection | None = None
        self._listener = listener
        self._watcher = Watcher()
        self._output_at = 0.0
        self._next_at: float | None = None  # when the machine wants to be told the time
        self._has_left = False
        self._is_terminated = False
        self._is_pump_due = False

    def run(self) -> None:
        """Start the container, serve the agent, and leave when all is said."""
        self._watcher.watch(self._listener.fileno(), self._accept)
        self._watcher.watch(termination_fd(), self._terminate)
        self._start()
        self._next_at = self._machine.next_at()
        while not self._has_left:
            self._turn()
        self._clean()

    # ------------------------------------------------------------------------------ the loop

    def _turn(self) -> None:
        self._watcher.wait(self._timeout())
        if self._is_pump_due:
            self._is_pump_due = False
            self._pump()
        now = time.monotonic()
        self._next_at = self._machine.next_at()
        if self._next_at is not None and now >= self._next_at:
            left = self._runner.link.tokens_left() if self._machine.wants_tokens(now) else None
            self._do(self._machine.time(now, left))
            self._next_at = self._machine.next_at()
        if self._runner.has_new_output and now >= self._output_at:
            self._output_at = now + OUTPUT_SECONDS
            if sizes := self._runner.take_output_sizes():
                self._tell_now({"t": "output", **sizes})
        if self._is_over:
            self._has_left = True
        if hold := self._runner.take_hold():
            time.sleep(hold)  # results gather meanwhile; see `pace`

    @property
    def _is_over(self) -> bool:
        """Whether the container is gone, and nobody will ask what became of it."""
        if self._machine.phase is not Phase.GONE:
            return False
        return self._is_terminated or not (self._agent or os.path.exists(self._order.folder))

    def _timeout(self) -> float | None:
        at = self._next_at
        if self._machine.phase is Phase.GONE and self._agent is None:
            look_at = time.monotonic() + FORGOTTEN_SECONDS
            at = look_at if at is None else min(at, look_at)
        if self._runner.has_new_output:
            at = self._output_at if at is None else min(at, self._output_at)
        return None if at is None else max(0.0, at - time.monotonic())

    # ------------------------------------------------------------------------- the container

    def _start(self) -> None:
        runner = self._runner
        self._status.write(state="starting")
        try:
            running = self._process.start(runner.link, runner.marker)
        except ContainerError as exc:
            self._do(self._machine.start_failed(exc.reason, str(exc)))
            return
        finally:
            runner.link.close_far_ends()
        runner.measure(running)
        self._status.write(
            runner_pid=None, init_pid=running.init_pid, cgroups=list(running.cgroups)
        )
        self._watcher.watch(self._process.pidfd, self._on_exit)
        for fd in runner.sources:
            self._watcher.watch(fd, self._want_pump)

    def _want_pump(self) -> None:
        self._is_pump_due = True  # once a turn, however many of its sources are ready

    def _pump(self) -> None:
        runner = self._runner
        was_ready = runner.hello is not None
        self._do(runner.pump(time.monotonic()))
        for ended in runner.take_ended():
            self._watcher.unwatch(ended)
        self._flush_runner()
        if runner.hello is not None and not was_ready:
            self._status.write(state="ready", runner_pid=runner.hello.pid)
            seconds = time.monotonic() - self._began_at
            facts = {"runner_pid": runner.hello.pid, "rss_bytes": runner.hello.rss_bytes}
            self._tell_now({"t": "ready", "seconds": seconds, **facts})

    def _flush_runner(self) -> None:
        link = self._runner.link
        if self._watcher.watches(link.fd):
            link.flush()
            self._watcher.watch(link.fd, self._want_pump, write=link.has_unsent)

    def _on_exit(self) -> None:
        status = self._process.wait_status()
        if status is None:
            return
        self._process.kill()  # what the runner left behind ends with it
        self._watcher.unwatch(self._process.pidfd)
        self._do(self._runner.drain(time.monotonic(), status))
        for fd in self._runner.sources:
            self._watcher.unwatch(fd)
        self._status.write(state="exited")

    def _clean(self) -> None:
        self._listener.close()
        if self._agent:
            self._agent.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._order.folder}/supervisor.sock")
        for attempt in range(CLEAN_TRIES):
            try:
                self._process.clean()
            except OSError as exc:
                log.warning("container %s is not clean yet: %s", self._order.container, exc)
                time.sleep(0.2 * (attempt + 1))  # one that sleeps on a disk ends late
            else:
                self._status.remove()  # last: while it is there an agent cleans up after us
                return

    def _terminate(self) -> None:
        self._is_terminated = True
        self._do(self._machine.kill("shutdown", None, None, time.monotonic()))

    # ----------------------------------------------------------------------------- the agent

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except OSError:
            return  # it left again
        if not is_our_own(connected):
            connected.close()
            return
        self._drop_agent()
        self._agent = AgentConnection(connected, self._greeting)
        self._watcher.watch(self._agent.fd, self._on_agent)

    def _drop_agent(self) -> None:
        if self._agent is None:
            return
        agent, self._agent = self._agent, None
        self._watcher.unwatch(agent.fd)
        agent.close()
        self._machine.agent_left(time.monotonic())

    def _on_agent(self) -> None:
        agent = self._agent
        assert agent is not None
        agent.flush()
        for frame in agent.read() if agent.is_open else ():
            self._do(self._on_frame(frame))
        self._settle_agent(agent)

    def _settle_agent(self, agent: AgentConnection) -> None:
        if agent.is_open:
            self._watcher.watch(agent.fd, self._on_agent, write=agent.has_unsent)
        elif agent is self._agent:
            self._drop_agent()

    def _on_frame(self, frame: AgentFrame) -> list[Action]:
        now = time.monotonic()
        machine, header = self._machine, frame.header
        match header.get("t"):
            case "chunk":
                lease = header["lease"]
                if all(chunk.lease != lease for chunk in machine.chunks()):
                    self._chunks[lease] = frame
                return machine.chunk(read_chunk(header), now)
            case "function":
                self._runner.link.send_packed(frame.packed())
                self._flush_runner()
            case "revoke":
                return machine.revoke(header["lease"], now)
            case "kill":
                return machine.kill(
                    header["asked"], header.get("lease"), header.get("position"), now
                )
            case "retire":
                return machine.retire(now)
            case "ack":
                self._spool.acknowledge(header["n"])
                return [
                    *self._check_room(),
                    *([] if len(self._spool) else machine.acknowledged()),
                ]
        return []

    def _greeting(self) -> Iterable[bytes]:
        self._machine.agent_came()
        running, hello = self._process.running, self._runner.hello
        chunks, current = self._machine.chunks(), self._machine.current
        yield pack_frame(
            {
                "t": "hello",
                "wire": WIRE_VERSION,
                "oldest": OLDEST_WIRE_VERSION,
                "role": "supervisor",
                "container": self._order.container,
                "pid": os.getpid(),
                "start_time": self._start_time,
                "kind": self._order.kind.value,
                "sandbox": self._order.sandbox,
                "state": self._machine.phase.value,
                "ready": hello is not None,
                "runner_pid": hello.pid if hello else None,
                "rss_bytes": self._runner.rss_bytes,
                "init_pid": running.init_pid if running else None,
                "cgroups": list(running.cgroups) if running else [],
                "counts": True,
                "leases": [[chunk.lease, chunk.slot] for chunk in chunks],
                "reported": self._spool.leases(),
                "jids": {chunk.lease: chunk.jids for chunk in chunks},
                "running": current.running() if current else None,
                "elements": self._machine.elements,
            }
        )
        yield from self._spool

    def _tell(self, name: str, fields: dict[str, Any], *bodies: Buffer) -> None:
        frame = self._spool.add(name, fields, *bodies)
        self._send(frame)

    def _tell_now(self, header: dict[str, Any]) -> None:
        """Send what is of use to the agent that is connected now, and to no later one."""
        if self._agent and self._agent.is_idle:
            self._send(pack_frame(header))

    def _send(self, frame: bytes) -> None:
        if self._agent:
            self._agent.send(frame)
            self._settle_agent(self._agent)

    def _check_room(self) -> list[Action]:
        has_room = self._spool.size_bytes < MAX_UNSENT_BYTES
        if has_room is self._has_room:
            return []
        self._has_room = has_room
        return self._machine.room(has_room=has_room, now=time.monotonic())

    # -------------------------------------------------------------------------- the actions

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Report():
                    self._report(action)
                case SendChunk(lease):
                    self._send_chunk(lease)
                case TakeBack(lease):
                    count = self._runner.link.take_back_tokens()
                    self._do(self._machine.taken_back(lease, count, time.monotonic()))
                case Kill():
                    self._process.kill()
                case StopRunner():
                    self._runner.link.send_packed(pack_frame({"t": "stop"}))
                case DropChunk(lease):
                    self._drop_chunk(lease)
                case Leave():
                    self._has_left = True
                case Started(lease, position):
                    self._tell_now({"t": "started", "lease": lease, "position": position})
                case Return() | StartFailed() | Exited():
                    self._tell_end(action)

    def _report(self, report: Report) -> None:
        items = [item for item, _ in report.items]
        usage = self._runner.usage(time.monotonic()) if report.end else None
        fields: dict[str, Any] = {
            "lease": report.lease,
            "running": report.running,
            "end": report.end,
        }
        fields |= {"usage": usage, "items": items}  # items last: the agent does not decode them
        self._tell("batch", fields, *[body for _, body in report.items])
        if report.end:
            self._runner.end_chunk()
        self._do(self._check_room())

    def _tell_end(self, action: Return | StartFailed | Exited) -> None:
        match action:
            case Return(lease, first, count, over):
                self._chunks.pop(lease, None)
                fields: dict[str, Any] = {"lease": lease, "first": first, "count": count}
                self._tell("returned", {**fields, "over": True} if over else fields)
            case StartFailed(failed, reason, message):
                if failed is None:
                    self._chunks.clear()
                self._tell(
                    "start_failed", {"lease": failed, "reason": reason, "message": message}
                )
            case Exited():
                ended = {n: getattr(action, n) for n in action.__slots__}
                self._tell("exited", ended | self._runner.exit_figures())

    def _send_chunk(self, lease: str) -> None:
        frame = self._chunks.pop(lease)
        now = time.monotonic()
        self._output_at = max(self._output_at, now + FIRST_OUTPUT_SECONDS)
        try:
            self._runner.send_chunk(frame, now)
        except OSError as exc:
            message = (
                f"a payload of this chunk could not be opened: {exc.filename}: {exc.strerror}"
            )
            self._do(self._machine.chunk_failed(lease, message, now))
        except BrokenProtocol as exc:
            self._do(self._machine.broken(str(exc), now))
        self._flush_runner()

    def _drop_chunk(self, lease: str) -> None:
        """Let the runner have the function all the same: the agent will not send it again."""
        frame = self._chunks.pop(lease)
        size, digest = frame.header["function_bytes"], frame.header["function"]
        function = {"t": "function", "digest": digest, "function_bytes": size}
        self._runner.link.send_packed(pack_frame(function, frame.body[:size]))
        self._flush_runner()
