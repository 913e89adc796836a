"""Nothing is swept because the wall clock was moved."""

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from picloud_services.app.upkeep import Upkeep
from picloud_services.base.clock import SystemClock
from picloud_services.blobs.filesystem import FileBlobStore

HOUR = 3600.0
true_time = time.time


async def nothing_named(_blobs: object) -> set[str]:
    return set()


class Samples:
    """Takes note of what would be pruned."""

    before_at = 0.0

    async def prune(self, now_at: float) -> None:
        self.before_at = now_at


def upkeep_of(blobs: FileBlobStore, samples: Samples) -> Upkeep:
    nothing: Any = None
    parts: Any = SimpleNamespace(referenced=nothing_named, retention_days=30)
    found: Any = samples
    code = FileBlobStore(blobs.incoming.parent.parent / "code")
    return Upkeep(parts, SystemClock(), nothing, parts, blobs, code, found, nothing)


@pytest.mark.parametrize("jump", [2 * HOUR, 365 * 24 * HOUR, -HOUR])
async def test_sweep_when_the_clock_was_moved_then_what_is_in_use_stays(
    tmp_path, monkeypatch, jump
):
    blobs, samples = FileBlobStore(tmp_path / "blobs"), Samples()
    upkeep = upkeep_of(blobs, samples)
    sent, old = "a1" * 16, "a2" * 16
    for name in (sent, old):
        blobs.incoming_path(name).write_bytes(b"payload")
        await blobs.adopt(name, size_bytes=7)
    for place, name in ((time, "time"), (SystemClock, "now_at")):
        monkeypatch.setattr(place, name, lambda *_: true_time() + jump)
    await upkeep.sweep()
    await upkeep.prune_samples()
    assert await blobs.find(sent)
    assert samples.before_at <= true_time() + 1
    two_hours_ago = true_time() + min(jump, 0.0) - 2 * HOUR
    os.utime(tmp_path / "blobs" / old[:2] / old, (two_hours_ago, two_hours_ago))
    await upkeep.sweep()
    assert await blobs.find(sent)
    assert await blobs.find(old) is None
