"""Large results on their way into the store while the disk refuses."""

import errno
from pathlib import Path

import pytest

from picloud_services.blobs.store import BlobRef
from tests.tools.fake_engine import Does
from tests.tools.job_system import running_system


def returns_a_file(_chunk, _position, _argument) -> Does:
    return Does(extra={"file": "0123456789abcdef", "size": 5, "digest": ""})


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), OSError(errno.EMFILE, "descriptors"), TypeError()]
)
async def test_record_when_a_result_cannot_be_adopted_then_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("picloud_services.dispatch.recorder.RETRY_SECONDS", 0.01)
    async with running_system(tmp_path, behaviour=returns_a_file) as system:
        adopt, failures = system.blobs.adopt, [error]

        async def fail_once(blob: str, *, size_bytes: int, digest: str = "") -> BlobRef:
            if failures:
                raise failures.pop()
            return await adopt(blob, size_bytes=size_bytes, digest=digest)

        monkeypatch.setattr(system.blobs, "adopt", fail_once)
        jid = await system.call()
        await system.join(jid, seconds=5)
        assert await system.status(jid) == "done"
        assert system.blobs.adopted == ["0123456789abcdef"]
