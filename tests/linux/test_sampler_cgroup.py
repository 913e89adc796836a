"""Samples of real control groups."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from picloud_services.agent import cgroup
from picloud_services.agent.sampler import SampledContainer, Sampler

pytestmark = [pytest.mark.root]

LIMITS = cgroup.CgroupLimits(memory_bytes=200_000_000, cpu_cores=1.0, pids=20)
WORK = """
import time
data = bytearray(50_000_000)
end = time.process_time() + 0.3
while time.process_time() < end: pass
print("+", flush=True)
input()
"""


@pytest.fixture
def tree():
    found = cgroup.detect()
    assert found is not None, "root needs control groups"
    return found


class Group:
    """A process in a control group of its own."""

    def __init__(self, tree: cgroup.CgroupTree, name: str, command: list[str]) -> None:
        self.folders = cgroup.create(tree, name, LIMITS)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: cgroup.enter(self.folders),  # noqa: PLW1509  # no threads here
        )

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        cgroup.remove(self.folders)


def container(name: str, group: Group) -> SampledContainer:
    return SampledContainer(name, os.getpid(), group.process.pid, group.folders)


async def test_sample_when_in_a_cgroup_then_has_its_counters(tree):
    sampler = Sampler(lambda _: None, lambda *_: None)
    command = [sys.executable, "-S", "-c", WORK]
    with Group(tree, f"sampler-{os.getpid()}", command) as group:
        assert group.process.stdout is not None
        group.process.stdout.readline()
        sampler.add(container("a", group))
        sampler.set_running("a", 7)
        [sample] = sampler.sample()
        sampler.remove("a")
    assert sample.cpu_seconds >= 0.3
    assert sample.memory_bytes > 50_000_000
    assert sample.processes == 1
    assert not sample.approximate
    await sampler.stop()


async def test_sample_when_the_group_was_removed_then_others_are_still_read(tree):
    sampler = Sampler(lambda _: None, lambda *_: None)
    with ExitStack() as stack:
        groups = [
            stack.enter_context(Group(tree, f"sampler-{os.getpid()}-{i}", ["sleep", "60"]))
            for i in range(2)
        ]
        for jid, group in enumerate(groups):
            sampler.add(container(str(jid), group))
            sampler.set_running(str(jid), jid)
        assert len(sampler.sample()) == 2
        groups[0].process.kill()
        groups[0].process.wait()
        cgroup.remove(groups[0].folders)
        assert [s.jid for s in sampler.sample()] == [1]
    await sampler.stop()
