"""Files that a disk has damaged: told in words, and nothing wrong is ever served."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.faults.catalog import Trial, fault
from tests.faults.kills import wait_for_work
from tests.faults.load import expected
from tests.faults.world import World

KINDS = {
    "payload": "blobs/??/*",
    "output": "logs/??/*.out",
    "index of output": "logs/??/*.idx",
    "archive of modules": "code/??/*",
    "store": "store.db",
    "log of the store": "store.db-wal",
    "secrets": "secrets/*.json",
    "secret of the service": "secret",
    "measurements": "metrics.db",
    "settings": "picloud_config.json",
}
AGENT_SECONDS = 20.0
NOT_COPIED = ("layers", "bundle", "service.run", "lock", "agent.lock")
IN_WORDS = (
    "corrupt",
    "not_found",
    "job_stalled",
    "job_failed",
    "platform_error",
    "unavailable",
)
READER = """
import hashlib, json, sys
from picloud_jupyter import cloud
for line in sys.stdin:
    jid = int(line)
    try:
        value = cloud.result(jid, timeout=20)
        answer = hashlib.sha256(value).hexdigest()
    except cloud.CloudException as error:
        answer = None if error.reason else error.code
    try:
        cloud.info(jid, ["stdout", "status"])
        shown = ""
    except cloud.CloudException as error:
        shown = error.code
    print(json.dumps([jid, answer, shown]), flush=True)
"""


@fault("damaged files of a home: flipped, torn, cut short", ci=2, soak=120)
def damage_files(trial: Trial) -> None:
    with trial.world() as world:
        wait_for_work(world)
        world.rest(2.0, 3.0)
        settle(world)
        right = {
            jid: hashlib.sha256(value).hexdigest() for jid, value in results_of(world).items()
        }
        for process in world.find("control plane") + world.find("agent"):
            process.kill()  # the log of the store stays
        effects = world.journals / "effects.jsonl"
        noted_bytes = effects.stat().st_size
        kinds = list(KINDS)
        trial.random.shuffle(kinds)
        for number, _ in enumerate(trial.rounds()):
            kind = kinds[number % len(kinds)]
            home = copy_home(world)
            what = hurt(home, KINDS[kind], trial.random)
            if not what:
                trial.miss()
            else:
                for invariant, text in look(world, home, right):
                    trial.refuse(invariant, f"{kind}, {what}: {text}")
            if not remove(home):
                trial.refuse("I7", f"{kind}, {what}: something still writes into the home")
            os.truncate(effects, noted_bytes)  # what a log that was cut short made run again


def settle(world: World) -> None:
    """Let all clients come to their end; the service goes on."""
    (world.journals / "stop").touch()
    for client in world.clients:
        client.wait(60)


def results_of(world: World) -> dict[int, bytes]:
    """Return what the done jobs of clients must give, as far as they were read and not deleted."""
    facts = {event["token"]: event for event in world.events() if event["do"] == "submit"}
    places = {
        jid: (event["token"], index)
        for event in world.events()
        if event["do"] == "acked"
        for index, jid in enumerate(event["jids"])
    }
    gone = {jid for event in world.events() if event["do"] == "delete" for jid in event["jids"]}
    found = {}
    for event in world.events():
        if event["do"] == "ended" and event["reason"] == "done" and event["jid"] not in gone:
            token, index = places[event["jid"]]
            fact = facts[token]
            found[event["jid"]] = expected(token, index, fact.get("size", 8), fact["kind"])
    return found


def copy_home(world: World) -> Path:
    """Return a copy of the home, which no service has used yet."""
    home = world.folder / "damaged"
    shutil.copytree(
        world.paths.home, home, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED)
    )
    (home / "lock").touch()
    (home / "picloud_config.json").write_text('{"PiCloud": {"retention_days": 31}}')
    return home


def remove(home: Path) -> bool:
    """Remove a home; return whether it stays away: an agent whose service did not start leaves soon."""
    deadline = time.monotonic() + AGENT_SECONDS
    while time.monotonic() < deadline:
        shutil.rmtree(home, ignore_errors=True)
        time.sleep(0.2)
        if not home.exists():
            return True
    return False


def hurt(home: Path, pattern: str, chance: Random) -> str:
    """Damage one file; return how, or "" if there is none of that kind."""
    found = sorted(
        path for path in home.glob(pattern) if path.is_file() and path.stat().st_size
    )
    if not found:
        return ""
    path = chance.choice(found)
    content = bytearray(path.read_bytes())
    mode, at = path.stat().st_mode, chance.randrange(len(content))
    way = chance.choice(["flipped", "torn", "cut short"])
    if way == "flipped":
        content[at] ^= 1 << chance.randrange(8)
    elif way == "torn":
        at -= at % 512
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    else:
        del content[at:]
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(mode)
    return f"{path.relative_to(home)} {way} at {at}"


def look(world: World, home: Path, right: dict[int, str]) -> Iterator[tuple[str, str]]:
    """Yield what a service on the damaged home did that it must not."""
    environment = {**world.environment, "PICLOUD_HOME": str(home)}
    try:
        status = _run(environment, "-m", "picloud_jupyter.cli", "status")
        if status.returncode:
            if status.returncode != 3 or "Traceback" in status.stderr:
                yield "words", f"the service does not start: {status.stderr[-800:]}"
            return
        asked = "".join(f"{jid}\n" for jid in right)
        answers = _run(environment, "-c", READER, input=asked)
        if answers.returncode:
            yield "words", f"a reader failed: {answers.stderr[-800:]}"
        for line in answers.stdout.splitlines():
            jid, answer, shown = json.loads(line)
            if answer is not None and answer not in (right[jid], *IN_WORDS):
                yield ("I5" if len(answer) == 64 else "words"), f"job {jid} gave {answer}"
            if shown and shown not in IN_WORDS:
                yield "words", f"the info of job {jid} was refused by {shown}"
    finally:
        _run(environment, "-m", "picloud_jupyter.cli", "down", "--purge")


def _run(
    environment: dict[str, str],
    *words: str,
    input: str = "",  # as subprocess has it
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words],
        env=environment,
        input=input,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=os.sep,
    )


@fault("damaged files of running containers, found by a new agent", ci=1, soak=60)
def damage_running(trial: Trial) -> None:
    with trial.world() as world:
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 1.0)
            name = trial.random.choice(["c/*/status.json", "c/*/order.json", "*.json"])
            if not hurt(world.paths.run, name, trial.random):
                trial.miss()
            for role in trial.random.choice([("agent",), ("agent", "control plane")]):
                world.send_soon((role,))
