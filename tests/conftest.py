"""Fixtures for every folder: a service of the test's own, one per container kind."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.service_under_test import ServiceUnderTest, kinds_of_this_machine
from tests.tools.two_users import TwoUsers, two_users_of_a_system

collect_ignore = ["tools", "security/fuzz.py"]  # programs and harnesses: nothing to collect


def pytest_configure(config: pytest.Config) -> None:
    """Let the services of this process use the cores as if they were alone on the machine.

    Else a test that waits until its jobs have all cores waits for the longest job of another service: of
    other tests that run at the same time, or of whoever works here.
    """
    folder = Path(f"/tmp/picloud-cores-{os.getpid()}")
    os.environ["PICLOUD_CORES_LEDGER"] = str(folder)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for ``service`` once per container kind of this machine."""
    if "service" in metafunc.fixturenames:
        metafunc.parametrize("service", kinds_of_this_machine(), indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, in words, what only root can do."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: mounts, namespaces, cgroups"))


@pytest.fixture(scope="session")
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceUnderTest]:
    """A running service in a home of its own; ``service.kind`` is its container kind."""
    started = ServiceUnderTest(tmp_path_factory.mktemp(f"home-{request.param}"), request.param)
    started.start()
    yield started
    started.end()


@pytest.fixture(scope="session")
def two_users() -> Iterator[TwoUsers]:
    """A running service of every user of this machine, with two real users; needs root."""
    with two_users_of_a_system() as found:
        yield found


@pytest.fixture
def own_service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceUnderTest]:
    """A service for this test alone, to be killed, filled or restarted; best kind of the machine."""
    started = ServiceUnderTest(tmp_path / "home", kinds_of_this_machine()[0])
    yield started
    started.end()


@pytest.fixture(autouse=True, scope="module")
def _no_jobs_left() -> Iterator[None]:
    """End what a module left running: it would hold the cores that other services wait for."""
    yield
    for running in tuple(ServiceUnderTest.running):
        running.kill_all()


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PICLOUD_") and name not in (
            "PICLOUD_HOME",
            "PICLOUD_CONTAINER_KIND",
            "PICLOUD_CORES_LEDGER",
        ):
            monkeypatch.delenv(name)
