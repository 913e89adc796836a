"""What root's own containers need: environments in closed folders, files with root's owners."""

import contextlib
import dataclasses
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent import bubblewrap, cgroup, overlay, root_stage, spawn
from picloud_services.agent.binds import Bind, Layer
from picloud_services.agent.container import ContainerError
from picloud_services.agent.mounts import parse_mountinfo
from picloud_services.agent.processes import find_process
from picloud_services.agent.uids import POOL_FIRST
from tests.tools.container_harness import Lab, describe_python, labs

pytestmark = [
    pytest.mark.isolation,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    place = Path(tempfile.mkdtemp(prefix="root-"))
    yield labs(place)["root"]
    overlay.remove_tree(str(place))


@pytest.fixture
def place() -> Iterator[list[Path]]:
    made: list[Path] = []
    yield made
    for path in made:
        shutil.rmtree(path)


_LOOK = """
import json, os, sys
sys.path += sys.argv[1].split(":")
import only_here
print(json.dumps([sys.executable, only_here.__file__, os.getuid()]))
"""


@pytest.mark.parametrize("where", ["/root", "/home", "/tmp", "/opt"])
def test_start_when_the_environment_is_in_a_closed_folder_then_it_is_there(
    lab: Lab, place: list[Path], where: str
) -> None:
    base = Path(tempfile.mkdtemp(prefix="project-", dir=where))
    place.append(base)
    base.chmod(0o700)
    environment = base / "env"
    previous = os.umask(0o077)  # everything in it is for root alone
    try:
        venv.create(environment, symlinks=True, with_pip=False)
        library = (
            environment / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
        )
        (library / "only_here.py").write_text("x = 1")
    finally:
        os.umask(previous)
    python = describe_python(str(environment / "bin" / "python"))
    ended = lab.run(_LOOK, arguments=(":".join(python.sys_path),), host_python=python)
    executable, module, uid = ended.words
    assert executable == python.executable
    assert module == str(library / "only_here.py")
    assert uid >= POOL_FIRST


def test_start_when_the_path_to_the_python_is_a_link_then_the_link_is_there(
    lab: Lab, place: list[Path]
) -> None:
    base = Path(tempfile.mkdtemp(prefix="links-", dir="/root"))
    place.append(base)
    venv.create(base / "versions" / "1", symlinks=True, with_pip=False)
    (base / "current").symlink_to("versions/1")
    (base / "env").symlink_to(base / "current")
    python = describe_python(str(base / "env" / "bin" / "python"))
    ended = lab.run("import sys, json; print(json.dumps(sys.executable))", host_python=python)
    assert ended.words == str(base / "env" / "bin" / "python")


def test_start_when_the_folder_is_for_root_alone_then_the_job_owns_what_it_sees(
    lab: Lab, place: list[Path]
) -> None:
    base = Path(tempfile.mkdtemp(prefix="work-", dir="/root"))
    place.append(base)
    (base / "sub").mkdir(mode=0o700)
    (base / "sub" / "private").write_text("x")
    (base / "sub" / "private").chmod(0o600)
    code = """if True:
        import json, os
        text = open("sub/private").read()
        open("sub/private", "a").write("y")
        open("sub/new", "w").write("z")
        print(json.dumps([text, open("sub/private").read(), os.stat("sub").st_uid == os.getuid(), ".ssh" in os.listdir("/root")]))"""

    def during(container, running, request):
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
        top = Path(request.layer_dir, "files")
        files = [path for path in sorted(top.rglob("*")) if path.is_file()]
        return [(str(path.relative_to(top)), path.stat().st_size) for path in files]

    ended = lab.run(code, folder=str(base), during=during)
    assert ended.words == ["x", "xy", True, False]
    assert [tuple(item) for item in ended.during] == [("sub/new", 1), ("sub/private", 2)]
    assert (base / "sub" / "private").read_text() == "x"
    assert stat.S_IMODE((base / "sub").stat().st_mode) == 0o700


def test_start_when_the_folder_is_etc_then_root_s_secrets_stay_closed(lab: Lab) -> None:
    code = """if True:
        import json
        try:
            open("shadow").read()
            print(json.dumps("read"))
        except PermissionError:
            print(json.dumps("denied"))"""
    assert lab.run(code, folder="/etc").words == "denied"


def test_start_when_the_bwrap_is_in_a_closed_folder_then_it_works(
    lab: Lab, place: list[Path]
) -> None:
    from picloud_jupyter.protocol.jobs import ContainerKind
    from picloud_services.agent import trial
    from picloud_services.agent.kinds import make_container

    wheel = Path(trial.find_programs()[-1])
    base = Path(tempfile.mkdtemp(prefix="wheel-", dir="/root"))
    place.append(base)
    package = wheel.parent.parent
    shutil.copytree(package, base / package.name)
    shutil.copytree(f"{package}.libs", base / f"{package.name}.libs")
    program = base / package.name / "_bin" / "bwrap"
    lab.container = lambda: make_container(ContainerKind.ROOT, str(program))  # type: ignore[method-assign]
    try:
        assert lab.run("print(1)").words == 1
    finally:
        del lab.container


def test_start_then_the_host_s_mounts_are_as_before(lab: Lab) -> None:
    before = parse_mountinfo(Path("/proc/self/mountinfo").read_text())

    def during(container, running, request):
        return Path("/proc/self/mountinfo").read_text()

    ended = lab.run("import time; time.sleep(0.2)", during=during)
    assert parse_mountinfo(ended.during) == before


def test_start_when_the_disk_is_full_then_the_reason_is_disk_full(lab: Lab) -> None:

    place = Path(tempfile.mkdtemp(prefix="full-", dir="/mnt"))
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True, timeout=10
    )
    try:
        filler = place / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        os.mkdir(place / "run")
        request = lab.request(1, 2, layer_dir=str(place / "layer"))
        with pytest.raises(ContainerError) as raised:
            lab.container().start(request)
        assert raised.value.reason == "disk_full"
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=10)
        place.rmdir()


