"""A kind of machine: how it is made here, and what the product must say and do on it.

Every machine has namespaces of its own for mounts and processes and a private /tmp, and so leaves
nothing.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from picloud_services.agent import cgroup
from tests.machines.installation import Installation

FOLDER = Path(__file__).parent
SECONDS = 240.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Machine:
    """One kind. ``prepare`` is shell that root runs in its namespaces, which are mounts, processes and
    those that ``unshare`` names; ``around`` are words before the program, with $PYTHON for its Python.

    ``containers``, ``limits`` and ``network`` are what doctor must say; ``mends`` the line that doctor
    gives for a kind that was refused. ``environment`` says where the product is installed (see
    `tests.machines.installation`). ``soak``: tried there alone.
    """

    name: str
    containers: str
    limits: str
    network: str
    user: bool = False
    prepare: tuple[str, ...] = ()
    around: tuple[str, ...] = ()
    variables: Mapping[str, str | None] = field(default_factory=dict)
    unshare: tuple[str, ...] = ()
    mends: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    environment: str = "home"
    soak: bool = True

    def command(self, installation: Installation, place: Path, *words: str) -> list[str]:
        """Return the command that runs ``words`` with the product's Python on this machine."""
        python = str(installation.python)
        variables = {
            "PATH": PATH,
            "HOME": str(place / "home"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": installation.path or None,
            **self.variables,
        }
        given = [f"{name}={value}" for name, value in variables.items() if value is not None]
        around = [python if word == "$PYTHON" else word for word in self.around]
        inner = [*installation.become(), "env", "-i", *given, *around, python, *words]
        lines = [
            "mount -t proc proc /proc",
            "mount -t tmpfs -o mode=1777 tmpfs /tmp",
            *self.prepare,
            'cd "$WORK"',
            '"$@"; exit $?',  # the shell stays, and buries what nobody waits for
        ]
        new = ["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        shell = ["/bin/sh", "-e", "-c", "\n".join(lines), "sh"]
        return ["unshare", *new, *self.unshare, *shell, *inner]

    def run(
        self, installation: Installation, place: Path, *words: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``words`` with the product's Python there; ``place`` holds its home and its work."""
        told = {
            "PLACE": str(place),
            "WORK": str(place / "work"),
            "MADE": str(place / "made"),
            "WHEEL": str(installation.wheel),
            "OWNER": str(installation.uid),
        }
        shutil.rmtree(place / "made", ignore_errors=True)
        (place / "made").mkdir()
        with _memory_of(self.memory_bytes) as group:
            return subprocess.run(
                self.command(installation, place, *words),
                env={**os.environ, **told},
                preexec_fn=lambda: cgroup.enter(group, os.getpid()),
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )

    def tour(self, installation: Installation, place: Path) -> dict[str, Any]:
        """Take the tour there and return what it says."""
        done = self.run(installation, place, str(FOLDER / "tour.py"))
        assert done.stdout.startswith("{"), done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@contextlib.contextmanager
def _memory_of(size_bytes: int) -> Iterator[tuple[str, ...]]:
    """Give a control group with so much memory; none for 0."""
    if not size_bytes:
        yield ()
        return
    tree = cgroup.detect()
    assert tree is not None
    limits = cgroup.CgroupLimits(size_bytes, os.cpu_count() or 1, 10_000)
    group = cgroup.create(tree, f"machine-{os.getpid()}", limits)
    try:
        yield group
    finally:
        cgroup.kill(group)
        inner = [str(path) for top in group for path in Path(top).rglob("*") if path.is_dir()]
        cgroup.remove(sorted(inner, reverse=True))
        cgroup.remove(group)
