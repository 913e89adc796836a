"""Two real users of one service: the jobs and processes of one are greedy and are killed, the other works on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from random import Random

from tests.faults.catalog import Trial, fault
from tests.faults.world import p99
from tests.tools.two_users import User, two_users_of_a_system

ALONE_SECONDS = 4.0
STEADY = """
import select, time
seconds, failed = [], []
while not select.select([sys.stdin], [], [], 0)[0]:
    begun = time.monotonic()
    try:
        jid = cloud.call(lambda: 7)
        seconds.append(time.monotonic() - begun)
        if cloud.result(jid, timeout=60) != 7:
            failed.append(f"job {jid} gave another value")
    except cloud.CloudException as error:
        failed.append(repr(error))
    time.sleep(max(0.0, begun + 0.1 - time.monotonic()))
print(json.dumps([seconds, failed]))
"""
GREEDY = """
import random
chance = random.Random(given[0])
def eat():
    held = []
    while True:
        held.append(bytearray(50 * 1024**2))
def shout():
    for _ in range(20_000):
        print("x" * 511)
def fork():
    while True:
        os.fork()
def write():
    with open("filler", "wb") as file:
        while True:
            file.write(bytes(1024**2))
sends = [
    lambda: cloud.call(eat, _type="s1"),
    lambda: cloud.call(shout, _type="s1"),
    lambda: cloud.call(fork, _type="s1", _max_runtime=2 / 60),
    lambda: cloud.call(write, _type="s1", _max_runtime=3 / 60),
    lambda: cloud.call(len, bytes(30_000_000)),
    lambda: cloud.map(lambda x: x, range(5_000)),
]
while True:
    try:
        jid = chance.choice(sends)()
        if not isinstance(jid, range) and chance.random() < 0.5:
            cloud.join([jid], timeout=1.0)
    except cloud.CloudException:
        pass
"""


def processes_of(user: User) -> list[int]:
    """Return all processes of ``user``: clients, runners, what jobs started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_theirs = folder.stat().st_uid == user.uid
        except FileNotFoundError:
            continue
        if is_theirs:
            found.append(int(folder.name))
    return found


def kill_one(pids: list[int], chance: Random) -> bool:
    """Send SIGKILL to one of ``pids``; return whether there was one that lived."""
    if not pids:
        return False
    try:
        os.kill(chance.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def work_steadily(user: User) -> "subprocess.Popen[str]":
    """Start a program that calls at a steady pace; see `stop_working`."""
    return user.start(STEADY)


def stop_working(program: "subprocess.Popen[str]") -> tuple[list[float], list[str]]:
    """Return (seconds of each submit, what failed)."""
    said, _ = program.communicate("\n", timeout=120)
    seconds, failed = json.loads(said.splitlines()[-1])
    return seconds, failed


@fault(
    "kill -9 of processes of one user with greedy jobs, another user works on",
    ci=10,
    soak=200,
    needs_root=True,
)
def another_works_on(trial: Trial) -> None:
    with two_users_of_a_system() as users:
        first = work_steadily(users.bob)
        time.sleep(ALONE_SECONDS)
        alone, failed_alone = stop_working(first)
        bob = work_steadily(users.bob)
        ann = users.ann.start(GREEDY, trial.random.randrange(2**32))
        try:
            for _ in trial.rounds():
                time.sleep(trial.random.uniform(0.2, 0.8))
                if ann.poll() is not None:
                    ann.communicate()
                    ann = users.ann.start(GREEDY, trial.random.randrange(2**32))
                while not kill_one(processes_of(users.ann), trial.random):
                    time.sleep(0.02)
        finally:
            ann.kill()
            ann.communicate()
        beside, failed = stop_working(bob)
        for words in failed_alone + failed:
            trial.refuse("I10", f"a request of the other user: {words}")
        ratio = p99(beside) / p99(alone)
        trial.figures["the other user"] = (
            f"{len(beside)} calls, p99 of submits {p99(alone) * 1000:.0f} ms alone,"
            f" {p99(beside) * 1000:.0f} ms beside it"
        )
        if ratio > 2:
            trial.refuse("I10", f"the other user's p99 is {ratio:.1f} times that alone")
