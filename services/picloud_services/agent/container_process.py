"""The container of one supervisor: its request, its start, its end."""

import contextlib
import json
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent import cgroup
from picloud_services.agent.container import Container, ContainerRequest, RunningContainer
from picloud_services.agent.orders import RequestFields, StartOrder
from picloud_services.agent.runner_link import (
    RUNNER_SOCKET_FD,
    RUNNER_TOKEN_FD,
    RunnerLink,
)

log = logging.getLogger(__name__)

_RUNNER = "picloud_kernels/runner/main.py"


class ContainerProcess:
    """Starts the runner of ``order`` in a new container, and ends it."""

    def __init__(self, order: StartOrder, container: Container) -> None:
        self._order = order
        self._container = container
        self._request: ContainerRequest | None = None
        self.running: RunningContainer | None = None
        self.pidfd = -1  # readable when our child has ended
        self._hold = -1  # its control group is in use, also when it is empty
        self._status: int | None = None

    def start(self, link: RunnerLink, marker: bytes) -> RunningContainer:
        """Start the runner at the far ends of ``link`` and return at once.

        Raises:
            ContainerError: the container could not be made; nothing is left behind.
        """
        self._request = make_request(self._order, self._container, link, marker)
        self.running = self._container.start(self._request)
        self._hold = cgroup.hold(self.running.cgroups)
        self.pidfd = os.pidfd_open(self.running.pid)
        return self.running

    def kill(self) -> None:
        """End every process of the container."""
        if self.running:
            self._container.kill(self.running)

    def wait_status(self) -> int | None:
        """Return the runner's wait status, None while our child runs; other children are reaped."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if self.running and ended[0] == self.running.pid:
                    self._status = self._container.wait_status(ended[1])
        return self._status

    def clean(self) -> None:
        """Remove what the container kept outside of itself."""
        if self._request:
            self._container.clean(self._request, self.running)
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1


def make_request(
    order: StartOrder, container: Container, link: RunnerLink, marker: bytes
) -> ContainerRequest:
    """Return the request for ``order``, with the runner's CONFIG as its last argument."""
    given = {f.name: getattr(order.request, f.name) for f in fields(RequestFields)}
    common: dict[str, Any] = {
        **given,
        "stdout_fd": link.stdout_fd,
        "stderr_fd": link.stderr_fd,
        "pass_fds": (RUNNER_SOCKET_FD, RUNNER_TOKEN_FD),
    }
    inside = container.inside_paths(ContainerRequest(**common))
    spec = order.request.spec
    config = {
        "sys_path": list(spec.host_python.sys_path),
        "folder": spec.folder,
        "home": inside["home"],
        "run_dir": inside["run_dir"],
        "out_dir": inside["out_dir"],
        "bundle": inside["bundle"],
        "code": inside.get("code") or None,
        "marker": marker.hex(),
        "isolated": container.kind is not ContainerKind.PLAIN,
    }
    tail = ("-S", "-E", "-s", "-u", f"{inside['bundle']}/{_RUNNER}", json.dumps(config))
    return ContainerRequest(**common, command_tail=tail)


class StatusFile:
    """``status.json``: what an agent that finds this supervisor needs to know."""

    def __init__(self, order: StartOrder, start_time: int) -> None:
        self._path = f"{order.folder}/status.json"
        self._facts: dict[str, Any] = {
            "container": order.container,
            "pid": os.getpid(),
            "start_time": start_time,
            "kind": order.kind.value,
            "sandbox": order.sandbox,
        }

    def write(self, **changes: Any) -> None:  # noqa: ANN401  # JSON values
        """Replace the file with ``changes`` applied; a full disk leaves the old one."""
        self._facts.update(changes)
        draft = f"{self._path}.new"
        try:
            Path(draft).write_text(json.dumps(self._facts), encoding="utf-8")
            os.replace(draft, self._path)
        except OSError as exc:
            log.warning("%s could not be written: %s", self._path, exc)

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
