"""GPUs in containers: device files that tests make stand for those of the driver."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from picloud_services.agent import overlay
from picloud_services.agent.gpus import device_files, find_gpus
from tests.tools.container_harness import Lab, isolated_kinds, labs

pytestmark = [pytest.mark.root, pytest.mark.isolation]

NULL, ZERO = os.makedev(1, 3), os.makedev(1, 5)
LOOK = """if True:
    import glob, json, os, sys
    found = {}
    for path in sorted(glob.glob("/dev/nvidia*")):
        state = os.stat(path)
        with open(path, "r+b", buffering=0) as file:
            found[path] = [os.major(state.st_rdev), os.minor(state.st_rdev), len(file.read(4))]
    try:
        os.unlink("/dev/nvidia0")
        removed = True
    except OSError:
        removed = False
    try:
        library = open(sys.argv[1]).read()
    except OSError as exc:
        library = type(exc).__name__
    print(json.dumps([found, removed, os.listdir("/dev/shm"), library]))"""


@pytest.fixture(scope="module")
def place():
    folder = Path(tempfile.mkdtemp(prefix="gpus-"))
    folder.chmod(0o711)
    yield folder
    overlay.remove_tree(str(folder))


@pytest.fixture(scope="module")
def all_labs(place: Path) -> dict[str, Lab]:
    return labs(place)


@pytest.fixture(scope="module")
def devices(place: Path) -> Path:
    folder = place / "dev"
    folder.mkdir(mode=0o755)
    for name, number in (("nvidia0", NULL), ("nvidia1", ZERO), ("nvidiactl", NULL)):
        os.mknod(folder / name, 0o666 | stat.S_IFCHR, number)
        (folder / name).chmod(0o666)
    return folder


@pytest.fixture(params=isolated_kinds())
def lab(request: pytest.FixtureRequest, all_labs: dict[str, Lab]) -> Lab:
    return all_labs[request.param]


def test_start_when_a_job_has_a_gpu_then_it_sees_that_device_alone(
    lab: Lab, devices: Path
) -> None:
    facts = find_gpus(str(devices))
    given = device_files(facts.gpus[1:], facts.shared)
    library = devices.parent / "libcuda.so.1"  # where the base does not show it
    library.write_text("a library")
    library.chmod(0o644)
    request = {"devices": given, "libraries": (str(library),)}
    found, removed, memory, text = lab.run(
        LOOK, arguments=(str(library),), request=request
    ).words
    assert found == {"/dev/nvidia1": [1, 5, 4], "/dev/nvidiactl": [1, 3, 0]}
    assert not removed
    assert memory == []
    assert text == "a library"


def test_start_when_a_job_has_none_then_it_sees_none(lab: Lab, devices: Path) -> None:
    found, _, _, text = lab.run(LOOK, arguments=(str(devices / "nvidia0"),)).words
    assert found == {}
    assert text in ("FileNotFoundError", "PermissionError")


def test_start_when_a_device_is_gone_then_the_container_is_not_made_and_says_which(
    lab: Lab, devices: Path
) -> None:
    def work():
        request = lab.request(1, 2, devices=((f"{devices}/nvidia7", "/dev/nvidia7"),))
        try:
            lab.container().start(request)
        except Exception as exc:
            return [type(exc).__name__, str(exc), os.path.exists(request.layer_dir)]

    name, text, left = lab.do(work)
    assert name == "ContainerError"
    assert "nvidia7" in text
    assert not left
