"""A system service in folders of its own, and two real users of this machine who use it."""

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 60.0
PROGRAM_NAME = "program.py"


@dataclass(frozen=True)
class User:
    """One user: a private home with a Python environment of their own in it."""

    name: str
    uid: int
    gid: int
    home: Path
    variables: dict[str, str]

    @property
    def python(self) -> Path:
        return self.home / "env" / "bin" / "python"

    def command(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, in their home."""
        given = {
            "cwd": self.home,
            "env": {**self.variables, **options.pop("env", {})},
            "timeout": SECONDS,
            **options,
        }
        return subprocess.run(
            words,
            user=self.uid,
            group=self.gid,
            extra_groups=os.getgrouplist(self.name, self.gid),
            umask=0o022,
            capture_output=True,
            text=True,
            check=False,
            **given,
        )

    def run(self, code: str, *arguments: object, **options: Any) -> Any:
        """Run ``code`` as a program of this user; return the JSON of its last line.

        It begins with ``cloud`` and the arguments in ``given``, as a notebook would.
        """
        done = self.command(*self._program(code, arguments), **options)
        if done.returncode:
            raise AssertionError(f"{self.name}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    def start(self, code: str, *arguments: object) -> "subprocess.Popen[str]":
        """Start ``code`` as `run` does; its input and output are pipes."""
        return subprocess.Popen(
            self._program(code, arguments),
            user=self.uid,
            group=self.gid,
            extra_groups=os.getgrouplist(self.name, self.gid),
            cwd=self.home,
            env=self.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _program(self, code: str, arguments: tuple[object, ...]) -> list[str]:
        head = "import json, os, sys\nfrom picloud_jupyter import cloud\ngiven = json.loads(sys.argv[1])\n"
        return [
            str(self.python),
            *("-c", head + textwrap.dedent(code), json.dumps(arguments)),
        ]

    def cli(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `picloud WORDS` as this user."""
        return self.command(str(self.python), "-m", "picloud_jupyter.cli", *words, **options)

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        """Write a file of this user below their home."""
        file = self.home / path
        for folder in reversed(file.parents):
            if folder.is_relative_to(self.home) and not folder.exists():
                folder.mkdir(mode=0o755)
                os.chown(folder, self.uid, self.gid)
        file.write_text(text)
        file.chmod(mode)
        os.chown(file, self.uid, self.gid)
        return file


@dataclass(frozen=True)
class TwoUsers:
    """The service and its users. ``place`` is a folder that everybody may enter."""

    place: Path
    ann: User
    bob: User
    variables: dict[str, str]

    @property
    def state(self) -> Path:
        return self.place / "state"

    @property
    def socket(self) -> Path:
        return self.place / "run" / "api.sock"

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `picloud WORDS` as root."""
        return root_cli(self.variables, *words)


def root_cli(variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    # Of a service that runs for other tests at this moment.
    of_others = "PICLOUD_HOME", "PICLOUD_CONTAINER_KIND"
    kept = {name: value for name, value in os.environ.items() if name not in of_others}
    return subprocess.run(
        [sys.executable, "-m", "picloud_jupyter.cli", *words],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


@contextlib.contextmanager
def two_users_of_a_system() -> Iterator[TwoUsers]:
    """Make the users, start the service for all users; at the end both are gone."""
    place = Path(tempfile.mkdtemp(prefix="picloud-system-"))
    place.chmod(0o755)
    variables = {
        "PICLOUD_SYSTEM_HOME": str(place / "state"),
        "PICLOUD_SYSTEM_RUN": str(place / "run"),
    }
    with contextlib.ExitStack() as cleaning:
        cleaning.callback(shutil.rmtree, place, ignore_errors=True)
        ann, bob = (make_user(name, place, variables, cleaning) for name in ("ann", "bob"))
        cleaning.callback(root_cli, variables, "down", "--system", "--purge")
        done = root_cli(variables, "up", "--system")
        assert done.returncode == 0, done.stdout + done.stderr
        yield TwoUsers(place, ann, bob, variables)


def make_user(
    prefix: str, place: Path, variables: dict[str, str], cleaning: contextlib.ExitStack
) -> User:
    """Make a user whose home is closed to others and holds an environment with our client."""
    name = f"{prefix}-{secrets.token_hex(3)}"
    home = place / name
    make = ["useradd", "--create-home", "--home-dir", str(home), "--shell", "/bin/sh", name]
    subprocess.run(make, check=True, capture_output=True)
    cleaning.callback(_remove_user, name)
    found = home.stat()
    home.chmod(0o700)
    user = User(
        name,
        found.st_uid,
        found.st_gid,
        home,
        {"HOME": str(home), "USER": name, "PATH": "/usr/bin:/bin", **variables},
    )
    python = everybodys_python(user)
    done = user.command(python, "-m", "venv", "--without-pip", str(home / "env"))
    assert done.returncode == 0, done.stderr
    (site,) = (home / "env" / "lib").glob("python3*/site-packages")
    for package in ("picloud_jupyter", "cloudpickle"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        source = spec.submodule_search_locations[0]
        shutil.copytree(source, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(home)], check=True)
    return user


def everybodys_python(user: User) -> str:
    """Return a Python that ``user`` may run: that of the tests, or the system's."""
    wanted = "import sys, venv; assert sys.version_info >= (3, 11)"
    for program in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            if user.command(program, "-c", wanted).returncode == 0:
                return program
    raise AssertionError("there is no Python 3.11 that every user may run: apt install python3")


def _remove_user(name: str) -> None:
    subprocess.run(["userdel", "--force", name], check=False, capture_output=True)
