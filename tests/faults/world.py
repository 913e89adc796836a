"""A service under attack: clients that keep journals, a nemesis that finds its victims, a check at the end."""

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from picloud_jupyter.transport.paths import ServicePaths, service_paths
from picloud_services.agent.processes import Process, find_process
from tests.faults.invariants import Figures, Picture, Violation, check
from tests.faults.journal import Event, Journal, read_journal
from tests.faults.load import PACE_SECONDS, SECRET_NAME
from tests.faults.picture import cgroups_of_containers, find_leftovers, take_picture
from tests.tools.disks import mounted
from tests.tools.service_under_test import ServiceUnderTest

LAUNCHER = b"picloud_services.agent.launcher\0"
LOAD = Path(__file__).with_name("load.py")
ROLES = ("control plane", "agent", "launcher", "supervisor", "container", "runner", "client")
CLEAN_SECONDS = 45.0  # a lease's last word and two sweeps
FINISH_SECONDS = 180.0
BACK_SECONDS = 60.0  # for a process that was killed to be there again
UNFELT_SECONDS = 0.05


class World:
    """A service in ``folder`` with clients around it; all chances are drawn from ``random``."""

    def __init__(
        self, folder: Path, kind: str, chance: random.Random, settings: dict[str, str]
    ) -> None:
        self.folder = folder
        self.random = chance
        self.service = ServiceUnderTest(folder / "home", kind)
        self.service.environment.update(settings)
        self.journals = folder / "outside"
        self.journals.mkdir(mode=0o777)
        self.journals.chmod(0o777)
        self.clients: list[subprocess.Popen[bytes]] = []
        self.injured: set[int] = (
            set()
        )  # pids of clients whose own system calls failed: they may give up
        self.canary = secrets.token_hex(16)
        # what a row promises beyond the invariants, asked when all work is over
        self.promises: list[Callable[[Picture], Iterable[Violation]]] = []
        self._names = 0
        self._known_cgroups = cgroups_of_containers()
        self._seen: set[Process] = set()
        self._bystander: subprocess.Popen[bytes] | None = None
        self._alone_count = 0
        self.pace = ""  # of the bystander, in words
        self._disks = contextlib.ExitStack()
        self._mounts: set[str] = set()
        self.explained: frozenset[str] = frozenset()  # ends that the fault itself explains
        self.all_died_at = 0.0  # when every process of ours did, the last time
        Journal(self.journals / "effects.jsonl").path.chmod(0o666)

    @property
    def paths(self) -> ServicePaths:
        """Where the service lives."""
        return service_paths(self.service.home)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a process to this service."""
        return {**os.environ, **self.service.environment}

    def start(self) -> None:
        """Start the service, and give it the secret that must be found nowhere."""
        self.service.cli("status")
        self.service.cli("secret", "set", SECRET_NAME, input=self.canary)

    def mount(self, name: str, options: str) -> Path:
        """Put a small file system of its own at ``name`` in the home; it goes with the world."""
        folder = self.service.home / name
        self._disks.enter_context(mounted(folder, options))
        self._mounts.add(f"a mount at {folder}")
        return folder

    # ------------------------------------------------------------------------------- clients
    def add_client(self, *actions: str) -> subprocess.Popen[bytes]:
        """Start one more working client; it does all that users do, or only ``actions``."""
        self._names += 1
        words = [",".join(actions)] if actions else []
        client = self._run_client(f"c{self._names}", self.random.randrange(2**32), *words)
        self.clients.append(client)
        return client

    def add_bystander(self, alone_seconds: float) -> None:
        """Start a client with a steady pace, and let it work alone: nobody else may slow it later."""
        self._bystander = self._run_client("bystander", 0)
        deadline = time.monotonic() + 30 + alone_seconds
        while len(self._stood_by()) < alone_seconds / PACE_SECONDS:
            if time.monotonic() > deadline:
                raise AssertionError("the bystander does not get on: " + self._last_words())
            time.sleep(0.05)
        self._alone_count = len(self._stood_by())

    def _stood_by(self) -> list[Event]:
        return [event for event in self.events() if event["do"] == "stood_by"]

    def _run_client(self, name: str, seed: int, *actions: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(LOAD), str(self.journals), name, str(seed), *actions]
        log = (self.folder / f"client-{name}.log").open("wb")
        with log:
            return subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)

    def events(self) -> list[Event]:
        """Return what the clients noted so far."""
        return list(read_journal(self.journals / "clients.jsonl"))

    def effects(self) -> list[Event]:
        """Return what the jobs noted so far."""
        return list(read_journal(self.journals / "effects.jsonl"))

    # ------------------------------------------------------------------------------- victims
    def find(self, role: str) -> list[Process]:
        """Return the live processes of a role, without asking the service."""
        if role == "client":
            pids = [client.pid for client in self.clients if client.poll() is None]
        elif role in ("control plane", "agent", "launcher"):
            pids = self._leaders(role)
        elif role == "supervisor":
            pids = self._supervisors()
        elif role == "container":
            pids = [pid for status in self._statuses() for pid in _pids_in(status, role)]
            pids += [pid for parent in self._supervisors() for pid in _children(parent)]
        else:
            pids = [pid for status in self._statuses() for pid in _pids_in(status, role)]
        found = [process for pid in pids if (process := find_process(pid))]
        if role in ("supervisor", "container", "runner"):
            self._seen.update(found)
        return found

    def _own_processes(self, word: str) -> list[int]:
        """Return the processes of the program ``word``, with those that are forks of it."""
        marks = f"picloud_services\0{word}\0".encode(), f"--run\0{self.paths.run}\0".encode()
        return [pid for pid in _all_pids() if all(mark in _command(pid) for mark in marks)]

    def _leaders(self, role: str) -> list[int]:
        """Each of these leads a session; what the launcher forks does not."""
        forks = self._own_processes("control" if role == "control plane" else "agent")
        pids = [pid for pid in forks if _session(pid) == pid]
        first = [pid for pid in pids if _parent(pid) not in pids]
        if role != "launcher":
            return first
        # the first is a fork of the agent, one that replaces a lost one a program of its own
        found = [child for pid in first for child in _children(pid)]
        return [pid for pid in found if pid in pids or LAUNCHER in _command(pid)]

    def _supervisors(self) -> list[int]:
        """Return also those too young to have said who they are."""
        forks = self._own_processes("agent")
        born = [pid for pid in forks if _session(pid) != pid and _parent(pid) not in forks]
        said = [Process(s["pid"], s["start_time"]) for s in self._statuses()]
        return sorted({*born, *(p.pid for p in said if find_process(p.pid) == p)})

    def _statuses(self) -> list[Event]:
        found = []
        for path in (self.paths.run / "c").glob("*/status.json"):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_bytes()))
        return found

    def send(self, role: str, number: signal.Signals = signal.SIGKILL) -> Process | None:
        """Send a signal to one process of a role, drawn by chance; return it, or None if there is none."""
        found = self.find(role)
        if not found:
            return None
        victim = self.random.choice(sorted(found, key=lambda process: process.pid))
        victim.kill(number)
        if role == "client" and number == signal.SIGKILL:
            self.add_client()
        return victim

    def send_soon(
        self, roles: Sequence[str], number: signal.Signals = signal.SIGKILL
    ) -> Process:
        """Send a signal to a process of one of ``roles`` as soon as there is one; return it."""
        deadline = time.monotonic() + BACK_SECONDS
        while (victim := self.send(self.random.choice(roles), number)) is None:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"no {' or '.join(roles)} was there for {BACK_SECONDS:.0f} s\n{self.describe()}"
                )
            self.rest(0.05, 0.2)
        return victim

    def rest(self, least_seconds: float, most_seconds: float) -> None:
        """Let the work go on for a time drawn by chance: when a fault strikes is what is tried."""
        for role in ("supervisor", "container"):
            self.find(role)  # remembered, to be looked for at the end
        time.sleep(self.random.uniform(least_seconds, most_seconds))

    def describe(self) -> str:
        """Return what the service says of itself and of its oldest waiting job, for a puzzled reader."""
        acked = [event for event in self.events() if event["do"] == "acked"]
        words = ["status", *([f"why {acked[0]['jids'][0]}"] if acked else [])]
        answers = [self.service.cli(*line.split(), check=False) for line in words]
        said = [answer.stdout + answer.stderr for answer in answers]
        logs = sorted((self.service.home / "logs").glob("*.log"))
        said += [f"{path.name}:\n{path.read_text()[-3000:]}" for path in logs]
        return "\n".join([*said, self._last_words()])

    # --------------------------------------------------------------------------------- the end
    def finish(self) -> list[Violation]:
        """Let all work end, stop the service, and return what was not as promised."""
        broken, figures = self.settle()
        picture = take_picture(self.paths, self.canary)
        for promise in self.promises:
            broken += promise(picture)
        return broken + check(self.events(), self.effects(), picture, figures)

    def settle(self) -> tuple[list[Violation], Figures]:
        """Let all work end and stop the service; return what went wrong in that, and how long it took."""
        limit = 10 + self._work_left()
        begun = time.monotonic()
        (self.journals / "stop").touch()
        broken = self._wait_for_clients()
        drain = Figures(time.monotonic() - begun, limit, explained=self.explained)
        if self._bystander is not None:
            if self._bystander.wait(FINISH_SECONDS):
                broken.append(Violation("client", self._last_words()))
            stood_by = self._stood_by()
            if len(stood_by) <= self._alone_count:
                broken.append(Violation("I10", "a bystander got no answer beside the fault"))
            alone, beside = split_pace(stood_by, self._alone_count)
            failed = sum(not event["right"] for event in stood_by)
            drain = replace(drain, others_failed=failed, others_p99_ratio=beside / alone)
            self.pace = (
                f"p99 of submits {alone * 1000:.0f} ms alone, {beside * 1000:.0f} ms beside it"
            )
        broken += self._audit()
        broken += self._leftovers(down=False)
        self.service.cli("down")
        broken += self._leftovers(down=True)
        return broken, drain

    def _work_left(self) -> float:
        events = self.events()
        ended = {event["jid"] for event in events if event["do"] == "ended"}
        work: dict[str, float] = {}
        for event in events:
            if event["do"] == "submit":
                work[event["token"]] = event.get("work_seconds", 0.0)
        left = [e["token"] for e in events if e["do"] == "acked" and not ended & set(e["jids"])]
        return sum(work[token] for token in left)

    def _wait_for_clients(self) -> list[Violation]:
        deadline = time.monotonic() + FINISH_SECONDS
        broken = []
        for client in self.clients:
            try:
                code = client.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                client.kill()
                client.wait()
                broken.append(Violation("I9", "a client was not finished when time was up"))
            else:
                gave_up = client.pid in self.injured and code == 1
                if code not in (0, -signal.SIGKILL) and not gave_up:
                    broken.append(Violation("client", self._last_words()))
        return broken

    def _last_words(self) -> str:
        logs = [path.read_text()[-2000:] for path in self.folder.glob("client-*.log")]
        return "a client ended with an error:\n" + "\n".join(log for log in logs if log)

    def _audit(self) -> list[Violation]:
        code = self._run_client("audit", 0).wait(FINISH_SECONDS)
        return [Violation("client", self._last_words())] if code else []

    def _leftovers(self, *, down: bool) -> list[Violation]:
        """Return what stays although the service had its time to clean up."""

        def found() -> list[str]:
            left = find_leftovers(self.paths, self._known_cgroups, down=down)
            left = [text for text in left if text not in self._mounts]
            left = [text for text in left if text not in self._nobodys_files()]
            if down:
                left += [
                    f"process {process.pid} of a container"
                    for process in self._seen
                    if find_process(process.pid) == process
                ]
            return left

        left = wait_until_empty(found, CLEAN_SECONDS)
        return [Violation("I7", text) for text in left]

    def _nobodys_files(self) -> set[str]:
        """Return results that were on their way when all processes died: they go after a day.

        An agent may come back with them until then; uploads go as soon as nobody holds them.
        """
        incoming = (self.service.home / "blobs" / "incoming").glob("*")
        return {
            f"a half-received file {path.name}"
            for path in incoming
            if path.suffix != ".upload" and path.stat().st_mtime < self.all_died_at
        }

    def end(self) -> None:
        """End all processes and remove all files of this world, whatever happened."""
        for client in [*self.clients, *([self._bystander] if self._bystander else [])]:
            client.kill()
            client.wait()
        for role in ("control plane", "agent", "launcher", "supervisor"):
            for process in self.find(role):
                process.kill(signal.SIGCONT)
        self.service.cli("down", "--purge", check=False)
        self._disks.close()


def split_pace(stood_by: list[Event], alone_count: int) -> tuple[float, float]:
    """Return the p99 of a bystander's submits alone and later; what nobody feels counts as such."""
    seconds = [event["seconds"] for event in stood_by]
    return p99(seconds[:alone_count]), p99(seconds[alone_count:])


def p99(seconds: list[float]) -> float:
    """Return the 99th percentile, at least what a person would not notice.

    >>> p99([0.2, *[0.001] * 99]), p99([0.2, 0.3, *[0.001] * 98])
    (0.05, 0.2)
    """
    return max(UNFELT_SECONDS, sorted(seconds)[-1 - len(seconds) // 100] if seconds else 0.0)


def wait_until_empty(look: Callable[[], list[str]], seconds: float) -> list[str]:
    """Return what ``look`` finds, as soon as it finds nothing or when time is up."""
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _session(pid: int) -> int:
    return int(_stat(pid)[3])


def _stat(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return [b"0"] * 4


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [
            int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


def _pids_in(status: Event, role: str) -> list[int]:
    match role:
        case "container":
            return [status["init_pid"]] if status.get("init_pid") else []
        case _:
            return _children(status["init_pid"]) if status.get("init_pid") else []
