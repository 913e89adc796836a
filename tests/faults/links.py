"""Frames and requests that are doubled, swapped, delayed, torn or cut on their way, and garbage between them."""

import contextlib
import json
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from picloud_jupyter.protocol.frames import pack_frame
from picloud_services.agent.processes import Process
from tests.faults.catalog import Trial, fault
from tests.faults.invariants import Picture, Violation
from tests.faults.kills import wait_for_work
from tests.faults.world import World, wait_until_empty
from tests.tools.middle import (
    HTTP_MISCHIEF,
    MISCHIEF,
    Middle,
    cut_connections,
    descriptors,
)
from tests.tools.service_under_test import eventually

LOST_REASONS = ("lost_worker", "node_lost", "poison", "start_failed")


def no_attempt_is_lost(picture: Picture) -> Iterator[Violation]:
    """A link that breaks costs time: no job is started again, or ends, because of it."""
    for jid, job in picture.jobs.items():
        if job.attempt > 1 or job.end_reason in (*LOST_REASONS, "stalled"):
            words = f"job {jid} ended by {job.end_reason} in attempt {job.attempt}"
            yield Violation("I4", f"{words}, and nothing but links broke")


@contextlib.contextmanager
def middle_at(
    world: World, path: Path, owners: Iterable[Process] = (), *, by_frames: bool = True
) -> Iterator[Middle]:
    """Stand between ``path`` and who connects there; ``owners`` are made to connect anew."""
    middle = Middle(path, world.random, by_frames=by_frames)
    try:
        for owner in owners:
            cut_connections(owner.pid, path)
        yield middle
    finally:
        middle.leave()


@fault("frames spoilt between control plane and agent", ci=12, soak=200, needs_root=True)
def spoil_agent_link(trial: Trial) -> None:
    with trial.world() as world:
        world.promises.append(no_attempt_is_lost)
        wait_for_work(world)
        with middle_at(world, world.paths.agent_socket, world.find("control plane")) as middle:
            for _ in trial.rounds():
                world.rest(0.05, 0.4)
                must_strike(trial, middle, trial.random.choice(MISCHIEF))


@fault("frames spoilt between agent and supervisors", ci=12, soak=200, needs_root=True)
def spoil_supervisor_links(trial: Trial) -> None:
    middles: dict[Path, Middle] = {}
    with trial.world() as world, contextlib.ExitStack() as held:
        world.promises.append(no_attempt_is_lost)
        wait_for_work(world)
        for _ in trial.rounds():
            deadline = time.monotonic() + 30
            while not _spoil_busiest(trial, world, middles, held):
                if time.monotonic() > deadline:
                    trial.refuse("I9", "nothing passed between agent and supervisors for 30 s")
                    break


def _spoil_busiest(
    trial: Trial, world: World, middles: dict[Path, Middle], held: contextlib.ExitStack
) -> bool:
    """Spoil a frame of the container that has just said most; whether one came."""
    for path in sorted((world.paths.run / "c").glob("*/supervisor.sock")):
        with contextlib.suppress(FileNotFoundError):  # its container has just ended
            if path not in middles:
                entered = middle_at(world, path, world.find("agent"))
                middles[path] = held.enter_context(entered)
    before = {path: middle.passed for path, middle in middles.items()}
    world.rest(0.05, 0.3)
    said = {path: middles[path].passed - count for path, count in before.items()}
    busiest = max(said, key=lambda path: said[path], default=None)
    if busiest is None or not said[busiest]:
        return False
    return strike(trial, middles[busiest], trial.random.choice(MISCHIEF), seconds=0.5)


@fault("requests cut, torn, delayed and repeated at random bytes", ci=30, soak=500)
def spoil_requests(trial: Trial) -> None:
    with trial.world(clients=0) as world:
        world.promises.append(no_attempt_is_lost)
        with middle_at(world, world.paths.api_socket, by_frames=False) as middle:
            for _ in range(2):
                world.add_client()
            wait_for_work(world)
            for _ in trial.rounds():
                world.rest(0.0, 0.15)
                must_strike(trial, middle, trial.random.choice(HTTP_MISCHIEF))


