"""The product on each kind of machine: all of it works there, and `picloud doctor` tells the truth."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machines import catalogue, installation
from tests.machines.catalogue import MACHINES, table
from tests.machines.installation import Installation
from tests.machines.machines import Machine

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PAGE = Path(__file__).parents[2] / "docs" / "platforms.md"


class Places:
    """Where machines have their homes, and the product is installed: each kind once."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._made: dict[str, tuple[Path, Installation]] = {}

    def of(self, machine: Machine) -> tuple[Path, Installation]:
        """Return the folder of a machine, with an empty working folder, and its installation."""
        name = machine.environment
        if name not in self._made:
            self._made[name] = self._make(name)
        place, installed = self._made[name]
        shutil.rmtree(place / "work", ignore_errors=True)
        (place / "work").mkdir()
        installation.own(place / "work", installed.uid)
        return place, installed

    def _make(self, name: str) -> tuple[Path, Installation]:
        place = self.top / (
            "Ein Ärger mit Pfaden →" if name == "odd" else name.replace(" ", "-")
        )
        home = place / "home"
        home.mkdir(parents=True)
        match name:
            case "tests":
                made = installation.tests_own()
            case "user site":
                made = installation.install_for_user(home)
            case "tmp":
                there = installation.install(home / "env")
                site = Path("/tmp/env") / there.site.relative_to(home / "env")
                made = Installation(Path("/tmp/env/bin/python"), site, there.uid)
            case _:
                made = installation.install(home / "env")
        installation.own(home, made.uid)
        home.chmod(0o700)
        return place, made


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    """Outside of /tmp, which each machine has of its own."""
    top = Path(tempfile.mkdtemp(prefix="picloud-machines-", dir="/var/tmp"))
    top.chmod(0o755)
    yield Places(top)
    shutil.rmtree(top)


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(machine, id=machine.name, marks=[pytest.mark.soak] if machine.soak else [])
        for machine in MACHINES
    ],
)
def test_all_works_and_doctor_tells_the_truth(machine: Machine, places: Places) -> None:
    place, installed = places.of(machine)
    said = machine.tour(installed, place)
    assert said["failed"] == {}
    assert said["left"] == []
    left = sorted(path.name for path in (place / "work").iterdir())
    assert left == _left_by_jobs(machine)
    doctor = said["doctor"]
    found = (doctor["container_kind"], doctor["limits_grade"], doctor["network"])
    assert found == (machine.containers, machine.limits, machine.network), said["text"]
    assert _what_a_job_saw(machine) == {
        name: said["seen"][name] for name in _what_a_job_saw(machine)
    }
    _mends_are_told(machine, said)


def _left_by_jobs(machine: Machine) -> list[str]:
    """What is in the working folder: a job that is isolated writes into a layer of its own."""
    return ["given.txt"] if machine.containers != "plain" else ["given.txt", "made.txt"]


def _what_a_job_saw(machine: Machine) -> dict[str, Any]:
    """What must be so in a job where doctor says what it says."""
    if machine.containers == "plain":
        return {"reaches_loopback": True}
    network = {
        "pasta": {"proxy": "", "interfaces": ["eth0", "lo"]},
        "proxy": {"proxy": "http://127.0.0.1:3128", "interfaces": ["lo"]},
    }
    isolated = {"filtered": True, "capabilities": 0, "alone": True, "reaches_loopback": False}
    return {**isolated, **network[machine.network]}


def _mends_are_told(machine: Machine, said: dict[str, Any]) -> None:
    trials = {trial["kind"]: trial for trial in said["doctor"]["trials"]}
    assert trials[machine.containers]["works"]
    for kind, line in machine.mends.items():
        assert (trials[kind]["works"], trials[kind]["mend"]) == (False, line), said["text"]
        assert f"to mend: {line}" in said["text"]
    assert ("No better network: " in said["text"]) == (machine.network != "pasta")
    assert ("NOT ISOLATED" in said["text"]) == (machine.containers == "plain")


def test_the_page_has_this_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "docs/platforms.md is not what is tried: run `python -m tests.machines.catalogue`"
    )


@pytest.mark.parametrize(
    "home", [{}, {"PICLOUD_HOME": "/tmp/state"}], ids=["home", "environment"]
)
def test_a_path_that_this_python_cannot_read_is_named(
    home: dict[str, str], places: Places
) -> None:
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", **home}
    machine = catalogue.of_user("", variables=variables, environment="odd")
    place, installed = places.of(machine)
    code = "from picloud_jupyter import cloud; cloud.call(abs, -1)"
    done = machine.run(installed, place, "-c", code)
    assert "reads names of files as ascii: set PYTHONUTF8=1" in done.stderr
    assert "InvalidRequest: b'/var/tmp/" in done.stderr


# ------------------------------------------------------------- machines where nothing can run yet
@pytest.mark.parametrize(
    ("prepare", "variables", "words"),
    [
        pytest.param(
            "true",
            {"HOME": None},
            "HOME is not set, and uid 54321 has no account here",
            id="no home and no account",
        ),
        pytest.param(
            catalogue.READ_ONLY_HOME, {}, "Read-only file system", id="read-only home"
        ),
        pytest.param(
            catalogue.FULL_TMP, {}, "the disk is full (/tmp/picloud-54321-", id="/tmp full"
        ),
    ],
)
def test_a_machine_without_a_place_for_the_service_is_told_so(
    prepare: str, variables: dict[str, str | None], words: str, places: Places
) -> None:
    machine = catalogue.of_user("", prepare, variables=variables)
    place, installed = places.of(machine)
    done = machine.run(installed, place, "-m", "picloud_jupyter.cli", "up")
    assert done.returncode, done.stdout
    assert words in done.stderr
    assert "PICLOUD_HOME" in done.stderr
    assert "Traceback" not in done.stderr
    doctor = machine.run(installed, place, "-m", "picloud_jupyter.cli", "doctor")
    assert words in doctor.stdout + doctor.stderr
