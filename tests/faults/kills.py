"""kill -9 and SIGSTOP of each process of ours, at random, under a mixed load."""

import signal
import time

from tests.faults.catalog import Trial, fault
from tests.faults.world import ROLES, World

STOPPED_SECONDS = 65.0  # longer than a lease lives without renewal


def kill_some(trial: Trial, roles: tuple[str, ...], most_seconds: float = 1.0) -> None:
    """Kill processes of ``roles`` again and again while clients work."""
    with trial.world() as world:
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.05, most_seconds)
            while world.send(trial.random.choice(roles)) is None:
                world.rest(0.05, 0.2)


def wait_for_work(world: World) -> None:
    """Return when jobs have begun."""
    deadline = time.monotonic() + 30
    while not world.effects():
        if time.monotonic() > deadline:
            raise AssertionError("no job began within 30 s")
        time.sleep(0.05)


for _role in ROLES:

    def _kill(trial: Trial, role: str = _role) -> None:
        kill_some(trial, (role,))

    fault(f"kill -9 of the {_role}", ci=3, soak=40)(_kill)


@fault("kill -9 of anything, at random", ci=20, soak=200)
def kill_anything(trial: Trial) -> None:
    kill_some(trial, ROLES)


@fault("kill -9 of control plane and agent at once", ci=3, soak=40)
def kill_both(trial: Trial) -> None:
    with trial.world() as world:
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 1.5)
            victims = world.find("control plane") + world.find("agent")
            for victim in victims:
                victim.kill(signal.SIGKILL)
