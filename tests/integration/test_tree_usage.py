"""Trees of real processes."""

import os
import subprocess
import sys
import time

import pytest

from picloud_services.agent.tree_usage import ProcessTable

TREE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "x = bytearray(60_000_000); print('+', flush=True); input()"], stdin=0)
end = time.process_time() + 0.2
while time.process_time() < end: pass
open(sys.argv[1], "wb").write(bytes(1 << 20))
print("+", flush=True)
child.wait()
"""


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def tree(tmp_path):
    """Yield the pid of a process with one child that holds 60 MB; both wait for their stdin."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", TREE, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {b"+\n"}
    yield process.pid
    process.communicate(b"\n")


def test_usage_when_a_tree_works_then_counts_child_and_grandchild(tree):
    table = ProcessTable()
    table.refresh(verify=True)
    mine = table.usage(os.getpid())
    assert tree in table.descendants(os.getpid())
    assert mine.processes >= 2
    assert mine.resident_bytes > 60_000_000
    assert mine.cpu_seconds >= 0.2
    below = table.usage(tree)
    assert below.processes == 1
    assert 60_000_000 < table.proportional_bytes(tree) <= table.resident_bytes(tree)


def test_usage_when_the_root_is_gone_then_is_zero():
    table = ProcessTable()
    table.refresh(verify=True)
    assert table.usage(2**22 + 5).processes == 0


def test_refresh_when_a_process_starts_then_it_is_found_without_verifying(tree):
    table = ProcessTable()
    table.refresh(verify=True)
    with subprocess.Popen(["sleep", "60"]) as late:
        table.refresh(verify=False)
        found = table.descendants(os.getpid())
        late.kill()
    assert late.pid in found
    assert tree in found


def test_refresh_when_a_parent_dies_then_its_child_is_found_at_its_new_parent():
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=-3).pid)"
    table = ProcessTable()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code + "; input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        table.refresh(verify=True)
        assert orphan in table.descendants(parent.pid)
        parent.communicate(b"\n")
    try:
        subprocess.run(["true"], check=True)  # a new pid: something to look at again
        table.refresh(verify=False)
        assert orphan not in table.descendants(parent.pid)
        assert table._parents[orphan] != parent.pid
    finally:
        os.kill(orphan, 9)
