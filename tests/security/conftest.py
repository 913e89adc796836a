"""A service to be attacked, and what it must be like afterwards."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from picloud_jupyter import cloud
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.frames import pack_frame
from picloud_jupyter.protocol.jobs import HostPython, JobSpec
from picloud_jupyter.transport.paths import service_paths
from tests.tools.container_harness import Lab, isolated_kinds, open_labs
from tests.tools.service_under_test import ServiceUnderTest, kinds_of_this_machine
from tests.tools.unix_requests import BASE_URL, unix_session

# What any service takes: the system's own Python, no folder.
PLAIN_SPEC: dict[str, Any] = to_wire(
    JobSpec("f", HostPython("/bin/sh", "/usr", "/usr", "3.11.2", paths=("/usr",)))
)


@dataclass
class Attacked:
    """A running service, and what one user has in it."""

    service: ServiceUnderTest
    socket: Path
    http: requests.Session
    done: int
    failed: int
    upload: str
    map: int

    @property
    def jobs_socket(self) -> Path:
        """Where code inside containers asks."""
        return service_paths(self.service.home).jobs_socket

    def free_bytes(self) -> int:
        """Return how much room is left where it keeps its state."""
        return shutil.disk_usage(self.service.home).free

    def process(self) -> psutil.Process:
        """Return its control plane."""
        return psutil.Process(
            self.http.get(BASE_URL + routes.SERVICE, timeout=30).json()["pid"]
        )

    def log(self) -> str:
        """Return what it wrote into its log."""
        return (self.service.home / "service.log").read_text()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """A running service of this module with a finished job, a failed one, an upload and an open map."""
    running = ServiceUnderTest(tmp_path_factory.mktemp("home"), kinds_of_this_machine()[0])
    running.start()
    try:
        found = _furnish(running)
        yield found
        found.http.close()
    finally:
        running.end()


def _furnish(running: ServiceUnderTest) -> Attacked:
    def say(number: int) -> int:
        print("said")
        return number

    def fail() -> None:
        raise ValueError("as it should")

    done, failed = cloud.call(say, 3), cloud.call(fail)
    cloud.join([done, failed], ignore_errors=True)
    client = session().client
    upload = client.post(routes.UPLOADS, {"size_bytes": 5})["upload"]
    socket = service_paths(running.home).api_socket
    http = unix_session(socket)
    header = {"spec": PLAIN_SPEC, "key": "m" * 32, "count": None, "function": {"size_bytes": 1}}
    answer = http.post(BASE_URL + routes.MAPS, data=pack_frame(header, b"f"), timeout=30)
    a_map = answer.json()["map"]
    return Attacked(running, socket, http, int(done), int(failed), upload, a_map)


# ------------------------------------------------------------------- containers without a service
@pytest.fixture(scope="session")
def all_labs() -> Iterator[dict[str, Lab]]:
    """Makers of containers, by kind."""
    with open_labs("security-") as found:
        yield found


@pytest.fixture(params=isolated_kinds())
def lab(request: pytest.FixtureRequest, all_labs: dict[str, Lab]) -> Lab:
    """A maker of containers, once for each kind that isolates."""
    return all_labs[request.param]
