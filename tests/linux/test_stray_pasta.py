"""A network whose container is gone ends, whoever was killed before; with a real pasta."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from picloud_services.agent import namespace_helper
from picloud_services.agent.leftovers import end_stray_pasta
from picloud_services.agent.namespace_calls import ask, pasta_request
from picloud_services.agent.network import find_pasta, host_network
from picloud_services.agent.network_plan import PastaPlan, plan_pasta
from picloud_services.agent.processes import find_process

pytestmark = [pytest.mark.root]

JOB_UID = 2_000_000_123


@pytest.fixture
def container() -> Iterator[int]:
    child = namespace_helper._make_namespaces(JOB_UID, JOB_UID)
    yield child
    with contextlib.suppress(ChildProcessError):  # the test ended it
        os.waitpid(child, os.WNOHANG)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def test_pasta_serves_as_long_as_its_container_lives(container):
    program, plan = find_pasta(), plan_pasta(host_network())
    if program is None or not isinstance(plan, PastaPlan):
        pytest.skip("there is no pasta, or no network")
    request = [*pasta_request(program, plan, JOB_UID, JOB_UID), f"pid={container}"]
    answer = await ask(request)
    assert answer.words == ""
    try:
        assert end_stray_pasta([answer.number]) == []
        os.kill(container, signal.SIGSTOP)
        assert end_stray_pasta([answer.number]) == []
        os.kill(container, signal.SIGKILL)
        os.waitid(os.P_PID, container, os.WEXITED | os.WNOWAIT)
        assert end_stray_pasta([answer.number]) == []  # a zombie keeps its number
        os.waitpid(container, 0)
        ended = end_stray_pasta([answer.number])
        # newer versions of pasta leave by themselves
        assert ended == [answer.number] or find_process(answer.number) is None
    finally:
        if (pasta := find_process(answer.number)) is not None:
            pasta.kill()


def test_namespaces_of_a_trial_end_with_the_helper_that_made_them():
    program = f"""
        import time
        from picloud_services.agent.namespace_helper import _make_namespaces
        print(_make_namespaces({JOB_UID}, {JOB_UID}), flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as helper:
        assert helper.stdout is not None
        child = int(helper.stdout.readline())
        assert find_process(child) is not None
        helper.kill()
    end_at = time.monotonic() + 5
    while find_process(child) is not None:
        assert time.monotonic() < end_at
        time.sleep(0.01)
