"""What the handlers call. Built once, in `picloud_services.app`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from picloud_jupyter.protocol.jobs import Resources
from picloud_jupyter.protocol.metrics import ResourceSample
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_jupyter.protocol.story import Story
from picloud_services.accounts.keys import KeyRing
from picloud_services.accounts.secrets import SecretStore
from picloud_services.accounts.service import Accounts
from picloud_services.base.events import Events
from picloud_services.base.filesystem import DiskWatch
from picloud_services.blobs.code_archives import CodeArchives
from picloud_services.blobs.store import BlobStore
from picloud_services.blobs.uploads import Uploads
from picloud_services.dispatch.engine import OutputSlice
from picloud_services.environments.service import EnvironmentService
from picloud_services.gateway.words import Blocked, Caller
from picloud_services.jobs.service import JobService


class OutputReader(Protocol):
    """Where what jobs print is read: an `Engine`."""

    async def read_output(
        self, node: str, lease: str, position: int, stream: str, offset: int, limit: int
    ) -> OutputSlice:
        """Return what the element printed to ``stream``."""


class Samples(Protocol):
    """Where resource samples are read."""

    async def samples(self, jid: int, since_at: float, max_points: int) -> list[ResourceSample]:
        """Return at most ``max_points`` samples of ``jid`` after ``since_at``."""


@dataclass(frozen=True, slots=True)
class Services:
    """The services behind the API.

    ``describe`` answers GET /v1/service for a caller, ``held`` is what each user's jobs hold now.
    ``story`` tells a user's job, ``metrics`` is the page of figures, ``answered`` counts requests for it.
    """

    jobs: JobService
    blobs: BlobStore
    uploads: Uploads
    code: CodeArchives
    environments: EnvironmentService
    keys: KeyRing
    secrets: SecretStore
    disk: DiskWatch
    events: Events
    outputs: OutputReader
    samples: Samples
    nodes: Callable[[], list[NodeReport]]
    accounts: Accounts
    held: Callable[[], dict[int, Resources]]
    blocked: Blocked
    describe: Callable[[Caller], Awaitable[dict[str, Any]]]
    stop: Callable[..., None]
    story: Callable[[int, int], Awaitable[Story]]
    metrics: Callable[[], Awaitable[str]]
    diagnose: Callable[[], Awaitable[dict[str, Any]]]
    answered: Callable[[str, int], None]
