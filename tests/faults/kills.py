"""kill -9 and SIGSTOP of each process of ours, at random, under a mixed load."""

import signal
import time

from tests.faults.catalog import Trial, fault
from tests.faults.invariants import Violation
from tests.faults.journal import Event
from tests.faults.world import ROLES, World

SOAK_STOPPED_SECONDS = 65.0  # longer than a lease lives that is not renewed
CI_STOPPED_SECONDS = 1.5
STOPPED = tuple(role for role in ROLES if role != "client")


def kill_some(trial: Trial, world: World, roles: tuple[str, ...], most_seconds: float) -> None:
    """Kill processes of ``roles`` again and again while clients work."""
    wait_for_work(world)
    for number in trial.rounds():
        world.rest(0.05, most_seconds)
        if roles == ("launcher",):
            kill_launcher(world, at_work=bool(number % 2))
        else:
            world.send_soon(roles)


def kill_launcher(world: World, *, at_work: bool) -> None:
    """Kill the launcher, ``at_work`` with orders in its hands: by chance these are there for milliseconds."""
    victim = world.send_soon(("launcher",), signal.SIGSTOP if at_work else signal.SIGKILL)
    if at_work:
        world.send("container")  # whoever ran there needs another
        world.rest(0.05, 0.3)
        victim.kill(signal.SIGKILL)


def wait_for_work(world: World) -> None:
    """Return when jobs have begun."""
    deadline = time.monotonic() + 30
    while not world.effects():
        if time.monotonic() > deadline:
            raise AssertionError(f"no job began within 30 s\n{world.describe()}")
        time.sleep(0.05)


for _role in ROLES:

    def _kill(trial: Trial, role: str = _role) -> None:
        with trial.world() as world:
            kill_some(trial, world, (role,), 1.0)

    fault(f"kill -9 of the {_role}", ci=0, soak=40)(_kill)


@fault("kill -9 of anything, at random", ci=20, soak=200, whole=True)
def kill_anything(trial: Trial) -> None:
    with trial.world() as world:
        kill_some(trial, world, ROLES, 1.0)


@fault("kill -9 of control plane and agent at once", ci=0, soak=40)
def kill_both(trial: Trial) -> None:
    with trial.world() as world:
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 1.5)
            victims = world.find("control plane") + world.find("agent")
            if not victims:
                trial.miss()
            for victim in victims:
                victim.kill(signal.SIGKILL)


@fault("kill -9 of all processes of the service at once, then down", ci=1, soak=10)
def kill_all_and_go_down(trial: Trial) -> None:
    """What they left must be ended and removed by those who are asked to go down."""
    for _ in trial.rounds():
        with trial.world() as world:
            wait_for_work(world)
            world.rest(0.2, 1.0)
            for role in ("client", "control plane", "agent", "launcher", "supervisor"):
                for victim in world.find(role):
                    victim.kill(signal.SIGKILL)
            for client in world.clients:
                client.wait(10)
            world.clients.clear()
            world.service.cli("down")


# --------------------------------------------------------------------- what goes on, what may not
def running_now(world: World) -> dict[int, Event]:
    """Return the last start of each job that was promised, has begun and is not over."""
    promised = {
        jid for event in world.events() if event["do"] == "acked" for jid in event["jids"]
    }
    running: dict[int, Event] = {}
    for effect in world.effects():
        if effect["what"] == "start":
            running[effect["jid"]] = effect
        else:
            running.pop(effect["jid"], None)
    return {jid: start for jid, start in running.items() if jid in promised}


@fault("kill -9 of the control plane while jobs run: all go on", ci=3, soak=40)
def jobs_go_on(trial: Trial) -> None:
    running: dict[int, Event] = {}
    with trial.world(clients=0) as world:
        for _ in range(2):
            world.add_client("sleeper", "few_long", *["read_one"] * 3)
        wait_for_work(world)
        world.promises.append(lambda _picture: _began_anew(trial, world, running))
        for _ in trial.rounds():
            world.rest(0.3, 1.0)
            running |= running_now(world)
            world.send_soon(("control plane",))


def _began_anew(trial: Trial, world: World, running: dict[int, Event]) -> list[Violation]:
    starts = [effect for effect in world.effects() if effect["what"] == "start"]
    again = {s["jid"] for s in starts if s["jid"] in running and s != running[s["jid"]]}
    trial.figures["running jobs that went on"] = (
        f"{len(running) - len(again)} of {len(running)}"
    )
    return [Violation("I4", f"job {jid} ran, and was begun anew") for jid in sorted(again)]


@fault("kill -9 of anything while jobs run that may not restart", ci=5, soak=100)
def once_only(trial: Trial) -> None:
    with trial.world(clients=0) as world:
        for _ in range(2):
            world.add_client("once_only", "read_one")
        world.promises.append(lambda _picture: _started_twice(trial, world))
        kill_some(trial, world, tuple(role for role in ROLES if role != "client"), 0.7)


def _started_twice(trial: Trial, world: World) -> list[Violation]:
    starts = [effect["jid"] for effect in world.effects() if effect["what"] == "start"]
    twice = len(starts) - len(set(starts))
    trial.figures["jobs that may not restart"] = f"{len(set(starts))}, {twice} started twice"
    return []  # I4 names them


# ------------------------------------------------------------------------------------ standing still
@fault("SIGSTOP of each process of the service, then SIGCONT", ci=6, soak=12)
def stop_each(trial: Trial) -> None:
    seconds = SOAK_STOPPED_SECONDS if trial.wanted > len(STOPPED) else CI_STOPPED_SECONDS
    with trial.world() as world:
        wait_for_work(world)
        for number in trial.rounds():
            world.rest(0.1, 0.4)
            stopped = world.send_soon((STOPPED[number % len(STOPPED)],), signal.SIGSTOP)
            world.rest(seconds, seconds)
            stopped.kill(signal.SIGCONT)


@fault("SIGSTOP of a supervisor while the agent is killed", ci=1, soak=5)
def stop_and_kill(trial: Trial) -> None:
    """The next agent cannot learn what runs there: none of it may run twice at once."""
    with trial.world() as world:
        wait_for_work(world)
        for _ in trial.rounds():
            world.rest(0.2, 0.6)
            stopped = world.send_soon(("supervisor",), signal.SIGSTOP)
            world.send_soon(("agent",))
            world.rest(1.0, 12.0 if trial.wanted > 1 else 2.0)
            stopped.kill(signal.SIGCONT)
