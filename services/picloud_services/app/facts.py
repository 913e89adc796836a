"""What the owner is told about the service: GET /v1/service."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.jobs import CORE_TYPES, MAX_MAP_COUNT
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_jupyter.protocol.users import UserReport
from picloud_services.base.filesystem import DiskWatch
from picloud_services.base.single_instance import ServiceRecord
from picloud_services.blobs.store import BlobStore
from picloud_services.config import Settings
from picloud_services.dispatch.placement import fits, need
from picloud_services.gateway.words import Caller
from picloud_services.jobs.service import JobService

FOLDER_SECONDS = 60.0


class FolderSize:
    """What a folder occupies on the disk, measured at most once a minute, in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes = 0
        self._until = 0.0

    async def measure(self) -> int:
        """Return its size in bytes."""
        now = time.monotonic()
        if now >= self._until:
            self._until = now + FOLDER_SECONDS
            self._bytes = await asyncio.to_thread(_folder_bytes, self._folder)
        return self._bytes


def _folder_bytes(folder: Path) -> int:
    return size_of(
        os.path.join(path, name) for path, _, names in os.walk(folder) for name in names
    )


def size_of(paths: Iterable[str | Path]) -> int:
    """Return how many bytes of the disk those of ``paths`` take that are there."""
    total_bytes = 0
    for path in paths:
        try:
            total_bytes += os.lstat(path).st_blocks * 512
        except FileNotFoundError:  # removed since the listing
            continue
    return total_bytes


class ServiceFacts:
    """Gathers what `picloud status` and `picloud doctor` show."""

    def __init__(
        self,
        settings: Settings,
        record: Callable[[], ServiceRecord],
        *,
        jobs: JobService,
        blobs: BlobStore,
        disk: DiskWatch,
        nodes: Callable[[], list[NodeReport]],
        user: Callable[[int], Awaitable[UserReport]],
        note: str,
    ) -> None:
        self._settings = settings
        self._record = record
        self._jobs = jobs
        self._blobs = blobs
        self._disk = disk
        self._nodes = nodes
        self._user = user
        self._note = note
        self._logs = FolderSize(settings.home / "logs")

    async def describe(self, caller: Caller) -> dict[str, Any]:
        """Return the answer to GET /v1/service."""
        record = self._record()
        nodes = self._nodes()
        first = nodes[0] if nodes else None
        return {
            "pid": record.pid,
            "agent_pid": record.agent_pid,
            "version": record.version,
            "wire": record.wire,
            "scope": "user" if self._settings.paths.public is None else "system",
            "user_id": caller.user_id,
            "home": str(self._settings.home),
            "host": os.uname().nodename,
            "started_at": record.started_at,
            "note": self._note,
            "container_kind": first.container_kind if first else None,
            "limits_grade": first.limits_grade if first else None,
            "network": first.network if first else None,
            "network_note": first.network_note if first else "",
            "trials": first.trials if first else [],
            "capacity": first.capacity if first else None,
            "disk": await self._disk_use(),
            "counts": await self._jobs.counts(caller.user_id),
            "user": await self._user(caller.user_id),
            "nodes": nodes,
            "caps": {
                "max_transmit_bytes": self._settings.max_transmit_bytes,
                "max_upload_bytes": self._settings.max_upload_bytes,
                "max_code_bytes": self._settings.max_code_bytes,
                "max_map_count": MAX_MAP_COUNT,
            },
            "uploads_local": caller.local,
            "core_types": _core_types(first),
        }

    async def _disk_use(self) -> dict[str, int]:
        space = self._disk.refresh()
        blobs = await self._blobs.usage()
        logs_bytes = await self._logs.measure()
        files = size_of(self._settings.home.glob("*.db*"))
        return {
            "home_bytes": files + blobs.total_bytes + logs_bytes,
            "free_bytes": space.free_bytes,
            "floor_bytes": self._disk.floor_bytes,
            "blobs_bytes": blobs.total_bytes,
            "logs_bytes": logs_bytes,
        }


def _core_types(node: NodeReport | None) -> dict[str, Any]:
    """Return what each core type is worth here: its memory is cut to what the machine has."""
    return {
        name: {
            "cores": [
                count
                for count in kind.core_counts
                if node is None or fits(need(name, count, node.capacity), node.capacity)
            ],
            "memory_bytes": need(name, 1, node.capacity).memory_bytes
            if node
            else kind.memory_bytes,
            "share": kind.share,
            "price_per_core_hour": kind.price_per_core_hour,
        }
        for name, kind in CORE_TYPES.items()
    }
