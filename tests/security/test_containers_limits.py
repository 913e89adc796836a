"""Negative test 36: what a job in a container cannot use up, and what plain processes are called."""

import ctypes
import errno
from pathlib import Path

import pytest

from picloud_jupyter.cli.service import isolation_words
from picloud_jupyter.protocol.jobs import ContainerKind
from tests.tools.container_harness import Lab, isolated_kinds
from tests.tools.probes import PRELUDE, probe

pytestmark = [pytest.mark.isolation, pytest.mark.root]

FORK_BOMB = """
made = 0
try:
    while made < 20_000:
        if os.fork() == 0:
            signal.pause()
        made += 1
except BlockingIOError:
    pass
print(json.dumps(made), flush=True)
os.kill(-1, signal.SIGKILL)"""
THREADS = """
import threading
made, end = 0, threading.Event()
try:
    while made < 20_000:
        threading.Thread(target=end.wait, daemon=True).start()
        made += 1
except RuntimeError:
    pass
print(json.dumps(made), flush=True)
os._exit(0)"""
FILES = """
opened = []
try:
    while len(opened) < 2_000_000:
        opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError as exc:
    count = len(opened)
    os.closerange(opened[0], opened[-1] + 1)
    print(json.dumps([count, exc.errno]))"""
SHARED_MEMORY = """
written = 0
try:
    with open("/dev/shm/fill", "wb", buffering=0) as file:
        while written < 1 << 30:
            written += file.write(bytes(1 << 22))
except OSError as exc:
    os.unlink("/dev/shm/fill")
    print(json.dumps([written, exc.errno]))"""


@pytest.mark.parametrize("bomb", [FORK_BOMB, THREADS], ids=["processes", "threads"])
def test_36_processes_and_threads_have_a_limit(lab: Lab, bomb: str) -> None:
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    made = lab.run(PRELUDE + bomb, pids=64).words
    # Without control groups the kernel counts the user's processes, and the limit is above what runs.
    assert made <= (64 if lab.kind is ContainerKind.ROOT else 64 + running + 50)


def test_36_open_files_have_a_limit_and_there_are_no_core_dumps(lab: Lab) -> None:
    opened, error = lab.run(PRELUDE + FILES).words
    assert opened < 2_000_000
    assert error == errno.EMFILE
    found = probe(
        lab,
        {
            "core": "resource.getrlimit(resource.RLIMIT_CORE)",
            "more": "resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))",
        },
    )
    assert found["core"] == ["done", "(1, 1)"], "1 keeps programs that take dumps out, too"
    assert found["more"][0] == "refused"


def test_36_shared_memory_counts_as_the_jobs_memory(lab: Lab) -> None:
    memory_bytes = 64 << 20
    ended = lab.run(PRELUDE + SHARED_MEMORY, memory_bytes=memory_bytes)
    if ended.out:
        written, error = ended.words
        assert written <= memory_bytes
        assert error == errno.ENOSPC
    else:
        assert (ended.status, ended.oom_count) == (9, 1)


def test_plain_processes_are_said_to_be_not_isolated() -> None:
    assert "not isolated" in isolation_words({"container_kind": "plain"}).lower()
    for kind in isolated_kinds():
        assert "not isolated" not in isolation_words({"container_kind": kind}).lower()


def test_these_numbers_are_for_this_machine() -> None:
    assert ctypes.sizeof(ctypes.c_ulong) == 8
