"""What the agent asks of the launcher (link L3): one container with a supervisor of its own."""

import sys
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.protocol.codec import from_wire, to_wire
from picloud_jupyter.protocol.jobs import ContainerKind, SandboxSpec

DEFAULT_ORPHAN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class RequestFields:
    """What of a `ContainerRequest` the agent decides; see there for each field."""

    container: str
    spec: SandboxSpec
    run_dir: str
    out_dir: str
    layer_dir: str
    bundle: str
    code: str
    host_uid: int
    variables: dict[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    devices: tuple[tuple[str, str], ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartOrder:
    """One container to start. Paths are the host's; all folders exist and belong to the agent.

    ``folder`` is RUN/c/ID: the supervisor keeps ``supervisor.sock`` and ``status.json`` there.
    ``logs`` is HOME/logs. ``sandbox`` is the digest of the spec. ``program`` is the bwrap that
    the trial chose ("" for the plain kind). Output that would leave the disk less than ``keep_free_bytes``
    is dropped. After ``orphan_seconds`` without an agent the
    supervisor ends its container and leaves.
    """

    container: str
    folder: str
    kind: ContainerKind
    sandbox: str
    request: RequestFields
    logs: str
    program: str = ""
    orphan_seconds: float = DEFAULT_ORPHAN_SECONDS
    keep_free_bytes: int = 0


def start_frame(order: StartOrder) -> dict[str, Any]:
    """Return the header of the L3 frame ``start`` for ``order``."""
    return {"t": "start", **to_wire(order)}


def read_start_frame(header: dict[str, Any]) -> StartOrder:
    """Return the order in a ``start`` frame.

    Raises:
        ValueError: a field is missing or of the wrong type.
    """
    return from_wire(StartOrder, header)


def launcher_command(link_fd: int) -> list[str]:
    """Return the argument list that starts the launcher with its L3 socket at ``link_fd``."""
    return [sys.executable, "-m", "picloud_services.agent.launcher", str(link_fd)]
