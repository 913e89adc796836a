"""The faults that are tried: each row is a function that makes worlds, hurts them and counts."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults.invariants import Violation
from tests.faults.world import World
from tests.tools.service_under_test import kinds_of_this_machine

MOST_MISSES = 50


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. ``ci`` and ``soak`` say how often it is tried there, 0 = not there.

    A row that is ``whole`` is tried that often however long it takes; others share the time.
    """

    name: str
    try_it: "Callable[[Trial], None]"
    ci: int
    soak: int
    needs_root: bool = False
    whole: bool = False


@dataclass(slots=True)
class Trial:
    """One run of a row: what it may use, and what came out.

    A row does a fault in each of `rounds`, or calls `miss` where there was nothing to strike, and
    `refuse` for what was not as promised; worlds from `world` are checked against all invariants
    when they end.
    """

    seed: int
    wanted: int
    until: float = float("inf")  # time.monotonic(); a soak stops there
    count: int = 0
    violations: list[Violation] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    random: Random = field(init=False)
    _missed: bool = False

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def rounds(self) -> Iterator[int]:
        """Yield until as many faults were tried as wanted, or time is up."""
        misses = 0
        while self.count < self.wanted and (not self.count or time.monotonic() < self.until):
            before, self._missed = self.count, False
            yield self.count
            misses = misses + 1 if self._missed else 0
            if misses == MOST_MISSES:
                self.refuse("row", f"{misses} times in a row there was nothing to strike")
                return
            if self.count == before and not self._missed:
                self.count += 1

    def miss(self) -> None:
        """Note that this round's fault found nothing to strike, so that it does not count."""
        self._missed = True

    def refuse(self, invariant: str, text: str) -> None:
        """Note a promise that was not kept."""
        self.violations.append(Violation(invariant, text))

    @contextlib.contextmanager
    def world(
        self,
        clients: int = 2,
        kind: str = "",
        home_disk: str = "",
        *,
        disk: Callable[[Path], contextlib.AbstractContextManager[object]] | None = None,
        **settings: str,
    ) -> Iterator[World]:
        """Give a running service with ``clients`` at work; at the end it is checked.

        ``settings`` are PICLOUD_* variables of the service, without that prefix and in lower case.
        With ``home_disk`` (options of a tmpfs) its home is a file system of its own;
        ``disk`` is entered with the folder of the home, and may mount another kind of disk there.
        """
        variables = {f"PICLOUD_{name.upper()}": value for name, value in settings.items()}
        with contextlib.ExitStack() as held:
            folder = held.enter_context(
                tempfile.TemporaryDirectory(prefix="picloud-fault-", dir="/var/tmp")
            )
            os.chmod(folder, 0o755)  # jobs have uids of their own
            if disk is not None:
                held.enter_context(disk(Path(folder) / "home"))
            world = World(
                Path(folder), kind or kinds_of_this_machine()[0], self.random, variables
            )
            try:
                if home_disk:
                    world.mount(".", home_disk)
                world.start()
                for _ in range(clients):
                    world.add_client()
                yield world
                self.violations += world.finish()
            finally:
                world.end()


FAULTS: list[Fault] = []


def fault(
    name: str, *, ci: int, soak: int, needs_root: bool = False, whole: bool = False
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Enter a function into the catalog."""

    def enter(try_it: Callable[[Trial], None]) -> Callable[[Trial], None]:
        FAULTS.append(Fault(name, try_it, ci, soak, needs_root, whole))
        return try_it

    return enter