def test_start_when_a_link_is_on_the_way_to_a_volume_then_root_makes_nothing_behind_it(
    lab: Lab, place: list[Path]
) -> None:
    """A user's link could lead to a folder of somebody else below another volume."""
    base = Path(tempfile.mkdtemp(prefix="shared-", dir="/opt"))
    place.append(base)
    base.chmod(0o755)
    for name, mode in {"shared": 0o777, "shared/somebody_s": 0o700, "users": 0o755}.items():
        (base / name).mkdir()
        (base / name).chmod(mode)
    (base / "users" / "link").symlink_to("/shared/somebody_s")
    volumes = [(str(base / "shared"), "/shared", "rw"), (str(base / "users"), "/mnt", "ro")]
    nobody: dict[str, Any] = {
        "request": {"host_uid": 65_534},
        "user_id": 65_534,
        "host_python": describe_python("/usr/bin/python3"),
    }
    for source in (base / "users", "/etc/hostname"):
        volume = (str(source), "/mnt/link/new", "ro")
        with pytest.raises(ContainerError, match="a link or a file is on the way"):
            lab.run("", volumes=(*volumes, volume), **nobody)
    assert os.listdir(base / "shared" / "somebody_s") == []
    made = (str(base / "users"), "/shared/new/inside", "ro")  # with the rights of the user
    lab.run("", volumes=(*volumes, made), **nobody)
    assert (base / "shared" / "new" / "inside").stat().st_uid == 65_534


