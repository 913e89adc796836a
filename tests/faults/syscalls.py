"""One system call fails, or is the last: strace strikes the N-th of a kind, on each process of ours."""

import asyncio
import contextlib
import itertools
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from picloud_services.agent.processes import Process, find_process
from picloud_services.base.database import open_database
from picloud_services.base.sql import Statement
from tests.faults.catalog import Trial, fault
from tests.faults.disks import NO_ROOM
from tests.faults.kills import wait_for_work
from tests.faults.world import World

WAIT_SECONDS = 2.0  # for the N-th call to come
MOST_MISSES = 3  # then no call of that kind comes so late
ATTACH_SECONDS = 10.0
STARTS_FAILED = {
    "start_failed"
}  # an error of who makes the container is told, at the third time
NAMED = {
    "fsync": "fsync,fdatasync",
    "write": "write,pwrite64,writev,pwritev",
    "rename": "rename,renameat,renameat2",
    "open": "openat",
    "unlink": "unlink,unlinkat,rmdir",
    "mkdir": "mkdir,mkdirat",
    "truncate": "ftruncate,truncate,fallocate",
    "connect": "connect,accept4",
    "receive": "recvfrom,recvmsg",
    "send": "sendto,sendmsg",
    "fork": "fork,vfork,clone,clone3",
    "wait": "wait4,waitid",
}
ROLES = ("control plane", "agent", "supervisor", "launcher", "client")
WARM = ("agent", "supervisor", "launcher")  # without new containers they have little to do
KILLED = ("fsync", "write", "rename", "open", "unlink", "mkdir", "truncate", "connect")
KILLED_OF = {  # who makes other calls than those
    "launcher": ("receive", "fork", "wait", "send"),
    "client": ("connect", "send", "receive", "write", "open"),
}
ON_STORE = ("fsync", "write", "open", "truncate", "unlink")
WRITER = Path(__file__).with_name("store_writer.py")
SWEPT = Statement("SELECT n FROM swept")
FAILING = ("fsync", "write", "rename", "open", "mkdir", "truncate")


@dataclass(frozen=True, slots=True)
class Strike:
    """What happens at the ``number``-th call of a kind: a signal, or an error for ``times`` calls."""

    call: str
    what: str
    number: int
    times: int = 1

    @property
    def expression(self) -> str:
        """The words of strace."""
        last = self.number + self.times - 1
        when = f"{self.number}..{last}" if self.times > 1 else str(self.number)
        return f"inject={NAMED[self.call]}:{self.what}:when={when}"

    def __str__(self) -> str:
        return f"{self.what} at {self.call} {self.number}, {self.times} times"


