"""Control groups of containers whose every process of ours was killed are removed by the next agent."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from picloud_services.agent import cgroup

LIMITS = cgroup.CgroupLimits(64 * 1024**2, 1.0, 20)


@pytest.fixture
def tree(monkeypatch):
    """Our groups, in a parent of this test's own."""
    found = cgroup.detect()
    if found is None:
        pytest.skip("no control groups of ours to write to")
    inner = f"picloud-test-{os.getpid()}"
    folders = tuple((name, f"{folder}/{inner}") for name, folder in found.folders)
    yield replace(found, folders=folders)
    for _, folder in dict.fromkeys(folders):
        for path, _, _ in os.walk(folder, topdown=False):
            os.rmdir(path)


def test_group_of_nobody_goes(tree):
    group = cgroup.create(tree, "left", LIMITS)
    assert cgroup.sweep(tree, least_seconds=0) == ["left"]
    assert not any(os.path.exists(folder) for folder in group)


def test_group_that_is_partly_removed_goes_whole(tree):
    group = cgroup.create(tree, "left", LIMITS)
    os.rmdir(group[0])
    assert cgroup.sweep(tree, least_seconds=0) == ["left"]
    assert not any(os.path.exists(folder) for folder in group)


def test_group_that_is_new_stays(tree):
    cgroup.create(tree, "new", LIMITS)
    assert cgroup.sweep(tree) == []


def test_group_that_a_supervisor_holds_stays(tree):
    held = cgroup.hold(cgroup.create(tree, "held", LIMITS))
    assert cgroup.sweep(tree, least_seconds=0) == []
    os.close(held)
    assert cgroup.sweep(tree, least_seconds=0) == ["held"]


def test_group_in_which_something_runs_stays(tree):
    group = cgroup.create(tree, "running", LIMITS)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        cgroup.enter(group, process.pid)
        assert cgroup.sweep(tree, least_seconds=0) == []
        process.kill()
    assert cgroup.kill(group)
    cgroup.remove(group)
