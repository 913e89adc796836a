"""The wall clock jumps while jobs run: of the control plane, of the agent, of both.

The processes of the service take their wall time through a `sitecustomize` that adds what a file
says; monotonic time, and the times of files, stay as they are.
"""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.faults.catalog import Trial, fault
from tests.faults.kills import wait_for_work
from tests.faults.links import no_attempt_is_lost
from tests.faults.world import World
from tests.tools.service_under_test import eventually

HOUR, YEAR = 3600, 365 * 24 * 3600
JUMPS = (2 * HOUR, -HOUR, YEAR, 0)
WHO = (("control",), ("agent",), ("control", "agent"))
LIMIT_SECONDS = 2.0
SKEW = textwrap.dedent(
    """
    import sys, time

    ROLES = [word for word in sys.orig_argv if word in ("control", "agent", "launcher")]
    if "picloud_services" in sys.orig_argv and ROLES:
        FILE = __file__.replace("sitecustomize.py", ROLES[0])
        open(FILE + ".moved", "w").close()

        def skew(true=time.time):
            try:
                with open(FILE) as file:
                    return int(file.read() or 0)
            except (OSError, ValueError):
                return 0

        def now(true=time.time):
            return true() + skew()

        def now_ns(true=time.time_ns):
            return true() + skew() * 10**9

        time.time, time.time_ns = now, now_ns
    """
)
LIMITED = textwrap.dedent(
    """
    import json, sys, time
    from picloud_jupyter import cloud

    def nap(seconds):
        import time
        time.sleep(seconds)
        return "slept"

    limit = float(sys.argv[1])
    begun = time.monotonic()
    jids = [
        cloud.call(nap, 20 * limit, _max_runtime=limit / 60),
        cloud.call(nap, limit, _max_runtime=1),
    ]
    cloud.join(jids, ignore_errors=True)
    seconds = time.monotonic() - begun
    reasons = [cloud.info(jid, ["reason", "status"])[jid] for jid in jids]
    print(json.dumps([seconds, [str(r.get("reason") or r["status"]) for r in reasons]]))
    """
)


@dataclass(frozen=True, slots=True)
class Clocks:
    """The wall clocks of one service."""

    folder: Path

    def jump(self, roles: tuple[str, ...], seconds: int) -> bool:
        """Let the clocks of ``roles`` differ by ``seconds`` from now on; return whether one did not."""
        jumped = False
        for role in roles:
            jumped |= self._read(role) != seconds
            new = self.folder / f"{role}.new"
            new.write_text(str(seconds))
            new.rename(self.folder / role)
        return jumped

    def _read(self, role: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return int((self.folder / role).read_text())
        return 0

    def are_taken(self) -> bool:
        """Return whether control plane and agent take their time from here."""
        return all((self.folder / f"{role}.moved").exists() for role in WHO[-1])


def with_clocks(world: World) -> Clocks:
    """Start the service of ``world`` anew, with clocks that can be moved."""
    folder = world.folder / "clocks"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SKEW)
    before = os.environ.get("PYTHONPATH", "")
    world.service.cli("down")
    world.service.environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(folder), before))
    )
    world.start()
    clocks = Clocks(folder)
    eventually(clocks.are_taken)
    return clocks


@fault("clock +2 h, -1 h, +1 year while jobs run", ci=6, soak=60)
def jump_while_running(trial: Trial) -> None:
    with trial.world(clients=0) as world:
        clocks = with_clocks(world)
        world.promises.append(no_attempt_is_lost)
        for _ in range(2):
            world.add_client()
        wait_for_work(world)
        limited = limited_jobs(world)
        for _ in trial.rounds():
            world.rest(0.2, 0.8)
            if not clocks.jump(trial.random.choice(WHO), trial.random.choice(JUMPS)):
                trial.miss()
        check_limits(trial, limited)


@fault("clock jumps, then the control plane or the agent is killed", ci=0, soak=40)
def jump_and_restart(trial: Trial) -> None:
    with trial.world(clients=0) as world:
        clocks = with_clocks(world)
        for _ in range(2):
            world.add_client()
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 0.8)
            clocks.jump(WHO[-1], trial.random.choice(JUMPS))
            world.rest(0.2, 0.8)
            world.send_soon(("control plane", "agent"))


def limited_jobs(world: World) -> subprocess.Popen[str]:
    """Start a program that runs one job into its time limit, and one that stays within it."""
    words = [sys.executable, "-c", LIMITED, str(LIMIT_SECONDS)]
    return subprocess.Popen(words, env=world.environment, stdout=subprocess.PIPE, text=True)


def check_limits(trial: Trial, limited: subprocess.Popen[str]) -> None:
    """Refuse limits that came early, late or never."""
    said, _ = limited.communicate(timeout=60)
    seconds, reasons = json.loads(said)
    trial.figures["a job over its limit and one within ended by"] = " and ".join(reasons)
    if reasons != ["timeout", "done"]:
        trial.refuse("I12", f"a job over and one within its time limit ended by {reasons}")
    if seconds < LIMIT_SECONDS:
        trial.refuse("I12", f"a limit of {LIMIT_SECONDS} s came after {seconds:.1f} s")