@contextlib.contextmanager
def tracing(
    victim: Process, strike: Strike, log: Path, *, forks: bool = True
) -> Iterator["subprocess.Popen[bytes]"]:
    """Have strace on ``victim`` for the time of the block, with its threads and ``forks``; it goes on without."""
    words = ["strace", *["-f"] * forks, "-q", "-o", str(log)]
    words += ["-e", f"trace={NAMED[strike.call]}"]
    tracer = subprocess.Popen(
        [*words, "-e", strike.expression, "-p", str(victim.pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + ATTACH_SECONDS
        while tracer.poll() is None and not is_traced(victim):
            if time.monotonic() > deadline:
                raise AssertionError(f"strace does not attach to {victim}")
            time.sleep(0.005)
        yield tracer
    finally:
        tracer.kill()  # the kernel lets go of all threads; asked to, strace waits for each
        tracer.wait(ATTACH_SECONDS)


def is_traced(victim: Process) -> bool:
    """Return whether a debugger is attached, or it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{victim.pid}/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return line.split()[1] != "0"
    return True


def struck(log: Path) -> int:
    """Return how many calls were struck so far."""
    with contextlib.suppress(FileNotFoundError):
        return log.read_bytes().count(b"(INJECTED)")
    return 0


def strike_once(world: World, role: str, strike: Strike, *, mortal: bool) -> bool:
    """Strike a process of ``role``; return whether the call came."""
    found = world.find(role)
    if not found:
        return False
    victim = world.random.choice(sorted(found, key=lambda process: process.pid))
    log = world.folder / "strace.log"
    log.unlink(missing_ok=True)
    if role == "client" and not mortal:
        world.injured.add(victim.pid)
    with tracing(victim, strike, log, forks=not (role == "launcher" and mortal)):
        if role in WARM:
            world.send("container")
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if find_process(victim.pid) != victim:
                break
            if not mortal and struck(log) >= strike.times:
                break
            time.sleep(0.01)
    died = find_process(victim.pid) != victim
    if role == "client" and died:
        world.add_client()
    return died if mortal else struck(log) > 0


def sweep(
    trial: Trial, world: World, role: str, calls: tuple[str, ...], whats: tuple[str, ...]
) -> None:
    """Strike the first call of each kind, then the second of each ... until none comes.

    In CI a few are drawn by chance. Each is a fault of its own: the next strikes who is there then.
    """
    short = trial.wanted <= 10
    kinds = [(call, what) for call in calls for what in whats]
    trial.random.shuffle(kinds)
    misses = dict.fromkeys(kinds, 0)
    for turn in itertools.count(1):
        for kind in tuple(misses):
            if trial.count >= trial.wanted or time.monotonic() >= trial.until:
                return
            call, what = kind
            number = trial.random.choice([1, 2, 3, 5, 8]) if short else turn
            mortal = what.startswith("signal")
            times = 1 if mortal else trial.random.choice([1, 1, 20])
            hit = strike_once(world, role, Strike(call, what, number, times), mortal=mortal)
            trial.count += hit
            misses[kind] = 0 if hit else misses[kind] + 1
            if misses[kind] == MOST_MISSES:
                del misses[kind]
            world.rest(0.05, 0.3)
        if not misses:
            return


def has_strace(trial: Trial) -> bool:
    """Return whether there is a strace; that there is none is said."""
    if shutil.which("strace") is None:
        trial.refuse("strace", "it is not installed: apt-get install strace")
        return False
    return True


def try_role(trial: Trial, role: str, calls: tuple[str, ...], whats: tuple[str, ...]) -> None:
    """Strike processes of ``role`` while clients work."""
    if not has_strace(trial):
        return
    with trial.world() as world:
        if "error=ENOSPC" in whats:
            world.explained = NO_ROOM | (STARTS_FAILED if role in WARM else set())
        wait_for_work(world)
        sweep(trial, world, role, calls, whats)


for _role in ROLES:

    def _kill(trial: Trial, role: str = _role) -> None:
        try_role(trial, role, KILLED_OF.get(role, KILLED), ("signal=KILL",))

    fault(f"kill -9 of the {_role} at its N-th system call", ci=0, soak=100, needs_root=True)(
        _kill
    )

    def _fail(trial: Trial, role: str = _role) -> None:
        try_role(trial, role, FAILING, ("error=ENOSPC", "error=EIO"))

    fault(f"the N-th system call of the {_role} fails", ci=0, soak=100, needs_root=True)(_fail)


@fault(
    "the N-th system call on the store fails, or is the last", ci=12, soak=2000, needs_root=True
)
def sweep_store(trial: Trial) -> None:
    """The store alone, so that each call can be tried: whole in a soak, some of them in CI."""
    if not has_strace(trial):
        return
    short = trial.wanted <= 20
    whats = ("signal=KILL", "error=EIO", "error=ENOSPC")
    kinds = [(call, what) for call in ON_STORE for what in whats]
    while trial.count < trial.wanted and time.monotonic() < trial.until and kinds:
        call, what = trial.random.choice(kinds) if short else kinds.pop(0)
        number = 0
        while trial.count < trial.wanted and time.monotonic() < trial.until:
            number = trial.random.randint(1, 40) if short else number + 1
            hit = strike_store(trial, Strike(call, what, number))
            trial.count += hit
            if short or not hit:
                break


def strike_store(trial: Trial, strike: Strike) -> bool:
    """Have a store written to, and struck; return whether the call came. What was acked must be there."""
    with tempfile.TemporaryDirectory(prefix="picloud-store-", dir="/var/tmp") as folder:
        store, acked, log = (
            Path(folder) / name for name in ("store.db", "acked", "strace.log")
        )
        paths = [folder, *(f"{store}{suffix}" for suffix in ("", "-wal", "-shm", ".ballast"))]
        done = subprocess.run(
            [
                *("strace", "-f", "-q", "-o", str(log), "-e", f"trace={NAMED[strike.call]}"),
                *(word for path in paths for word in ("-P", path)),
                *("-e", strike.expression, sys.executable, str(WRITER), str(store), str(acked)),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        was_killed = done.returncode == -signal.SIGKILL  # strace ends as its program did
        hit = was_killed or struck(log) > 0
        if done.returncode and not was_killed:
            trial.refuse("store", f"{strike}: no words of ours:\n{done.stderr[-1500:]}")
        check_store(trial, strike, store, acked)
    return hit


def check_store(trial: Trial, strike: Strike, store: Path, acked: Path) -> None:
    """Open the store as its next service does; see that it is whole and has what was acked."""

    async def read() -> tuple[list[str], set[int]]:
        database = open_database(store)
        await database.open()
        try:
            rows = await database.read(lambda tx: tx.all(SWEPT))
            return await database.check(), {row[0] for row in rows}
        finally:
            await database.close()

    promised = {int(word) for word in acked.read_text().split()} if acked.exists() else set()
    try:
        damage, kept = asyncio.run(read())
    except sqlite3.OperationalError:  # it never came to make its table
        damage, kept = [], set()
    if damage:
        trial.refuse("I11", f"{strike}: the store is damaged: {damage}")
    if promised - kept:
        trial.refuse(
            "I1", f"{strike}: {sorted(promised - kept)} were acknowledged and are gone"
        )
