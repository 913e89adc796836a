"""What goes wrong, each with a clear end from the closed list, and nothing else hurt."""

import ctypes
import operator
import os
import subprocess
import sys
import time

import pytest

from picloud_jupyter import cloud
from tests.tools.platforms_page import skip_as_the_page_says
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]


def end(jid, timeout=30):
    """Return (status, end reason, text of the error) of a job that does not end well."""
    with pytest.raises(cloud.CloudException) as caught:
        cloud.result(jid, timeout=timeout)
    return cloud.status(jid), caught.value.reason, str(caught.value)


def processes_with(word):
    """Return the processes of this machine whose command line has ``word`` in it."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as f:
                    if word in f.read():
                        found.append(name)
            except OSError:
                pass
    return found


@pytest.fixture(autouse=True)
def others_go_on():
    """After each test an innocent job must still run."""
    yield
    assert cloud.result(cloud.call(lambda: "fine"), timeout=30) == "fine"


def test_sys_exit():
    status, reason, text = end(cloud.call(sys.exit, 3))
    assert (status, reason) == ("error", "error")
    assert "sys.exit" in text or "SystemExit" in text


@pytest.mark.parametrize("restartable", [True, False])
def test_os_exit(restartable):
    status, reason, text = end(cloud.call(os._exit, 3, _restartable=restartable))
    assert (status, reason) == ("error", "crashed")
    assert "3" in text


def test_segfault():
    status, reason, text = end(cloud.call(lambda: ctypes.string_at(0)))
    assert (status, reason) == ("error", "crashed")
    assert "SIGSEGV" in text


def test_killed_from_inside_is_poison_after_three_losses():
    def suicide():
        os.kill(os.getpid(), 9)

    status, reason, _ = end(cloud.call(suicide))
    assert status == "error"
    assert reason in ("poison", "lost_worker", "crashed")


@pytest.mark.parametrize("fresh", [True, False])
def test_out_of_memory_says_the_limit(fresh):
    def eat():
        blocks = []
        while True:
            blocks.append(bytearray(50_000_000))

    cloud.result(cloud.call(lambda: 1, _type="s1"))
    status, reason, text = end(cloud.call(eat, _type="s1", _kill_process=fresh), timeout=60)
    assert (status, reason) == ("error", "oom")
    assert "GiB" in text or "MiB" in text


class Hog:
    """Fills the memory while it is loaded: before its function is called."""

    def __reduce__(self):
        return eval, ("[bytearray(b'x') * 50_000_000 for _ in range(10_000)]",)


def test_out_of_memory_while_the_function_is_loaded_ends_too():
    hog = Hog()
    status, reason, text = end(cloud.call(lambda: hog, _type="s1"), timeout=60)
    assert (status, reason) == ("error", "oom")
    assert "GiB" in text or "MiB" in text


def test_fork_bomb(service):
    if service.kind == "plain":
        skip_as_the_page_says("no limit of processes of its own")

    def bomb():
        children = []
        while True:
            children.append(os.fork())
            if children[-1] == 0:
                time.sleep(60)

    _status, reason, text = end(cloud.call(bomb, _max_runtime=0.2))
    assert reason in ("error", "timeout", "oom")
    assert "BlockingIOError" in text or "Resource temporarily unavailable" in text


def test_deep_recursion():
    def deep(n):
        return deep(n + 1)

    status, reason, text = end(cloud.call(deep, 0))
    assert (status, reason) == ("error", "error")
    assert "RecursionError" in text


def test_infinite_output_is_cut():
    def flood():
        line = "x" * 10_000 + "\n"
        end_at = time.monotonic() + 3
        n = 0
        while time.monotonic() < end_at:
            sys.stdout.write(line)
            n += len(line)
        return n

    jid = cloud.call(flood)
    written = cloud.result(jid, timeout=60)
    text = cloud.info(jid, "stdout")[jid]["stdout"]
    assert len(text) <= 70_000
    assert written > 1_000_000


def test_output_that_is_not_text():
    jid = cloud.call(lambda: os.write(1, b"\xff\xfe\x00abc") and None)
    cloud.join(jid)
    assert "abc" in cloud.info(jid, "stdout")[jid]["stdout"]


def test_arguments_that_do_not_load_there():
    class Trap:
        def __reduce__(self):
            return (operator.truediv, (1, 0))

    status, reason, text = end(cloud.call(lambda x: x, Trap()))
    assert (status, reason) == ("error", "input_undeserializable")
    assert "Python" in text


def test_result_that_does_not_load_here():
    class Trap:
        def __reduce__(self):
            return (operator.truediv, (1, 0))

    jid = cloud.call(Trap)
    with pytest.raises(cloud.CloudException, match="load"):
        cloud.result(jid)
    assert cloud.status(jid) == "done"


def test_listing_never_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    jid = cloud.call(lambda x: None, 1)
    cloud.join(jid)
    made = cloud.call(Bomb)
    cloud.join(made)
    cloud.info(made, ["stdout", "runtime", "function", "attributes"])
    repr(made)
    made._repr_html_()
    assert not (tmp_path / "pwned").exists()


def test_many_different_failures_do_not_hurt_a_map():
    def f(x):
        if x % 7 == 0:
            raise ValueError(x)
        if x == 10:
            os._exit(1)
        return x

    values = cloud.result(cloud.map(f, range(30)), ignore_errors=True)
    for x, value in enumerate(values):
        assert isinstance(value, cloud.CloudException) if x % 7 == 0 or x == 10 else value == x


def test_ignoring_sigterm_and_daemons_does_not_outlive_a_kill(service):
    def stubborn():
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "987654"])
            os._exit(0)
        time.sleep(600)

    jid = cloud.call(stubborn)
    eventually(lambda: processes_with(b"987654"))
    cloud.kill(jid)
    eventually(lambda: not processes_with(b"987654"), seconds=3)


def test_what_a_job_put_into_the_background_does_not_outlive_it():
    mark = str(900_000 + os.getpid())
    line = f"setsid sleep {mark} >/dev/null 2>&1 & echo begun"

    def leave(line):
        return subprocess.check_output(line, shell=True)

    assert cloud.result(cloud.call(leave, line), timeout=30) == b"begun\n"
    eventually(lambda: not processes_with(mark.encode()), seconds=10)