def test_start_when_a_disk_is_mounted_in_the_folder_then_it_is_seen(
    lab: Lab, place: list[Path]
) -> None:
    base = Path(tempfile.mkdtemp(prefix="work-", dir="/home"))
    place.append(base)
    base.chmod(0o755)
    (base / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", str(base / "disk")]
    subprocess.run(mount, check=True, timeout=10)
    try:
        (base / "disk" / "data").write_text("x")
        code = "import json; print(json.dumps(open('disk/data').read()))"
        assert lab.run(code, folder=str(base)).words == "x"
    finally:
        subprocess.run(["umount", str(base / "disk")], check=True, timeout=10)


def test_open_when_a_disk_of_the_machine_has_gone_meanwhile_then_it_is_left_out(
    tmp_path: Path,
) -> None:
    gone = str(tmp_path / "gone")
    layer = Layer(str(tmp_path))
    assert root_stage._open(Bind(gone, gone, base=True), layer, 0, None, None) is None
    with pytest.raises(FileNotFoundError):
        root_stage._open(Bind(gone, gone), layer, 0, None, None)


def test_start_when_the_user_has_no_account_any_more_then_the_error_says_so(lab: Lab) -> None:
    with pytest.raises(ContainerError, match="54320 has no account"):
        lab.run("", request={"host_uid": 54_320}, user_id=54_320)


@pytest.mark.parametrize("kind", [ContainerKind.ROOT, ContainerKind.PLAIN])
def test_start_when_what_failed_cannot_be_cleaned_yet_then_the_first_reason_is_told(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, kind: ContainerKind
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "a process of it sleeps on a disk")

    monkeypatch.setattr(cgroup, "remove", busy)
    python = dataclasses.replace(describe_python("/usr/bin/python3"), executable="/nowhere")
    other = dataclasses.replace(lab, kind=kind)
    with pytest.raises(ContainerError, match="/nowhere") as raised:
        other.run("", host_python=python)
    assert raised.value.reason == "env_missing"


def test_start_when_the_first_process_has_ended_already_then_its_own_words_tell_why(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, entered = cgroup.enter, []

    def late(group: tuple[str, ...], pid: int = 0) -> None:
        entered.append(pid)
        if len(entered) == 2:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        enter(group, pid)

    monkeypatch.setattr(cgroup, "enter", late)
    assert lab.run("import sys; sys.exit('what was said')").err == "what was said\n"
    assert len(entered) == 2


@pytest.mark.parametrize("said", [b"", b'{ "child-pid": '])
def test_start_when_what_makes_the_container_is_killed_then_it_is_lost_and_did_not_fail(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    def die(self: object, request: object, who: object, report_fd: int, gate_fd: int) -> None:
        os.write(report_fd, said)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(bubblewrap.BubblewrapContainer, "_become", die)
    with pytest.raises(ContainerError, match="was killed") as raised:
        lab.run("")
    assert raised.value.reason == "lost_worker"


def test_start_when_the_supervisor_is_killed_in_it_then_nothing_more_is_laid_out(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cleans up after it would be too early: the layer would be made anew behind it."""
    told, tell = os.pipe()

    def prepare(*_: object) -> None:
        os.write(tell, b"%d" % os.getpid())
        signal.pause()

    monkeypatch.setattr(overlay, "prepare", prepare)
    os.set_inheritable(tell, True)
    monkeypatch.setattr(spawn, "_close_others", lambda _keep: None)
    supervisor = os.fork()
    if supervisor == 0:
        try:
            lab.run("")
        finally:
            os._exit(1)
    maker = int(os.read(told, 100))
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    end_at = time.monotonic() + 5
    try:
        while find_process(maker) is not None:
            assert time.monotonic() < end_at, "it goes on"
            time.sleep(0.005)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(maker, signal.SIGKILL)
        os.close(told)
        os.close(tell)


def test_start_when_another_process_is_said_to_be_the_first_then_it_is_left_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    groups = Path(f"/proc/{bystander.pid}/cgroup")
    before = groups.read_text()
    entered: list[int] = []
    enter = cgroup.enter

    def noted(group: tuple[str, ...], pid: int = 0) -> None:
        entered.append(pid)
        enter(group, pid)

    monkeypatch.setattr(bubblewrap, "_first_process", lambda *_: bystander.pid)
    monkeypatch.setattr(cgroup, "enter", noted)
    try:
        with pytest.raises(ContainerError, match="is not bubblewrap's"):
            lab.run("")
        assert bystander.pid not in entered
        assert groups.read_text() == before
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