@fault("submits cut at a byte, and sent again with their keys", ci=60, soak=2000)
def repeat_submits(trial: Trial) -> None:
    with trial.world(clients=0) as world:
        world.promises.append(no_attempt_is_lost)
        heard: deque[bytes] = deque(maxlen=40)
        with middle_at(world, world.paths.api_socket, by_frames=False) as middle:
            middle.on_request = lambda piece: heard.append(piece) if is_submit(piece) else None
            for _ in range(2):
                world.add_client()
            wait_for_work(world)
            for _ in trial.rounds():
                world.rest(0.0, 0.05)
                request = trial.random.choice(heard)
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(middle.path))
                    client.sendall(request[: trial.random.randrange(len(request))])
                if trial.random.random() < 0.5:
                    status = send_whole(middle.path, request)
                    trial.figures[status] = str(int(trial.figures.get(status, "0")) + 1)
                    if status not in ("200", "404", "409"):
                        trial.refuse("I1", f"a submit that was sent again got {status}")


def is_submit(piece: bytes) -> bool:
    """Return whether ``piece`` is a whole request that makes a call, a map or a part of one."""
    head, _, body = piece.partition(b"\r\n\r\n")
    if not head.startswith((b"POST /v1/calls ", b"POST /v1/maps ", b"PUT /v1/maps/")):
        return False
    return b"Content-Length: %d" % len(body) in head.split(b"\r\n")


def send_whole(path: Path, request: bytes) -> str:
    """Send ``request`` and return the status of its answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(request)
        return client.recv(4096).split(b" ", 2)[1].decode()


@fault("requests of jobs cut, torn, delayed and repeated", ci=8, soak=100)
def spoil_requests_of_jobs(trial: Trial) -> None:
    with trial.world() as world:
        world.promises.append(no_attempt_is_lost)
        wait_for_work(world)
        with middle_at(world, world.paths.run / "jobs.sock", by_frames=False) as middle:
            for _ in trial.rounds():
                must_strike(trial, middle, trial.random.choice(HTTP_MISCHIEF))


@fault("a runner that says what no runner says", ci=0, soak=60, needs_root=True)
def spoil_runner_link(trial: Trial) -> None:
    """Another voice on a runner's own socket: its container ends, and its jobs run elsewhere."""
    with trial.world() as world:
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.3, 0.8)
            said = eventually(partial(_speak_as_runner, trial, world))
            assert said is not None
            left = wait_until_empty(partial(_still_there, world, said), 10)
            if left:
                trial.refuse("I12", "a runner that broke the protocol was not ended")


def _still_there(world: World, runner: Process) -> list[str]:
    return [str(runner)] if runner in world.find("runner") else []


def _speak_as_runner(trial: Trial, world: World) -> Process | None:
    words = trial.random.choice(
        [
            trial.random.randbytes(trial.random.randint(12, 300)),
            pack_frame(
                {"t": "result", "p": 10**6, "r": "done", "at": 0, "s": 0, "u": 0, "y": 0}
            ),
            pack_frame(
                {"t": "end", "lease": "0" * 16, "rss_bytes": 0, "threads": 1, "children": 0}
            ),
            b"\xff" * 12,
            pack_frame({"t": "hello", "wire": 0, "oldest": 0}),
            (len(junk := json.dumps([1]).encode())).to_bytes(4, "big") + bytes(8) + junk,
        ]
    )
    runners = world.find("runner")
    if not runners:
        return None
    victim = trial.random.choice(sorted(runners, key=lambda process: process.pid))
    for end in descriptors(victim.pid):
        with end, contextlib.suppress(OSError):
            if end.family == socket.AF_UNIX and not end.getpeername():  # of a pair
                end.sendall(words)
                return victim
    return None


def strike(trial: Trial, middle: Middle, mischief: str, seconds: float = 30.0) -> bool:
    """Let ``mischief`` happen to what passes next, and count it."""
    if not middle.strike(mischief, seconds):
        return False
    trial.count += 1
    trial.figures[mischief] = str(int(trial.figures.get(mischief, "0")) + 1)
    return True


def must_strike(trial: Trial, middle: Middle, mischief: str) -> None:
    """Let ``mischief`` happen; refuse a link on which nothing passes any more."""
    if not strike(trial, middle, mischief):
        trial.refuse("I9", "nothing passed on a link for 30 s")
