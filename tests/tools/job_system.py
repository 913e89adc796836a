"""The job service, dispatcher and store around a fake engine: what most tests of jobs need."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import HostPython, JobSpec
from picloud_jupyter.protocol.users import Quota
from picloud_services.accounts.secrets import SecretStore
from picloud_services.accounts.service import Accounts
from picloud_services.base.clock import SystemClock
from picloud_services.base.database import Database, open_database
from picloud_services.base.events import Events
from picloud_services.blobs.store import BlobRef
from picloud_services.dispatch.dispatcher import Dispatcher
from picloud_services.dispatch.payloads import ChunkSources
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.service import JobService
from picloud_services.jobs.words import Function, Payload
from tests.tools.fake_engine import Behaviour, FakeEngine, returns

PYTHON = HostPython("/usr/bin/python3", "/usr", "/usr", "3.11.2")
USER = 1000


def function(data: bytes = b"f") -> Function:
    """Return a function with these bytes."""
    return Function(data, hashlib.sha256(data).hexdigest())


def spec(**fields: object) -> JobSpec:
    """Return a spec; only what matters to a test is given."""
    return JobSpec("f", PYTHON, **fields)  # type: ignore[arg-type]


@dataclass
class MemoryBlobs:
    """Blobs as the job service sees them: names."""

    folder: Path
    adopted: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)

    async def adopt(
        self, blob: str, *, size_bytes: int, digest: str = "", source: Path | None = None
    ) -> BlobRef:
        self.adopted.append(blob)
        return BlobRef(blob, size_bytes, digest)

    async def find(self, blob: str) -> BlobRef | None:
        self.used.append(blob)
        return BlobRef(blob, 0)

    async def local_path(self, ref: BlobRef) -> Path:
        return self.folder / ref.blob


@dataclass
class System:
    """A running service."""

    service: JobService
    dispatcher: Dispatcher
    database: Database
    engine: FakeEngine
    live: LiveJobs
    blobs: MemoryBlobs
    events: Events
    accounts: Accounts

    async def call(
        self,
        arguments: Payload = b"x",
        *,
        key: str = "",
        user_id: int = USER,
        func: Function | None = None,
        **fields: object,
    ) -> int:
        """Submit one call; return its jid."""
        receipt = await self.service.submit_call(
            user_id, spec(**fields), key, func or function(), arguments
        )
        return receipt.jid

    async def map(
        self,
        arguments: Sequence[bytes],
        *,
        part_count: int = 1000,
        known: bool = True,
        user_id: int = USER,
        func: Function | None = None,
        **fields: object,
    ) -> list[JidRange]:
        """Submit a map in parts; return its jids."""
        service = self.service
        receipt = await service.create_map(
            user_id,
            spec(**fields),
            "",
            len(arguments) if known else None,
            func or function(),
        )
        parts = range(0, len(arguments), part_count)
        for number, first in enumerate(parts):
            piece = arguments[first : first + part_count]
            await service.put_part(
                user_id, receipt.map, number, first, len(piece), pack_records(piece)
            )
        return await service.seal_map(user_id, receipt.map, len(arguments), len(parts))

    async def join(
        self, jids: Sequence[JidRange] | int, *, user_id: int = USER, seconds: float = 20
    ) -> dict[str, int]:
        """Wait until all are finished; return their counts."""
        ranges = [(jids, jids)] if isinstance(jids, int) else list(jids)
        answer = await self.service.wait(user_id, ranges, timeout_seconds=seconds)
        assert answer.finished, answer
        return answer.counts

    async def status(self, jid: int, *, user_id: int = USER) -> str:
        """Return the status of one job."""
        ((_, _, status),) = await self.service.statuses(user_id, [(jid, jid)])
        return status


@contextlib.asynccontextmanager
async def running_system(
    folder: Path,
    *,
    engine: FakeEngine | None = None,
    behaviour: Behaviour = returns,
    url: str = "",
    quota: Quota | None = None,
) -> AsyncIterator[System]:
    """Start the service on the store in ``folder`` (or at ``url``); stop it at the end.

    ``quota`` is that of users who have none of their own.
    """
    database = open_database(folder / "store.db", url)
    await database.open()
    engine = engine or FakeEngine(behaviour=behaviour)
    live, events, clock = LiveJobs(), Events(), SystemClock()
    blobs = MemoryBlobs(folder)
    accounts = Accounts(database, clock, quota)

    async def code_path(_user_id: int, digest: str) -> Path:
        return folder / digest

    dispatcher = Dispatcher(
        database,
        ChunkSources(
            blobs,  # type: ignore[arg-type]
            code_path,
            lambda lease: "k" + lease,
            SecretStore.load(folder, clock.now_at).values,
        ),
        engine,
        live,
        events,
        accounts,
        clock,
    )
    service = JobService(database, live, dispatcher, engine, events, accounts, clock)
    recent = await accounts.start()
    leases = await service.start()
    await dispatcher.start(service.committed, leases, recent)
    try:
        yield System(service, dispatcher, database, engine, live, blobs, events, accounts)
    finally:
        await accounts.save_recent(dispatcher.changed_shares())
        await dispatcher.stop()
        await service.stop()
        await database.close()
