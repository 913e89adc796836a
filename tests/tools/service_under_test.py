"""A real control plane and agent in a home of their own, for tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
DEADLINE_SECONDS = 20.0


def kinds_of_this_machine() -> list[str]:
    """Return the container kinds that the job suite must pass here.

    Root runs the root kind and the plain one, an ordinary user the rootless kind and the plain
    one: a machine where one of them does not work fails, it does not skip.
    TEST_KINDS names those to run: `run.py test` as root leaves the plain one to the ordinary user.
    """
    kinds = ["root" if os.geteuid() == 0 else "rootless", "plain"]
    wanted = os.environ.get("TEST_KINDS", "").split()
    return [kind for kind in kinds if not wanted or kind in wanted]


def eventually(
    check: Callable[[], T], *, seconds: float = DEADLINE_SECONDS, what: str = ""
) -> T:
    """Return the first true value of ``check``, asked until the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {seconds} s: {what or check}; last value {value!r}"
            )
        time.sleep(0.02)


class ServiceUnderTest:
    """Starts, points ``cloud`` at, and ends one service."""

    running: "ClassVar[list[ServiceUnderTest]]" = []

    def __init__(self, home: Path, kind: str) -> None:
        self.home = home
        self.kind = kind
        self.environment = {"PICLOUD_HOME": str(home), "PICLOUD_CONTAINER_KIND": kind}
        self._before: dict[str, str | None] = {}

    def start(self) -> None:
        """Point this process at the service and let the first request start it."""
        from picloud_jupyter import cloud

        cloud.close()
        self._before = self._before or {n: os.environ.get(n) for n in self.environment}
        os.environ.update(self.environment)
        self.status()
        if self not in self.running:
            self.running.append(self)

    def kill_all(self) -> None:
        """End every job that is not finished."""
        program = "from picloud_jupyter import cloud; cloud.kill()"
        environment = {**os.environ, **self.environment}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)

    def cli(
        self, *words: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``picloud WORDS`` against this service."""
        done = subprocess.run(
            [sys.executable, "-m", "picloud_jupyter.cli", *words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            **options,
        )
        if check and done.returncode:
            raise AssertionError(
                f"picloud {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def status(self) -> dict[str, Any]:
        """Return what `picloud -o json status` prints."""
        found: dict[str, Any] = json.loads(self.cli("-o", "json", "status").stdout)
        return found

    def end(self) -> None:
        """Stop the service and remove its state."""
        from picloud_jupyter import cloud

        cloud.close()
        if self in self.running:
            self.running.remove(self)
        self.cli("down", "--purge", check=False)
        for name, value in self._before.items():  # another service's, if one was in use
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
