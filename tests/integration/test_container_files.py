"""Folders of containers on disk, control groups of v2 on a recorded tree, the trial."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent import cgroup, overlay, trial
from picloud_services.agent.container import ContainerError
from picloud_services.agent.kinds import make_container
from tests.tools.container_harness import Lab


def test_remove_tree_when_it_is_gone_already_then_nothing_happens(tmp_path: Path) -> None:
    overlay.remove_tree(str(tmp_path / "none"))


def test_remove_tree_when_links_lead_out_then_they_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    tree = tmp_path / "tree"
    (tree / "sub" / "sub").mkdir(parents=True)
    (tree / "link").symlink_to(outside)
    (tree / "sub" / "link").symlink_to(outside / "kept")
    (tree / ".0").mkdir()  # a name that the removal itself would give
    (tree / ".0" / "file").write_text("x")
    os.mkfifo(tree / "sub" / "sub" / "fifo")
    overlay.remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "kept").read_text() == "x"


def test_remove_tree_when_the_folder_is_a_link_then_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="link"):
        overlay.remove_tree(str(tmp_path / "link"))
    assert (tmp_path / "real").is_dir()


def test_remove_tree_when_a_folder_becomes_a_link_meanwhile_then_what_it_names_is_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o755)
    swapped = tmp_path / "tree" / "tmp" / "swapped"
    swapped.mkdir(parents=True)
    list_folders = overlay._remove_files

    def list_then_swap(place: int) -> list[str]:
        names = list_folders(place)
        if names == ["swapped"]:
            swapped.rmdir()
            swapped.symlink_to(outside)
        return names

    monkeypatch.setattr(overlay, "_remove_files", list_then_swap)
    with pytest.raises(NotADirectoryError):
        overlay.remove_tree(str(tmp_path / "tree"))
    assert outside.stat().st_mode & 0o777 == 0o755
    overlay.remove_tree(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A delegated cgroup v2 as systemd gives one to a user, and a /proc/self that names it."""
    own = tmp_path / "fs" / "user.slice" / "picloud.scope"
    own.mkdir(parents=True)
    for name, text in {
        "cgroup.controllers": "cpu io memory pids\n",
        "cgroup.subtree_control": "\n",
        "cgroup.type": "domain\n",
        "cgroup.procs": "101\n102\n",
    }.items():
        (own / name).write_text(text)
    for folder in ("picloud", "picloud-service"):
        (own / folder).mkdir()
        (own / folder / "cgroup.subtree_control").write_text("")
        (own / folder / "cgroup.procs").write_text("")
    process = tmp_path / "self"
    process.mkdir()
    line = f"29 23 0:26 / {tmp_path}/fs rw - cgroup2 cgroup2 rw,nsdelegate\n"
    (process / "mountinfo").write_text(line)
    (process / "cgroup").write_text("0::/user.slice/picloud.scope\n")
    return tmp_path


def test_detect_when_v2_is_delegated_then_the_service_moves_and_controllers_are_handed_on(
    recorded: Path,
) -> None:
    tree = cgroup.detect(str(recorded / "self"))
    own = recorded / "fs" / "user.slice" / "picloud.scope"
    assert tree is not None
    assert tree.version == 2
    assert tree.group("c") == (f"{own}/picloud/c",)
    assert (own / "picloud-service" / "cgroup.procs").read_text()
    for folder in (own, own / "picloud"):
        assert "+memory +cpu +pids +io" in (folder / "cgroup.subtree_control").read_text()


def test_detect_when_v2_lacks_a_controller_then_limits_are_watched(recorded: Path) -> None:
    own = recorded / "fs" / "user.slice" / "picloud.scope"
    (own / "cgroup.controllers").write_text("memory pids\n")
    assert cgroup.detect(str(recorded / "self")) is None


def test_create_when_v2_then_limits_and_entry_are_written(recorded: Path) -> None:
    tree = cgroup.detect(str(recorded / "self"))
    assert tree is not None
    (group,) = tree.group("c")
    os.makedirs(group)
    for name in ("memory.max", "memory.oom.group", "cpu.max", "pids.max", "cgroup.procs"):
        Path(group, name).write_text("")
    limits = cgroup.CgroupLimits(memory_bytes=1 << 20, cpu_cores=2, pids=9)
    assert cgroup.create(tree, "c", limits) == (group,)
    cgroup.enter((group,), 4242)
    assert Path(group, "memory.max").read_text() == str(1 << 20)
    assert Path(group, "cpu.max").read_text() == "200000 100000"
    assert Path(group, "cgroup.procs").read_text() == "4242"


def test_reader_when_v2_then_the_peak_is_reset_through_its_own_descriptor(
    tmp_path: Path,
) -> None:
    for name, text in {
        "cgroup.controllers": "",
        "cpu.stat": "usage_usec 1000000\n",
        "memory.current": "5\n",
        "memory.peak": "9\n",
        "memory.events": "oom_kill 2\n",
        "pids.current": "3\n",
    }.items():
        (tmp_path / name).write_text(text)
    reader = cgroup.CgroupReader([str(tmp_path)])
    found = reader.read()
    assert (found.cpu_seconds, found.memory_peak_bytes, found.oom_count) == (1.0, 9, 2)
    reader.reset_peak()
    assert (tmp_path / "memory.peak").read_text().startswith("0")
    reader.close()
    reader.close()


def test_start_on_a_machine_without_rules_for_its_calls_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(ContainerKind.ROOTLESS, tmp_path, os.geteuid())
    request = lab.request(1, 2)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    with pytest.raises(ContainerError, match="this machine is riscv64"):
        make_container(lab.kind, "/usr/bin/bwrap").start(request)
    assert os.listdir(request.layer_dir) == []


@pytest.mark.isolation
def test_try_kinds_then_each_kind_works_or_says_why() -> None:
    trials = trial.try_kinds()
    assert [t.kind for t in trials] == list(trial.ORDER)
    for found in trials:
        assert found.works or found.why
        assert not (found.works and found.mend)
    best = ContainerKind.ROOT if os.geteuid() == 0 else ContainerKind.ROOTLESS
    assert trial.choose(trials, best.value).works, trials


def test_folders_of_trials_that_were_killed_are_removed(tmp_path, monkeypatch) -> None:
    long_ago = time.time() - 2 * trial.LEFT_SECONDS
    for name in ("picloud-trial-old", "picloud-trial-young", "other"):
        (tmp_path / name / "files").mkdir(parents=True)
        (tmp_path / name / "files" / "given").touch()
    (tmp_path / "picloud-trial-link").symlink_to(tmp_path / "other")
    for name in ("picloud-trial-old", "other", "picloud-trial-link"):
        os.utime(tmp_path / name, (long_ago, long_ago), follow_symlinks=False)
    left = {"picloud-trial-young", "other", "picloud-trial-link"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        trial._remove_abandoned(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == left | {"picloud-trial-old"}
    trial._remove_abandoned(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == left
    assert (tmp_path / "other" / "files" / "given").exists()


@pytest.mark.isolation
def test_try_kinds_then_the_process_adopts_no_orphans_afterwards() -> None:
    trial.try_kinds()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        child = os.getpid()
        if os.fork() == 0:
            while os.getppid() == child:
                os.sched_yield()
            os.write(write, str(os.getppid()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read, "rb") as file:
        assert int(file.read()) != os.getpid()
