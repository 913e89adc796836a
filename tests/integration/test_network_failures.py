"""What happens when a container cannot be connected: jobs run, and it is tried again later."""

import os

import pytest

from picloud_jupyter.protocol.jobs import ContainerKind, NetworkPolicy
from picloud_services.agent import network as network_module
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
