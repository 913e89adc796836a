"""An upload whose client went away while a thread writes it; a gateway that listens anew."""

import asyncio
import os
import threading
from pathlib import Path

import psutil
import pytest

from picloud_services.blobs.filesystem import FileBlobStore
from picloud_services.blobs.uploads import IncomingFile
from tests.tools.gateway_harness import Peer, start_gateway


class SlowDisk:
    """Lets a write go on when told to."""

    def __init__(self) -> None:
        self.writing, self.go = threading.Event(), threading.Event()

    def require(self, _size_bytes: int) -> None:
        self.writing.set()
        assert self.go.wait(20)


async def test_abort_while_a_thread_writes_then_that_thread_closes_the_file(tmp_path: Path):
    disk, path = SlowDisk(), tmp_path / "incoming"
    file = IncomingFile(path, disk, limit_bytes=100)  # type: ignore[arg-type]  # the part it uses
    number = file._file.fileno()
    write = asyncio.create_task(file.write(b"x" * 10))
    await asyncio.to_thread(disk.writing.wait, 20)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    file.abort()
    assert not path.exists()
    os.fstat(number)  # still its own: nobody else's file gets those bytes
    disk.go.set()
    async with asyncio.timeout(20):
        while not file._file.closed:
            await asyncio.sleep(0.005)


async def test_abort_of_a_file_that_nobody_writes_closes_it(tmp_path: Path):
    disk = SlowDisk()
    disk.go.set()
    file = IncomingFile(tmp_path / "incoming", disk, limit_bytes=100)  # type: ignore[arg-type]
    await file.write(b"x")
    file.abort()
    assert file._file.closed
    assert not (tmp_path / "incoming").exists()


async def test_sweep_while_a_body_comes_in_slowly_leaves_it(tmp_path: Path):
    """Its client sends nothing for minutes; once the control plane that reads it is killed, it goes."""
    disk = SlowDisk()
    disk.go.set()
    blobs = FileBlobStore(tmp_path)
    path = blobs.upload_path("ab" * 16)
    file = IncomingFile(path, disk, limit_bytes=100)  # type: ignore[arg-type]  # the part it uses
    await file.write(b"x")
    os.utime(path, (1000.0, 1000.0))
    assert await blobs.sweep_uploads() == 0
    file._file.close()  # as the kernel does for a process that is killed
    assert await blobs.sweep_uploads() == 1
    assert not path.exists()


async def test_gateway_that_listens_anew_leaves_no_listener_and_no_caller_behind(
    tmp_path: Path,
):
    made = await start_gateway(tmp_path)
    caller = await Peer.open(made.api)
    assert (await caller.ask("GET", "/v1/service")).status == 200
    made.api.unlink()
    await made.gateway.listen(made.api, made.inside)
    own = psutil.Process().net_connections(kind="unix")
    listening = [
        found for found in own if str(found.laddr) in (str(made.api), str(made.inside))
    ]
    other = await Peer.open(made.api)
    for peer in (caller, other):
        assert (await peer.ask("GET", "/v1/service")).status == 200
        await peer.close()
    await made.gateway.close()
    assert not made.api.exists()
    assert len(listening) - 1 == len({made.api, made.inside})  # the caller's own end is listed
