"""What happens when a container cannot be connected: jobs run, and it is tried again later."""

import errno
import os
import signal
import subprocess

import pytest

from picloud_jupyter.protocol.jobs import ContainerKind, NetworkPolicy
from picloud_services.agent import namespace_calls, namespace_helper
from picloud_services.agent import network as network_module
from picloud_services.agent.namespace_calls import Answer
from picloud_services.agent.network import Network, NetworkChoice, choose_network
from picloud_services.agent.network_plan import NO_RESOLVER, NetworkMode

INTERNET, NONE = NetworkPolicy.INTERNET, NetworkPolicy.NONE
GONE = 2**22 + 5  # no process has this pid


@pytest.fixture(params=[NetworkMode.PROXY, NetworkMode.PASTA])
async def network(request, tmp_path):
    network = Network(NetworkChoice(request.param, "/usr/bin/pasta"), tmp_path / "network")
    yield network
    await network.close(keep=False)


async def test_attach_when_the_process_is_gone_then_words_say_so_and_jobs_may_start(network):
    network.attach("a", GONE, os.getuid(), os.getgid(), INTERNET)
    assert not network.is_ready("a")
    assert str(GONE) in await network.wait_ready("a")
    assert network.is_ready("a")
    assert await network.wait_ready("a")


async def test_wait_ready_when_some_time_passed_then_tries_again(network, monkeypatch):
    monkeypatch.setattr(network_module, "FAILED_SECONDS", 0.0)
    network.attach("a", GONE, os.getuid(), os.getgid(), INTERNET)
    assert await network.wait_ready("a")
    assert not network.is_ready("a")


async def test_attach_when_the_process_shares_the_machines_network_then_is_refused(network):
    network.attach("a", os.getpid(), os.getuid(), os.getgid(), INTERNET)
    assert "own network namespace" in await network.wait_ready("a")


@pytest.fixture
def bystander():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def answering(pid):
    async def ask(_request):
        return Answer("", pid)

    return ask


async def test_attach_when_pasta_is_said_to_be_a_process_of_another_user_then_it_is_not_ended(
    tmp_path, monkeypatch, bystander
):
    monkeypatch.setattr(network_module, "ask", answering(bystander.pid))
    network = Network(NetworkChoice(NetworkMode.PASTA, "/usr/bin/pasta"), tmp_path / "network")
    network.attach("a", GONE, os.getuid() + 1, os.getgid(), INTERNET)
    assert "not the user's" in await network.wait_ready("a")
    await network.detach("a")
    assert bystander.poll() is None


async def test_attach_when_the_disk_is_full_then_no_pasta_stays_that_nobody_knows(
    tmp_path, monkeypatch, bystander
):
    monkeypatch.setattr(network_module, "ask", answering(bystander.pid))

    def full(_path, _process):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(network_module, "_write_state", full)
    network = Network(NetworkChoice(NetworkMode.PASTA, "/usr/bin/pasta"), tmp_path / "network")
    network.attach("a", GONE, os.getuid(), os.getgid(), INTERNET)
    assert "No space left" in await network.wait_ready("a")
    assert bystander.wait(5) == -signal.SIGKILL
    await network.close(keep=False)


async def test_suspend_then_the_container_is_not_ready_at_once(
    tmp_path, monkeypatch, bystander
):
    """A job that comes now must not find a network that ends a moment later."""
    monkeypatch.setattr(network_module, "ask", answering(bystander.pid))
    network = Network(NetworkChoice(NetworkMode.PASTA, "/usr/bin/pasta"), tmp_path / "network")
    network.attach("a", GONE, os.getuid(), os.getgid(), INTERNET)
    assert await network.wait_ready("a") == ""
    network.suspend("a")
    assert not network.is_ready("a")
    assert bystander.wait(5) == -signal.SIGKILL
    await network.close(keep=False)


async def test_ask_then_a_descriptor_is_not_left_to_programs_that_are_started_later(
    tmp_path, monkeypatch
):
    helper = tmp_path / "helper.py"
    helper.write_text(
        "import socket, sys\n"
        "socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b'+0'], [0])\n"
    )
    monkeypatch.setattr(namespace_helper, "__file__", str(helper))
    answer = await namespace_calls.ask([])
    assert not os.get_inheritable(answer.fds[0])
    os.close(answer.fds[0])


async def test_detach_when_still_connecting_then_waits_and_forgets(network):
    network.attach("a", GONE, os.getuid(), os.getgid(), INTERNET)
    await network.detach("a")
    await network.detach("a")
    assert network.is_ready("a")
    assert await network.wait_ready("a") == ""


async def test_sweep_when_a_state_file_is_broken_then_it_is_removed(network, tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "x.json").write_text("{")
    network.sweep([])
    assert not (tmp_path / "network" / "x.json").exists()


def test_resolver_when_names_are_resolved_outside_then_says_so(tmp_path):
    network = Network(NetworkChoice(NetworkMode.PROXY), tmp_path)
    assert network.resolver(INTERNET) == network.resolver(NONE) == NO_RESOLVER
    assert "http_proxy" in network.variables(INTERNET)
    assert network.variables(NONE) == {}


async def test_choose_when_plain_then_the_machines_network_and_says_so(tmp_path):
    choice = await choose_network(ContainerKind.PLAIN, os.getuid(), os.getgid())
    assert choice.mode is NetworkMode.HOST
    assert "loopback" in choice.why
    network = Network(choice, tmp_path)
    assert network.mode(NONE) is NetworkMode.HOST
    assert network.resolver(INTERNET) is None
