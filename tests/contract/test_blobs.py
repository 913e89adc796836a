"""What every `BlobStore` must do; run on the one in files."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import Corrupt, NotFound
from picloud_services.blobs.filesystem import FileBlobStore
from picloud_services.blobs.store import PIECE_BYTES, BlobRef, BlobStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(root: Path) -> BlobStore:
    return FileBlobStore(root)


async def keep(blobs: BlobStore, content: bytes, name: str = "") -> BlobRef:
    blob = name or secrets.token_hex(16)
    blobs.incoming_path(blob).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return await blobs.adopt(blob, size_bytes=len(content), digest=digest)


async def read(
    blobs: BlobStore, ref: BlobRef, start: int = 0, stop: int | None = None
) -> bytes:
    pieces = [piece async for piece in blobs.stream(ref, start, stop)]
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


def file_of(root: Path, ref: BlobRef) -> Path:
    (found,) = root.rglob(ref.blob)
    return found


async def nothing_referenced(_blobs: Sequence[str]) -> set[str]:
    return set()


async def test_adopt_when_written_then_read_back_whole_and_in_ranges(blobs):
    content = os.urandom(PIECE_BYTES * 2 + 17)
    ref = await keep(blobs, content)
    assert await read(blobs, ref) == content
    assert await read(blobs, ref, 5, 9) == content[5:9]
    assert await read(blobs, ref, len(content) - 3) == content[-3:]
    assert (await blobs.local_path(ref)).read_bytes() == content


async def test_adopt_when_repeated_then_same_answer_and_content_kept(blobs):
    ref = await keep(blobs, b"first")
    blobs.incoming_path(ref.blob).write_bytes(b"other")
    again = await blobs.adopt(ref.blob, size_bytes=5, digest=ref.digest)
    assert again == ref
    assert await read(blobs, ref) == b"first"
    assert not blobs.incoming_path(ref.blob).exists()


async def test_adopt_when_two_bring_it_at_once_then_one_file_becomes_it(
    blobs, root, monkeypatch
):
    blob, content = secrets.token_hex(16), b"the same module"
    digest = hashlib.sha256(content).hexdigest()
    sources = [blobs.incoming_path(secrets.token_hex(16)) for _ in range(2)]
    for number, source in enumerate(sources):
        source.write_bytes(content)
        os.utime(source, (1000.0 + number,) * 2)
    both, sync = threading.Barrier(2, timeout=20), os.fsync

    def sync_together(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            both.wait()  # both have seen that it is not there yet
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_together)
    refs = await asyncio.gather(
        *(blobs.adopt(blob, size_bytes=15, digest=digest, source=path) for path in sources)
    )
    assert refs[0] == refs[1]
    assert await read(blobs, refs[0]) == content
    assert not any(source.exists() for source in sources)


async def test_adopt_when_another_content_came_first_then_refused(blobs):
    ref = await keep(blobs, b"first")
    with pytest.raises(Corrupt):
        await keep(blobs, b"other", ref.blob)
    assert await read(blobs, ref) == b"first"


async def test_adopt_when_nothing_came_then_not_found(blobs):
    with pytest.raises(NotFound):
        await blobs.adopt(secrets.token_hex(16), size_bytes=1)


async def test_adopt_when_size_differs_then_corrupt_and_not_kept(blobs):
    blob = secrets.token_hex(16)
    blobs.incoming_path(blob).write_bytes(b"abc")
    with pytest.raises(Corrupt):
        await blobs.adopt(blob, size_bytes=4)
    assert await blobs.find(blob) is None


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "folder"])
async def test_adopt_when_not_a_plain_file_then_refused(blobs, tmp_path, kind):
    blob = secrets.token_hex(16)
    secret = tmp_path / "secret"
    secret.write_bytes(b"abc")
    path = blobs.incoming_path(blob)
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "second name":
        path.hardlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises((Corrupt, OSError)):
        await blobs.adopt(blob, size_bytes=3)
    assert await blobs.find(blob) is None


@pytest.mark.parametrize(
    "blob", ["", "..", "../../etc/passwd", "A" * 32, "ab", "g" * 32, "a" * 65]
)
async def test_any_when_id_is_none_then_refused(blobs, blob):
    with pytest.raises(ValueError, match="not the id"):
        blobs.incoming_path(blob)
    with pytest.raises(ValueError, match="not the id"):
        await blobs.find(blob)


async def test_read_when_cut_on_disk_then_corrupt(blobs, root):
    ref = await keep(blobs, b"x" * 1000)
    path = file_of(root, ref)
    path.chmod(0o600)
    os.truncate(path, 999)
    with pytest.raises(Corrupt):
        await read(blobs, ref)
    with pytest.raises(Corrupt):
        await blobs.local_path(ref)


@pytest.mark.parametrize("restarted", [False, True])
async def test_read_when_changed_on_disk_then_corrupt(blobs, root, restarted):
    ref = await keep(blobs, b"x" * 1000)
    path = file_of(root, ref)
    path.chmod(0o600)
    path.write_bytes(b"y" * 1000)
    os.utime(path, (1, 1))
    served = FileBlobStore(root) if restarted else blobs
    with pytest.raises(Corrupt):
        await served.local_path(ref)
    with pytest.raises(Corrupt):
        await read(served, ref)


async def test_read_when_restarted_then_still_there(blobs, root):
    ref = await keep(blobs, b"abc")
    assert await read(FileBlobStore(root), ref) == b"abc"


async def test_find_when_there_then_size_and_when_not_then_none(blobs):
    ref = await keep(blobs, b"abc")
    assert await blobs.find(ref.blob) == BlobRef(ref.blob, 3)
    assert await blobs.find(secrets.token_hex(16)) is None
    assert await read(blobs, ref) == b"abc"  # a look does not count as a change


async def test_sweep_when_open_then_reader_keeps_it(blobs):
    content = os.urandom(PIECE_BYTES * 3)
    ref = await keep(blobs, content)
    stream = blobs.stream(ref)
    first = await anext(stream)
    assert await blobs.sweep(nothing_referenced, now_at=time.time() + 10, grace_seconds=0) == 1
    rest = [piece async for piece in stream]
    assert first + b"".join(rest) == content
    with pytest.raises(NotFound):
        await read(blobs, ref)


async def test_sweep_when_unreferenced_and_old_then_removed_and_others_kept(blobs, root):
    old, named, fresh, used = [await keep(blobs, bytes([n])) for n in range(4)]
    now = time.time()
    for ref in (old, named, used):
        os.utime(file_of(root, ref), (now - 7200, now - 7200))
    await blobs.find(used.blob)

    async def referenced(ids: Sequence[str]) -> set[str]:
        assert fresh.blob not in ids
        return {named.blob} & set(ids)

    assert await blobs.sweep(referenced, now_at=now) == 1
    assert await blobs.find(old.blob) is None
    for ref in (named, fresh, used):
        assert await blobs.find(ref.blob) is not None


async def test_sweep_when_it_is_taken_into_use_meanwhile_then_it_is_kept(blobs, root):
    ref = await keep(blobs, b"again")
    now = time.time()
    os.utime(file_of(root, ref), (now - 7200, now - 7200))

    async def used_while_asked(_ids: Sequence[str]) -> set[str]:
        await blobs.find(ref.blob)  # as a submit does whose row is not there yet
        return set()

    assert await blobs.sweep(used_while_asked, now_at=now) == 0
    assert await blobs.find(ref.blob) is not None


async def test_adopt_when_another_made_its_folder_then_that_is_durable_all_the_same(
    blobs, root, monkeypatch
):
    synced: list[Path] = []
    monkeypatch.setattr("picloud_services.blobs.filesystem.sync_folder", synced.append)
    (root / "ab").mkdir()
    await keep(blobs, b"x", "ab" * 16)
    assert synced == [root, root / "ab"]


async def test_sweep_uploads_when_the_writer_ended_then_they_go_and_nothing_else(blobs, root):
    """A client was killed after its file had a name, and before the service heard of it."""
    given_up, held, fresh = (blobs.upload_path(secrets.token_hex(16)) for _ in range(3))
    result = blobs.incoming_path(secrets.token_hex(16))  # an agent may say it again
    (root / "incoming" / "link.upload").symlink_to(root)
    for path in (given_up, held, fresh, result):
        path.write_bytes(b"x")
        if path != fresh:
            os.utime(path, (1000.0, 1000.0))
    with held.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert await blobs.sweep_uploads() == 1
        left = {path.name for path in (root / "incoming").iterdir()}
        assert left == {held.name, fresh.name, result.name, "link.upload"}
    assert await blobs.sweep_uploads() == 1
    assert not held.exists()


async def test_adopt_of_an_upload_that_was_swept_meanwhile_asks_for_it_again(
    blobs, monkeypatch
):
    path = blobs.upload_path("ab" * 16)
    path.write_bytes(b"x")

    def sync_folder(_folder: Path) -> None:
        path.unlink()

    monkeypatch.setattr("picloud_services.blobs.filesystem.sync_folder", sync_folder)
    with pytest.raises(NotFound, match="send it again"):
        await blobs.adopt("ab" * 16, size_bytes=1, source=path)


async def test_sweep_when_an_upload_was_never_finished_then_it_goes_after_a_day(blobs):
    lost, recent = (blobs.incoming_path(secrets.token_hex(16)) for _ in range(2))
    now = time.time()
    for path, age in ((lost, 90_000), (recent, 7200)):
        path.write_bytes(b"x")
        os.utime(path, (now - age, now - age))
    await blobs.sweep(nothing_referenced, now_at=now)
    assert not lost.exists()
    assert recent.exists()


@pytest.mark.parametrize("where", ["incoming", "ab"])
async def test_sweep_when_a_folder_is_among_the_files_then_it_stays_and_is_named(
    blobs, root, caplog, where
):
    """Whoever put it there: it costs no sweep the rest of its work."""
    ref = await keep(blobs, b"x", "ab" * 16)
    upload = blobs.incoming_path("c" * 32)
    upload.write_bytes(b"x")
    strange = root / where / "0"
    strange.mkdir()
    (strange / "file").touch()
    for path in (file_of(root, ref), upload, strange):
        os.utime(path, (1000.0, 1000.0))
    for removed in (1, 0):
        assert await blobs.sweep(nothing_referenced, now_at=time.time()) == removed
    assert not upload.exists()
    assert (strange / "file").exists()
    assert f"{strange} is a folder" in caplog.text


async def test_usage_when_kept_then_counted(blobs):
    await keep(blobs, b"x" * 10_000)
    usage = await blobs.usage()
    assert usage.count == 1
    assert usage.total_bytes >= 10_000


async def test_usage_when_many_ask_at_once_then_looked_at_once(blobs, monkeypatch):
    looks = []
    measure = blobs._measure

    def counted() -> object:
        looks.append(1)
        return measure()

    monkeypatch.setattr(blobs, "_measure", counted)
    await asyncio.gather(*(blobs.usage() for _ in range(5)))
    assert len(looks) == 1


async def test_usage_while_blobs_are_taken_away_counts_the_others(blobs, root, monkeypatch):
    kept = await keep(blobs, b"kept", "ab" * 16)
    gone = await keep(blobs, b"gone", "ab" * 15 + "cd")
    place, leaving = file_of(root, kept).parent, file_of(root, gone)
    scandir = os.scandir

    def then_one_goes(folder: Path) -> object:
        with scandir(folder) as entries:
            found = list(entries)
        if folder == place:
            leaving.unlink()
        return contextlib.nullcontext(found)

    monkeypatch.setattr("picloud_services.blobs.filesystem.os.scandir", then_one_goes)
    assert (await blobs.usage()).count == 1


async def test_what_is_removed_is_not_remembered(root):
    blobs = FileBlobStore(root)
    ref = await keep(blobs, b"content")
    await blobs.verify(ref)
    await blobs.sweep(nothing_referenced, now_at=time.time() + 10, grace_seconds=0)
    assert not blobs._verified
    assert not blobs._hashed


@pytest.mark.parametrize("kind", ["link", "socket"])
async def test_adopt_when_it_came_as_something_else_then_refused_for_good(blobs, kind):
    blob = secrets.token_hex(16)
    place = blobs.incoming_path(blob)
    if kind == "link":
        place.symlink_to("/etc/hostname")
    else:
        os.mknod(place, stat.S_IFSOCK | 0o600)
    with pytest.raises(Corrupt, match="other than a plain file"):
        await blobs.adopt(blob, size_bytes=1)


async def test_sweep_when_adopted_after_hours_then_waits_for_its_row(blobs):
    blob = secrets.token_hex(16)
    place = blobs.incoming_path(blob)
    for _delivery in ("first", "repeated"):
        place.write_bytes(b"abc")
        os.utime(place, (1.0, 1.0))  # the service was down since
        await blobs.adopt(blob, size_bytes=3)
        assert await blobs.sweep(nothing_referenced, now_at=time.time()) == 0
        os.utime(blobs._path(blob), (1.0, 1.0))
    assert await blobs.sweep(nothing_referenced, now_at=time.time()) == 1
