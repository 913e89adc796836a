"""The plain kind beyond the contract: who inherits, what a crash leaves, what it is not."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent import overlay, syscalls
from picloud_services.agent.process_table import read_process, read_table
from tests.tools.container_harness import Lab, wait


@pytest.fixture
def lab() -> Iterator[Lab]:
    place = Path(tempfile.mkdtemp(prefix="plain-"))
    yield Lab(ContainerKind.PLAIN, place, os.geteuid())
    syscalls.adopt_orphans(wanted=False)  # this process goes on to other tests
    overlay.remove_tree(str(place))


def children() -> set[int]:
    """Return the processes that we could wait for, dead ones too."""
    return {pid for pid, found in read_table().items() if found.parent == os.getpid()}


def test_start_then_the_host_is_visible_as_the_label_says(lab: Lab) -> None:
    code = "import json, os; print(json.dumps([os.path.isdir('/proc/%s' % os.getppid()), os.getuid()]))"
    assert lab.run(code).words == [True, os.geteuid()]


def test_start_then_it_has_a_session_of_its_own_and_no_privileges_to_gain(lab: Lab) -> None:
    code = "import json, os; print(json.dumps([os.getsid(0) == os.getpid(), 'NoNewPrivs:\\t1' in open('/proc/self/status').read()]))"
    assert lab.run(code).words == [True, True]


def test_kill_when_other_children_run_then_they_are_left_alone(lab: Lab) -> None:
    bystander = os.fork()
    if bystander == 0:
        signal.pause()
    try:
        lab.run("import time; time.sleep(0.05)")
        found = read_process(bystander)
        assert found is not None
        assert found.state in "SR"
    finally:
        os.kill(bystander, signal.SIGKILL)
        os.waitpid(bystander, 0)


def test_kill_when_orphans_were_left_then_no_dead_child_remains(lab: Lab) -> None:
    code = """if True:
        import os, time
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(60)
                os._exit(0)
        print("made", flush=True)
        time.sleep(60)"""
    before = children()  # of other tests
    out, out_fd = os.pipe()
    request = lab.request(out_fd, out_fd, command_tail=("-S", "-E", "-s", "-c", code))
    container = lab.container()
    running = container.start(request)
    os.close(out_fd)
    assert os.read(out, 5) == b"made\n"
    container.kill(running)
    assert os.WTERMSIG(wait(running.pid)) == signal.SIGKILL
    container.clean(request, running)
    assert os.read(out, 1) == b"", "somebody still holds the pipe"
    os.close(out)
    assert children() <= before
