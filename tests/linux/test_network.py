"""What containers reach, by each mode, on a machine made of namespaces (see network_world.py)."""

import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.root]

TOOLS = Path(__file__).parents[1] / "tools"
ROOT = TOOLS.parents[1]


@pytest.fixture(scope="module")
def sources() -> Iterator[Path]:
    """Yield a copy of the sources that every user of this machine may read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for package in ("picloud_jupyter/protocol", "services/picloud_services"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, folder / Path(package).name, ignore=ignored)
        (folder / "picloud_jupyter").mkdir()
        (folder / "protocol").rename(folder / "picloud_jupyter" / "protocol")
        yield folder


@functools.cache
def run_world(sources: Path, mode: str, who: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        done = subprocess.run(
            ["/usr/bin/python3", str(TOOLS / "network_world.py"), mode, folder, who],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(sources)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=["root", "user"])
def pasta(request, sources):
    return run_world(sources, "pasta", request.param)


@pytest.fixture(scope="module", params=["root", "user"])
def proxy(request, sources):
    return run_world(sources, "proxy", request.param)


@pytest.fixture(scope="module", params=["pasta", "proxy"])
def world(request, sources):
    return run_world(sources, request.param, "root")


def test_choose_when_pasta_works_then_it_is_chosen(pasta):
    assert (pasta["chosen"], pasta["why"]) == ("pasta", "")
    assert pasta["words"] == ["", "", ""]


def test_pasta_when_connected_then_reaches_services_of_the_machine_and_names(pasta):
    reached = pasta["internet"]
    assert reached["public"] == "public"
    assert reached["by_name"] == "public"
    assert reached["names"] == ["10.77.0.1"]
    assert reached["public_6"] == "connected"


FORBIDDEN = [
    *("loopback", "gateway", "resolver", "metadata", "metadata_bound"),
    *("metadata_6", "metadata_6_bound", "link_local", "link_local_bare"),
]


@pytest.mark.parametrize("target", FORBIDDEN)
def test_pasta_when_target_is_forbidden_then_is_not_reached(pasta, target):
    assert pasta["internet"][target].startswith("failed: ")


def test_proxy_when_connected_then_reaches_services_of_the_machine_and_names(proxy):
    reached = proxy["internet"]
    assert reached["public"] == "public"
    assert reached["by_name"] == "public"
    assert reached["tunnel_public"] == "HTTP/1.1 200 Connection established"


def test_proxy_when_target_is_forbidden_then_is_refused(proxy):
    reached = proxy["internet"]
    assert reached["loopback"].startswith("failed: ")
    assert reached["metadata"].startswith("failed: ")
    assert "403" in reached["metadata_get"]
    assert reached["tunnel_loopback"] == "HTTP/1.1 403 Forbidden"
    assert reached["tunnel_metadata"] == "HTTP/1.1 403 Forbidden"


def test_proxy_when_used_then_counts_bytes(proxy):
    received, sent = proxy["traffic"]
    assert received > 0
    assert sent > 0


def test_is_ready_when_it_is_still_being_connected_then_jobs_wait(world):
    assert world["early"] == [False, False, True]
    assert world["words"] == ["", "", ""]


def test_containers_when_side_by_side_then_do_not_reach_each_other(world):
    assert world["neighbour"].startswith("failed: ")
    assert [text[:7] for text in world["inwards"]] == ["failed:"] * 3


def test_policy_when_none_then_nothing_is_reached(world):
    assert all(str(answer).startswith("failed: ") for answer in world["none"].values())


def test_pasta_when_it_dies_then_the_container_is_connected_again(pasta):
    assert pasta["after_death"] == ["", "connected"]


def test_suspend_when_idle_then_pasta_ends_and_wait_ready_brings_it_back(pasta):
    assert pasta["suspended"] == [False, False]
    assert pasta["resumed"] == ["", "connected"]


def test_agent_when_it_restarts_then_the_connection_is_taken_up(pasta):
    assert pasta["kept"]
    assert pasta["taken_up"] == ["", True, "connected"]


def test_sweep_when_a_container_is_gone_then_its_pasta_ends(pasta):
    assert pasta["swept"]
