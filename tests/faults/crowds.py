"""Many clients at once, clients that break off in the middle, and readers that do not read."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.catalog import Trial, fault
from tests.faults.kills import wait_for_work
from tests.faults.world import World

CROWD = Path(__file__).with_name("crowd.py")
RESULT_BYTES = 100_000_000
PRINTED_BYTES = 10_000_000
SLICE_BYTES = 4_000_000  # about the most that one answer has of what was printed
GROWTH_BYTES = 128 * 1024**2  # two pieces of 256 KiB for each of 200 readers are 100
ALONE_SECONDS = 2.0


@fault("kill -9 of a client in mid-submit, mid-upload, mid-map and mid-result", ci=12, soak=100)
def kill_clients(trial: Trial) -> None:
    with trial.world(clients=0, abandoned_seconds="1") as world:
        world.add_bystander(ALONE_SECONDS)
        for _ in range(2):
            world.add_client("large_argument", "parts", "large", "call", "read_one")
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.05, 0.6)
            world.send_soon(("client",))
            other = world.clients.pop()  # it does all that users do; the next what is cut off
            other.kill()
            other.wait(10)
            world.add_client("large_argument", "parts", "large", "call", "read_one")
    trial.figures["others"] = world.pace


@fault("clients at once", ci=200, soak=1000)
def crowd(trial: Trial) -> None:
    with trial.world(clients=1) as world:
        for _ in trial.rounds():
            words = [sys.executable, str(CROWD), str(trial.wanted)]
            done = subprocess.run(
                words, env=world.environment, capture_output=True, text=True, check=False
            )
            trial.count = trial.wanted
            trial.figures["answers"] = done.stdout.strip()
            if done.returncode:
                trial.refuse("I10", f"not all of a crowd were served: {done.stderr[-2000:]}")


@contextlib.contextmanager
def dead_readers(world: World, path: str, count: int) -> Iterator[int]:
    """While inside: ``count`` clients have asked for ``path`` and read no more than its beginning.

    Gives how many of them were served, and not told to come again.
    """
    served = 0
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            reader = stack.enter_context(socket.socket(socket.AF_UNIX))
            reader.connect(str(world.paths.api_socket))
            reader.sendall(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nX-PiCloud-Wire: 1\r\n\r\n".encode()
            )
            begin = reader.recv(1000)
            if begin.split()[1] not in (b"200", b"503"):
                raise AssertionError(f"{path}: {begin!r}")
            served += begin.split()[1] == b"200"
        yield served


def resident_bytes(world: World) -> int:
    """Return the memory of the control plane."""
    (process,) = world.find("control plane")
    text = Path(f"/proc/{process.pid}/statm").read_text()
    return int(text.split()[1]) * 4096


@fault("readers of 100 MB that stop reading", ci=20, soak=200)
def stop_reading(trial: Trial) -> None:
    code = (
        "from picloud_jupyter import cloud\n"
        f"jid = cloud.call(lambda: (print('x' * {PRINTED_BYTES}), b'y' * {RESULT_BYTES})[1])\n"
        "cloud.join(jid)\nprint(jid)"
    )
    with trial.world(clients=0) as world:
        words = [sys.executable, "-c", code]
        jid = int(subprocess.check_output(words, env=world.environment, timeout=60))
        world.add_bystander(ALONE_SECONDS)
        before = resident_bytes(world)
        half = trial.wanted // 2
        with (
            dead_readers(world, f"/v1/jobs/{jid}/result", half) as of_result,
            dead_readers(
                world, f"/v1/jobs/{jid}/logs/stdout?offset=0&limit={SLICE_BYTES}", half
            ) as of_output,
        ):
            end_at = time.monotonic() + ALONE_SECONDS
            while time.monotonic() < end_at:
                world.rest(0.2, 0.2)
            grown = resident_bytes(world) - before
        trial.count = of_result + of_output
        trial.figures["memory"] = f"the control plane grew by {grown // 1024**2} MiB"
        if grown > GROWTH_BYTES:
            trial.refuse("I10", f"slow readers hold {grown} bytes of the control plane")
    trial.figures["others"] = world.pace


@fault("kill -9 of the runners and containers of one, others work on", ci=0, soak=50)
def others_work_on(trial: Trial) -> None:
    with trial.world(clients=0) as world:
        world.add_bystander(ALONE_SECONDS)
        world.add_client("few_long", "call", *["read_one"] * 3)
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 0.8)
            world.send_soon(("runner", "container"))
    trial.figures["others"] = world.pace
