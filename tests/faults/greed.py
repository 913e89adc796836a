"""Jobs that take all they can get, or die badly, beside jobs that do not: ``python greed.py NAMES`` runs some."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.faults.catalog import Trial, fault
from tests.faults.invariants import Picture, Violation
from tests.faults.kills import wait_for_work
from tests.faults.links import LOST_REASONS
from tests.faults.world import World

LABEL = "greedy"
MARK = "86400.271828"  # seconds that nobody else sleeps


def touch_twice_the_limit() -> int:
    block = bytearray(2 * 1024**3)
    block[::4096] = b"x" * len(block[::4096])
    return len(block)


def leak_slowly() -> None:
    held = []
    while True:
        held.append(b"x" * 4 * 1024**2)


def leak_in_a_child() -> int:
    import subprocess
    import sys

    program = "x = []\nwhile True: x.append(b'x' * 4 * 1024**2)"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode


def fork_bomb() -> None:
    import os

    while True:
        try:
            os.fork()
        except OSError:
            continue


def leave_a_daemon() -> str:
    import subprocess
    import sys
    import time

    program = (
        "import os, signal, time\n"
        "for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "os.execvp('sleep', ['sleep', '86400.271828'])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    time.sleep(0.2)
    return "left"


def open_100_000_files() -> int:
    import os

    opened: list[int] = []
    try:
        while len(opened) < 100_000:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return len(opened)
    finally:
        for fd in opened:
            os.close(fd)
    return len(opened)


def burn_cores() -> list[int]:
    import subprocess
    import sys

    program = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    children = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(8)]
    return [child.wait() for child in children]


def flood_stdout() -> int:
    import sys

    for _ in range(40_000):
        sys.stdout.write("x" * 511 + "\n")
    return 40_000 * 512


def print_one_long_line() -> int:
    for _ in range(100):
        print("y" * 1024**2, end="")
    return 100


def fill_shared_memory() -> int:
    import os
    import tempfile

    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            for _ in range(2048):
                file.write(b"x" * 1024**2)
            file.flush()
        except OSError:
            return 1
    return 0


def dump_core() -> None:
    import os
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    os.abort()


def segfault() -> None:
    import ctypes

    ctypes.string_at(1)


def exit_at_once() -> None:
    import os

    os._exit(3)


def kill_itself() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Greed:
    """A greedy job: how it may end, and the keywords it is called with."""

    run: Callable[[], object]
    reasons: tuple[str, ...]
    value: object = None
    options: dict[str, Any] = field(default_factory=dict)


SHORT = {"_max_runtime": 4 / 60}
GREEDY = {
    "touches twice its memory": Greed(touch_twice_the_limit, ("oom",)),
    "leaks until it is full": Greed(leak_slowly, ("oom",)),
    "has a child that leaks": Greed(leak_in_a_child, ("done", "oom"), -9),
    "is a fork bomb": Greed(fork_bomb, ("timeout",), options=SHORT),
    "leaves a daemon": Greed(leave_a_daemon, ("done",), "left"),
    "opens 100,000 files": Greed(open_100_000_files, ("done",)),
    "burns eight cores": Greed(burn_cores, ("done",), [0] * 8),
    "floods stdout": Greed(flood_stdout, ("done",), 40_000 * 512),
    "prints a line of 100 MiB": Greed(print_one_long_line, ("done",), 100),
    "fills shared memory": Greed(fill_shared_memory, ("done", "oom")),
    "dumps core": Greed(dump_core, ("crashed",)),
    "segfaults": Greed(segfault, ("crashed",)),
    "exits at once": Greed(exit_at_once, ("crashed",)),
    "kills its runner, always": Greed(kill_itself, ("poison",)),
}


def main() -> None:
    """Run the greedy jobs that are named; print how each ended."""
    from picloud_jupyter import cloud

    jids = {}
    for name in sys.argv[1:]:
        greed = GREEDY[name]
        jids[name] = cloud.call(greed.run, _type="s1", _label=LABEL, **greed.options)
    ended = {}
    for name, jid in jids.items():
        try:
            ended[name] = ["done", cloud.result(jid)]
        except cloud.CloudException as error:
            ended[name] = [str(error.reason), str(error)]
    print(json.dumps(ended))


@fault("a greedy job beside good ones", ci=len(GREEDY), soak=10 * len(GREEDY))
def greedy_beside_good(trial: Trial) -> None:
    with trial.world() as world:
        world.promises += [good_ones_are_unharmed, nothing_stays]
        wait_for_work(world)
        for _ in trial.rounds():
            names = trial.random.sample(list(GREEDY), len(GREEDY))
            for name, (reason, value) in run_greedy(world, names).items():
                trial.count += 1
                judge(trial, name, reason, value)
                trial.figures[name] = reason
            if not world.find("control plane") or not world.find("agent"):
                trial.refuse("I10", "a greedy job ended a process of the service")


def run_greedy(world: World, names: list[str]) -> dict[str, tuple[str, object]]:
    """Run some greedy jobs; return (reason, value or words) of each."""
    done = subprocess.run(
        [sys.executable, __file__, *names],
        env=world.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[str, tuple[str, object]] = json.loads(done.stdout)
    return found


def judge(trial: Trial, name: str, reason: str, value: object) -> None:
    """Refuse an end that is not the right one."""
    greed = GREEDY[name]
    if reason not in greed.reasons:
        trial.refuse("I12", f"a job that {name} ended by {reason}: {value}")
    elif reason == "done" and greed.value not in (None, value):
        trial.refuse("I5", f"a job that {name} returned {value!r}, not {greed.value!r}")


def good_ones_are_unharmed(picture: Picture) -> Iterator[Violation]:
    """No job pays for its neighbour."""
    for jid, job in picture.jobs.items():
        batch = picture.batches.get(job.batch)
        if batch is not None and batch.label == LABEL:
            continue
        if job.attempt > 1 or job.end_reason in (*LOST_REASONS, "oom", "crashed", "timeout"):
            words = f"job {jid} ended by {job.end_reason} in attempt {job.attempt}"
            yield Violation("I10", f"{words}, beside a greedy one")


def nothing_stays(_picture: Picture) -> Iterator[Violation]:
    """What a job started ends with it, whatever it ignores."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if MARK.encode() in words and int(process.name) != os.getpid():
            yield Violation("I7", f"a daemon of a job still runs: process {process.name}")


if __name__ == "__main__":
    main()
