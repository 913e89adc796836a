"""A client that works and keeps a journal: ``python tests/faults/load.py FOLDER NAME SEED [ACTIONS]``.

It submits what a user would (calls, maps, jobs in jobs, large values, jobs that may not restart, kills,
deletions), notes each step before and after it in FOLDER/clients.jsonl, and its jobs note each start and
end in FOLDER/effects.jsonl. When FOLDER/stop appears it submits no more, waits for its jobs, reads their
results, and ends. The name ``audit`` reads what clients that were killed had submitted, ``bystander``
calls at a steady pace and notes how long each submit took. ACTIONS are names of what to do, with commas.
"""

import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from picloud_jupyter import cloud
from tests.faults.journal import Journal, read_journal

SECRET_NAME = "canary"
PACE_SECONDS = 0.1  # of a bystander
ASKED_ONE_BY_ONE = 20  # results of one submit; more are read together, as users do


def value_of(token: str, index: int, size: int) -> bytes:
    """Return what element ``index`` of ``token`` must give: ``size`` bytes that nothing else gives."""
    seed = hashlib.sha256(f"{token}:{index}".encode()).digest()
    return (seed * (size // len(seed) + 1))[:size]


def expected(token: str, index: int, size: int, kind: str) -> bytes:
    """Return the right result of element ``index`` of a submit."""
    if kind == "nested":
        return b"".join(value_of(token, child, size) for child in range(1, 5))
    return value_of(token, index, size)


def make_job(folder: str, token: str) -> Callable[..., bytes]:
    """Return the function that a job runs; it is sent by value and needs nothing of this file."""

    def job(
        index: int, seconds: float, size: int, fails: bool = False, padding: bytes = b""
    ) -> bytes:
        import hashlib
        import json
        import os
        import time

        def note(what: str) -> None:
            event = {
                "token": token,
                "index": index,
                "what": what,
                "jid": int(os.environ["PICLOUD_JID"]),
                "attempt": int(os.environ["PICLOUD_ATTEMPT"]),
                "lease": os.environ["PICLOUD_LEASE"],
            }
            fd = os.open(folder + "/effects.jsonl", os.O_WRONLY | os.O_APPEND)
            os.write(fd, json.dumps(event).encode() + b"\n")
            os.close(fd)

        note("start")
        print(f"{token} {index}", flush=True)
        time.sleep(seconds)
        note("end")
        if fails:
            raise ValueError(f"{token}:{index}")
        seed = hashlib.sha256(f"{token}:{index}".encode()).digest()
        return (seed * (size // len(seed) + 1))[:size]

    return job


def make_parent(child: Callable[..., bytes]) -> Callable[..., bytes]:
    """Return a function that runs ``child`` as jobs of its own."""

    def parent(size: int, label: str) -> bytes:
        from picloud_jupyter import cloud

        jids = cloud.map(lambda i: child(i, 0.02, size), range(1, 5), _label=label)
        return b"".join(cloud.result(jids))

    return parent


def read_together(jids: Sequence[int], timeout_seconds: float) -> list[object]:
    """Return the results of many, or none of them if one has none: then each is asked for."""
    if len(jids) <= ASKED_ONE_BY_ONE:
        return []
    try:
        return list(cloud.result(list(jids), timeout=timeout_seconds))
    except cloud.CloudException:
        return []


class Client:
    """One working client; ``work`` until told to stop, then ``settle``."""

    def __init__(self, folder: Path, name: str, seed: int, actions: Sequence[str] = ()) -> None:
        self.folder = folder
        self.name = name
        self.random = random.Random(seed)
        self.journal = Journal(folder / "clients.jsonl")
        self.count = 0
        self.actions = actions
        self.unread: list[tuple[str, Sequence[int], int, str]] = []
        self.read: list[int] = []

    def note(self, **event: object) -> None:
        self.journal.note(client=self.name, at=time.time(), **event)

    def submit(self, kind: str, send: Callable[[str], Sequence[int]], **facts: object) -> None:
        """Note, submit, note: what was promised is what ``acked`` says."""
        self.count += 1
        token = f"{self.name}-{self.count}"
        self.note(do="submit", token=token, kind=kind, **facts)
        begun = time.monotonic()
        try:
            jids = send(token)
        except cloud.CloudException as error:
            self.note(do="refused", token=token, error=repr(error), retry=error.retry)
            time.sleep(0.1)  # as a user would: not at once again
            return
        seconds = time.monotonic() - begun
        numbers = [int(jid) for jid in jids]
        self.note(do="acked", token=token, jids=numbers, seconds=seconds)
        self.unread.append((token, numbers, int(str(facts.get("size", 8))), kind))

    def step(self) -> None:
        """Do one thing that a user does."""
        if self.actions:
            getattr(self, self.random.choice(self.actions))()
            return
        actions = {
            self.call: 8,
            self.sleeper: 3,
            self.few_long: 2,
            self.map: 3,
            self.large: 2,
            self.nested: 1,
            self.once_only: 3,
            self.failing: 1,
            self.with_secret: 1,
            self.kill_one: 2,
            self.delete_one: 2,
            self.read_one: 6,
        }
        self.random.choices(list(actions), list(actions.values()))[0]()

    def _vol(self) -> str:
        return f"{self.folder}:{self.folder}:rw"

    def _call(self, kind: str, *, seconds: float = 0.0, size: int = 8, **more: object) -> None:
        fails = bool(more.pop("fails", False))
        restartable = bool(more.get("_restartable", True))
        padding_bytes = int(str(more.pop("padding_bytes", 0)))

        def send(token: str) -> Sequence[int]:
            job = make_job(str(self.folder), token)
            padding = bytes(padding_bytes or self.random.choice([0, 0, 0, 300_000]))
            words = (0, seconds, size, fails, padding)
            return [cloud.call(job, *words, _label=token, _vol=self._vol(), **more)]

        self.submit(
            kind, send, size=size, restartable=restartable, fails=fails, work_seconds=seconds
        )

    def _map(self, kind: str, count: int, seconds: float, size: int = 8) -> None:
        def send(token: str) -> Sequence[int]:
            job = make_job(str(self.folder), token)
            return cloud.map(
                lambda i: job(i, seconds, size), range(count), _label=token, _vol=self._vol()
            )

        work = count * (seconds + 0.005)
        self.submit(kind, send, size=size, restartable=True, count=count, work_seconds=work)

    def call(self) -> None:
        self._call("call")

    def sleeper(self) -> None:
        self._call("sleeper", seconds=self.random.uniform(0.1, 1.0))

    def few_long(self) -> None:
        self._map("few_long", self.random.randint(2, 5), 0.2)

    def map(self) -> None:
        self._map("map", self.random.randint(10, 150), 0.0)

    def large(self) -> None:
        self._call("large", size=self.random.choice([70_000, 300_000, 2_000_000]))

    def large_argument(self) -> None:
        self._call("large_argument", padding_bytes=30_000_000)

    def parts(self) -> None:
        self._map("parts", self.random.randint(1_500, 3_500), 0.0)

    def once_only(self) -> None:
        self._call("once_only", seconds=self.random.uniform(0.0, 0.4), _restartable=False)

    def failing(self) -> None:
        self._call("failing", fails=True)

    def with_secret(self) -> None:
        self._call("secret", _secrets=[SECRET_NAME])

    def nested(self) -> None:
        def send(token: str) -> Sequence[int]:
            child = make_job(str(self.folder), token)
            parent = make_parent(child)
            return [cloud.call(parent, 8, token + "/", _label=token, _vol=self._vol())]

        self.submit("nested", send, size=8, restartable=True)

    def kill_one(self) -> None:
        if self.unread:
            token, jids, _, _ = self.random.choice(self.unread)
            self.attempt("kill", token, [self.random.choice(jids)], cloud.kill)

    def delete_one(self) -> None:
        if self.read:
            jid = self.read.pop(self.random.randrange(len(self.read)))
            self.attempt("delete", "", [jid], cloud.delete)

    def attempt(
        self, do: str, token: str, jids: list[int], act: Callable[[list[int]], object]
    ) -> None:
        """Note, act, note."""
        self.note(do=do, token=token, jids=jids)
        try:
            act(jids)
        except cloud.CloudException as error:
            self.note(do=do + "_refused", jids=jids, error=repr(error))
        else:
            self.note(do=do + "_done", jids=jids)

    def read_one(self, timeout_seconds: float = 2.0) -> None:
        """Read the results of the oldest submit that was not read, if they come in time."""
        if not self.unread:
            return
        token, jids, size, kind = self.unread[0]
        if self.read_all(token, jids, size, kind, timeout_seconds):
            self.unread.pop(0)

    def read_all(
        self, token: str, jids: Sequence[int], size: int, kind: str, timeout_seconds: float
    ) -> bool:
        """Read and note each result of one submit; return whether all were there."""
        together = read_together(jids, timeout_seconds)
        for index, jid in enumerate(jids):
            try:
                found = (
                    together[index] if together else cloud.result(jid, timeout=timeout_seconds)
                )
            except cloud.CloudTimeoutError:
                return False
            except cloud.CloudException as error:
                if error.reason is None:  # not a word about the job
                    self.note(do="not_read", jid=jid, error=repr(error))
                    return False
                self.note(do="ended", jid=jid, token=token, reason=str(error.reason))
            else:
                right = found == expected(token, index, size, kind)
                self.note(do="ended", jid=jid, token=token, reason="done", right=right)
        self.read.extend(jids)
        return True

    def work(self, stop: Path) -> None:
        """Work until ``stop`` exists."""
        while not stop.exists():
            self.step()

    def stand_by(self, stop: Path) -> None:
        """Call at a steady pace until ``stop`` exists; note how long each submit took."""
        while not stop.exists():
            begun = time.monotonic()
            try:
                jid = cloud.call(lambda: 7)
                seconds = time.monotonic() - begun
                right = cloud.result(jid, timeout=60) == 7
                self.note(do="stood_by", seconds=seconds, right=right)
            except cloud.CloudException as error:
                self.note(do="stood_by", seconds=0.0, right=False, error=repr(error))
            time.sleep(max(0.0, begun + PACE_SECONDS - time.monotonic()))

    def settle(self, deadline_seconds: float = 120.0) -> None:
        """Wait for all that was submitted, and read it."""
        self.note(do="settling", unread=len(self.unread))
        deadline = time.monotonic() + deadline_seconds
        while self.unread and time.monotonic() < deadline:
            self.read_one(timeout_seconds=10.0)
        self.note(do="settled", unread=len(self.unread))

    def audit(self) -> None:
        """Read what other clients submitted and did not live to read."""
        events = list(read_journal(self.folder / "clients.jsonl"))
        facts = {event["token"]: event for event in events if event["do"] == "submit"}
        known = {event["jid"] for event in events if event["do"] == "ended"}
        known |= {jid for event in events if event["do"] == "delete" for jid in event["jids"]}
        for event in events:
            if event["do"] == "acked" and not known.issuperset(event["jids"]):
                fact = facts[event["token"]]
                size, kind = fact.get("size", 8), fact["kind"]
                self.unread.append((event["token"], event["jids"], size, kind))
        self.settle()
        self.await_unacked()

    def await_unacked(self, deadline_seconds: float = 40.0) -> None:
        """Wait for jobs of which no client heard: it was killed when they were committed."""
        deadline = time.monotonic() + deadline_seconds
        for status in ("waiting", "queued", "processing"):
            if jids := [row["jid"] for row in cloud.jobs(1_000_000, status=status)]:
                left = max(1.0, deadline - time.monotonic())
                cloud.join(jids, timeout=left, ignore_errors=True)


def main() -> None:
    """Work as told on the command line."""
    folder, name, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    actions = sys.argv[4].split(",") if len(sys.argv) > 4 else ()
    client = Client(folder, name, seed, actions)
    client.note(do="begin", pid=os.getpid(), seed=seed)
    if name == "audit":
        client.audit()
        return
    if name == "bystander":
        client.stand_by(folder / "stop")
        return
    client.work(folder / "stop")
    client.settle()


if __name__ == "__main__":
    main()
