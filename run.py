#!/usr/bin/env python3
"""One command for a fresh machine: ``python3 run.py primer`` or ``python3 run.py test``.

Needs Python 3.11+ and nothing else: it makes a private ``.venv`` beside this file, installs this
project and its tools there, and runs what you asked for. System packages are installed only when
you are root; otherwise the line to type is printed.
"""

# Python 3.7 to 3.10 read this file far enough to say in a sentence that they are too old.
from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pwd
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
SOURCE_ROOTS = "picloud_jupyter", "kernels", "services"
STAMP = VENV / "installed-from"
# Folders of tests that share the machine with those of an ordinary user.
OF_PARTS = "architecture", "unit", "contract", "integration", "linux", "machines"
TWO_AT_A_TIME = "-n", "2", "--dist", "loadfile"
USER_IN_USE = 8  # of userdel(8)
END_SECONDS = 30.0
NETWORK_VARIABLES = (
    "PIP_",
    "SSL_",
    "CURL_",
    "REQUESTS_",
    "HTTP_",
    "HTTPS_",
    "NO_PROXY",
    "UV_",
    "http_",
    "https_",
    "no_proxy",
    "OPENBLAS_",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the word given on the command line and return its exit code."""
    words: dict[str, tuple[Callable[[list[str]], int], str]] = {
        "primer": (primer, "run the notebook docs/primer.ipynb and print its report"),
        "lab": (lab, "install JupyterLab into .venv and open the primer in it"),
        "test": (
            test,
            "check the sources and run every test; as root also as an ordinary user",
        ),
        "check": (check, "format, lint, types and import directions"),
        "bench": (bench, "measure beside peers and print the table"),
        "soak": (
            soak,
            "try every fault at length (SEED=n SECONDS=n), and the tests that take minutes",
        ),
    }
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="words:\n"
        + "\n".join(f"  {word:8} {text}" for word, (_, text) in words.items()),
    )
    parser.add_argument("word", choices=words, metavar="WORD")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, help="passed on to the tool that is run"
    )
    options = parser.parse_args(arguments)
    if sys.version_info < (3, 11):  # noqa: UP036  # an older Python gets a sentence, not a traceback
        sys.exit(
            f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Try: python3.11 run.py {options.word}"
        )
    make_venv()
    return words[options.word][0](options.rest)


# ------------------------------------------------------------------------------- installation
def make_venv() -> None:
    """Make ``.venv`` and install this project with its development tools, unless it is current."""
    wanted = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes() + sys.version.encode()
    ).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    say(f"installing into {VENV} (once)")
    if not is_usable(VENV):
        create_empty_venv()
    install("dev")
    # pip compiles what it installs, but not what it links to.
    run([PYTHON, "-m", "compileall", "-q", *(ROOT / root for root in SOURCE_ROOTS)])
    STAMP.write_text(wanted)


def is_usable(venv: Path) -> bool:
    """Return whether ``venv`` is whole, and of the Python that runs this."""
    # Its interpreter cannot be asked: an upgrade of the system puts a newer one behind the link.
    needed = [venv / "bin" / "python", venv / "bin" / "pip", venv / "pyvenv.cfg"]
    if not all(path.exists() for path in needed):
        return False
    made_for = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", needed[-1].read_text(), re.M)
    return made_for is not None and made_for[1] == sysconfig.get_python_version()


def install(extra: str) -> None:
    """Install this project with what its ``extra`` names, linked to these sources."""
    pip: list[str | Path] = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    run([*pip, "--editable", f"{ROOT}[{extra}]"])


def create_empty_venv() -> None:
    """Make an empty ``.venv``, installing Debian's python3-venv first where it is missing."""
    make = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    if subprocess.run(make, capture_output=True, check=False).returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    version = sysconfig.get_python_version()
    install_system_packages(
        ["python3-venv" if version == system_python_version() else f"python{version}-venv"],
        needed_for="a private Python environment",
    )
    run(make)


def system_python_version() -> str:
    """Return the version of /usr/bin/python3 as ``3.11``, or "" where there is none."""
    if not Path("/usr/bin/python3").exists():
        return ""
    asked = subprocess.run(
        ["/usr/bin/python3", "-c", "import sysconfig; print(sysconfig.get_python_version())"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()


def install_system_packages(
    packages: list[str], *, needed_for: str, required: bool = True
) -> bool:
    """Install Debian packages when root; else print the line to type. Return whether it was done.

    Exits with that line when the packages are ``required``.
    """
    line = f"apt-get install -y {' '.join(packages)}"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {' '.join(packages)} ({needed_for})")
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        subprocess.run(
            ["apt-get", "-qq", "update"],
            check=False,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        done = subprocess.run(
            ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages],
            check=False,
            env=environment,
            stdout=subprocess.DEVNULL,
        ).returncode
        if done == 0:
            return True
    message = f"{needed_for} needs system packages; type:  sudo {line}"
    if required:
        sys.exit(message)
    say(message)
    return False


# -------------------------------------------------------------------------------------- words
def primer(rest: list[str]) -> int:
    """Run the primer."""
    return call([PYTHON, ROOT / "docs" / "primer.py", *rest])


def lab(rest: list[str]) -> int:
    """Open JupyterLab with this project in it."""
    if call([PYTHON, "-c", "import jupyterlab"], quiet=True):
        install("lab")
    words = [f"--notebook-dir={ROOT / 'docs'}", "--LabApp.default_url=/lab/tree/primer.ipynb"]
    return call([PYTHON, "-m", "jupyterlab", *words, *rest])


def check(rest: list[str]) -> int:
    """Run every check that needs no running code; all of them, even after one fails."""
    bin_folder = VENV / "bin"
    commands: list[list[str | Path]] = [
        [bin_folder / "ruff", "format", "--check", "."],
        [bin_folder / "ruff", "check", "."],
        [bin_folder / "mypy"],
        [bin_folder / "lint-imports"],
        [
            bin_folder / "codespell",
            "picloud_jupyter",
            "services",
            "kernels",
            "docs",
            "README.md",
            "CHANGELOG.md",
            "run.py",
        ],
    ]
    failed = [str(command[0]) for command in commands if call([*command, *rest])]
    if failed:
        say("failed: " + ", ".join(Path(name).name for name in failed))
    return len(failed)


def test(rest: list[str]) -> int:
    """Run the checks and the tests here; as root, the isolation tests also as a fresh user."""
    install_test_programs()
    if "--isolation" in rest:
        return pytest(
            ["-m", "isolation and not benchmark and not soak", *without(rest, "--isolation")]
        )
    if rest:
        return pytest(rest)
    if os.geteuid() != 0:
        return 1 if check([]) + pytest([]) else 0
    os.environ["TEST_KINDS"] = "root"  # the ordinary user runs the suite in the others
    with tests_as_ordinary_user() as finish:
        failed = check([]) + pytest([f"tests/{name}" for name in OF_PARTS]) + finish()
    # What is left waits more than it works; but faults strike what the others would need.
    others = [f"--ignore=tests/{name}" for name in (*OF_PARTS, "faults")]
    failed += pytest([*others, *TWO_AT_A_TIME, "--durations=25"])
    failed += pytest(["tests/faults", "--durations=25"])
    return 1 if failed else 0


def install_test_programs() -> None:
    """Install what the tests start beside Python: a PostgreSQL server, pasta, strace."""
    wanted = {
        "bubblewrap": shutil.which("bwrap"),
        "passt": shutil.which("pasta"),
        "strace": shutil.which("strace"),
        "iproute2": shutil.which("ip"),
        "postgresql": next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None),
    }
    missing = [package for package, found in wanted.items() if not found]
    if missing:
        install_system_packages(missing, needed_for="the whole test suite", required=False)


def remove_user(name: str) -> None:
    """Return when all that a user runs has ended, and the user is removed with its files."""
    code, deadline = USER_IN_USE, time.monotonic() + END_SECONDS
    while code == USER_IN_USE and time.monotonic() < deadline:
        # All that this user may signal: its own processes, this shell among them.
        subprocess.run(["sh", "-c", "kill -KILL -1"], user=name, check=False)
        time.sleep(0.2)  # what was killed is still there until its parent looks
        code = call(["userdel", "--remove", name])
    if code:
        sys.exit(code)


@contextlib.contextmanager
def tests_as_ordinary_user() -> Iterator[Callable[[], int]]:
    """Run the isolation tests as a new user while the caller does other things.

    Gives a function that waits for them, prints their output and returns their exit code. They run in a
    copy of the committed tree, with /usr/bin/python3, as a newcomer would; the user is removed afterwards.
    """
    name = f"picloud-test-{secrets.token_hex(3)}"
    run(["useradd", "--create-home", "--shell", "/bin/bash", name])
    try:
        account = pwd.getpwnam(name)
        checkout = Path(account.pw_dir) / "picloud-jupyter"
        checkout.mkdir()
        subprocess.run(["tar", "-x", "-C", str(checkout)], input=committed_tree(), check=True)
        run(["chown", "-R", f"{account.pw_uid}:{account.pw_gid}", str(checkout)])
        say(f"the isolation tests begin as the ordinary user {name}; their output comes later")
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [python_of_an_ordinary_user(), "run.py", "test", "--isolation"],
                cwd=checkout,
                env=environment_of(account),
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

            def finish() -> int:
                code = process.wait()
                say(f"the isolation tests as the ordinary user {name}")
                output.seek(0)
                sys.stdout.write(output.read().decode(errors="replace"))
                return code

            yield finish
    finally:
        remove_user(name)


def python_of_an_ordinary_user() -> str:
    """Return the system's Python, able to make environments, else the one that runs this."""
    python = "/usr/bin/python3"
    if not Path(python).exists():
        return sys.executable
    if subprocess.run(
        [python, "-c", "import ensurepip"], capture_output=True, check=False
    ).returncode:
        install_system_packages(["python3-venv"], needed_for="a private Python environment")
    return python


def environment_of(account: pwd.struct_passwd) -> dict[str, str]:
    """Return the variables of a login of that user, with what the network here needs."""
    return {k: v for k, v in os.environ.items() if k.startswith(NETWORK_VARIABLES)} | {
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }


def committed_tree() -> bytes:
    """Return the last commit as a tar archive."""
    # git refuses root the checkout of another user unless it is told that this one is meant.
    archive = ["git", "-c", f"safe.directory={ROOT}", "archive", "HEAD"]
    return subprocess.run(archive, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def bench(rest: list[str]) -> int:
    """Measure; peers (Ray, Dask) are installed into a second environment on the first run."""
    return call([PYTHON, ROOT / "tests" / "benchmarks" / "run_all.py", *rest])


def soak(rest: list[str]) -> int:
    """Try every fault for SECONDS in all (default 3600) with SEED, print the table, run the long tests."""
    install_test_programs()
    words = [
        f"--{name}={os.environ[name.upper()]}"
        for name in ("seed", "seconds")
        if os.environ.get(name.upper())
    ]
    if rest:
        return call([PYTHON, "-m", "tests.faults", *words, *rest])
    faults = call([PYTHON, "-m", "tests.faults", *words])
    return 1 if faults + pytest(["-m", "soak", "--timeout", "3000"]) else 0


# -------------------------------------------------------------------------------------- tools
def pytest(rest: list[str]) -> int:
    """Run pytest from .venv and return its exit code."""
    return call([PYTHON, "-m", "pytest", *rest])


def call(command: Sequence[str | Path], *, quiet: bool = False) -> int:
    """Run ``command`` in the project's folder and return its exit code."""
    if not quiet:
        say(shlex.join(str(word) for word in command).replace(f"{ROOT}/", ""))
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, check=False, stdout=output, stderr=output
    ).returncode


def run(command: Sequence[str | Path]) -> None:
    """Run ``command``; leave with its exit code if it fails."""
    code = call(command)
    if code:
        sys.exit(code)


def without(words: list[str], word: str) -> list[str]:
    """Return ``words`` without ``word``."""
    return [w for w in words if w != word]


def say(text: str) -> None:
    """Print one line that stands out from the tools' own output."""
    print(f"\n>>> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
