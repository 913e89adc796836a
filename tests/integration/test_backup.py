"""Backups of a real store with real payloads, without a service around them."""

import errno
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from picloud_jupyter.protocol.errors import (
    Conflict,
    Corrupt,
    Incompatible,
    InvalidRequest,
    NotAllowed,
    NotFound,
)
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.accounts.secrets import SecretStore
from picloud_services.app import backup, backup_files, startup
from picloud_services.app.backup import back_up
from picloud_services.app.backup_files import LIST
from picloud_services.app.restore import restore
from picloud_services.base.single_instance import InstanceLock
from picloud_services.blobs.code_archives import archive_id
from picloud_services.blobs.filesystem import FileBlobStore
from picloud_services.blobs.store import BlobRef
from tests.faults.picture import take_picture
from tests.tools.fake_engine import Does, FakeEngine, report
from tests.tools.job_system import System, running_system

USER = os.getuid()
LARGE = os.urandom(100_000)
BLOB = "ab" * 16


def place(folder: Path, name: str) -> ServicePaths:
    home, run = folder / name, folder / f"{name}-run"
    home.mkdir(mode=0o700, exist_ok=True)
    run.mkdir(mode=0o700, exist_ok=True)
    return ServicePaths(home, run)


def sleeps(_chunk: object, _position: int, argument: bytes) -> Does:
    return Does(seconds=60.0 if argument == b"slow" else 0.0, body=argument)


@pytest.fixture
async def system(tmp_path) -> AsyncIterator[System]:
    """A home with done jobs, a large payload, an archive, output, a secret, and two jobs that run."""
    home = place(tmp_path, "home").home
    blobs = FileBlobStore(home / "blobs")
    blobs.incoming_path(BLOB).write_bytes(LARGE)
    digest = hashlib.sha256(LARGE).hexdigest()
    await blobs.adopt(BLOB, size_bytes=len(LARGE), digest=digest)
    code = archive_id(USER, hashlib.sha256(b"zip").hexdigest())
    (home / "code" / code[:2]).mkdir(parents=True)
    (home / "code" / code[:2] / code).write_bytes(b"zip")
    await SecretStore.load(home, time.time).set(USER, "token", "value")
    async with running_system(home, engine=FakeEngine(behaviour=sleeps)) as found:
        await found.join(await found.call(b"a", user_id=USER), user_id=USER)
        large = await found.call(BlobRef(BLOB, len(LARGE), digest), user_id=USER)
        await found.join(large, user_id=USER)
        lease = found.engine.submitted[0].lease
        logs = home / "logs" / lease[:2]
        logs.mkdir(parents=True)
        (logs / f"{lease}.out").write_bytes(b"printed")
        (logs / f"{lease}.idx").write_bytes(b"i" * 20)
        await found.call(b"slow", user_id=USER)
        await found.call(b"slow", user_id=USER, restartable=False)
        yield found


@pytest.fixture
def home(system, tmp_path) -> ServicePaths:
    return place(tmp_path, "home")


@pytest.fixture
def made(home, tmp_path: Path) -> Path:
    back_up(home, str(tmp_path / "b.tar"), secrets=False)
    return tmp_path / "b.tar"


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b/"])
async def test_what_is_restored_is_what_was_backed_up(home, tmp_path, name):
    found = back_up(home, f"{tmp_path}/{name}", secrets=True)
    assert (found["jobs"], found["payloads"], found["lost"]) == (4, 1, [])
    target = place(tmp_path, "other")
    counts = restore(target, f"{tmp_path}/{name}")
    assert (counts["jobs"], counts["unfinished"], counts["lost"]) == (4, 2, [])
    for part in ("blobs", "code", "logs", "secrets"):
        assert files_of(home.home / part) == files_of(target.home / part)
    picture = take_picture(target)
    assert sorted(picture.jobs) == [1, 2, 3, 4]
    assert picture.integrity + picture.damaged_blobs == []
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob("*.store"))
    for path in (target.home / "blobs").glob("*/*"):
        assert path.stat().st_mode & 0o777 == 0o400


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


async def test_what_ran_is_run_again_or_stalled_and_later_numbers_are_never_used(
    made, tmp_path
):
    target = place(tmp_path, "other")
    restore(target, str(made))
    here = FakeEngine(report(os.uname().nodename))
    async with running_system(target.home, engine=here) as again:
        assert await again.join([(1, 4)], user_id=USER, seconds=20) == {"done": 3, "stalled": 1}
        assert (await again.service.result(USER, 3)).body == b"slow"
        info = await again.service.info(USER, [(3, 3)], ["attempt"])
        assert info[3]["attempt"] == 2
        assert await again.call(user_id=USER) > 1_000_000


async def test_secrets_are_left_out_unless_asked_for(made, tmp_path):
    with tarfile.open(made) as tar:
        assert not [name for name in tar.getnames() if "secret" in name]
    assert made.stat().st_mode & 0o777 == 0o600
    assert restore(place(tmp_path, "other"), str(made))["secrets"] is False


async def test_payload_that_goes_meanwhile_is_asked_for_anew(
    home, system, tmp_path, monkeypatch
):
    copy = backup._Backup._copy_store
    snapshots = []

    def then_deleted(self):
        names = copy(self)
        snapshots.append(names.blobs.keys())
        if len(snapshots) == 1:  # as a deletion and its sweep, an hour later
            with sqlite3.connect(home.home / "store.db") as store:
                store.execute("UPDATE blobs SET links = 0")
            (home.home / "blobs" / BLOB[:2] / BLOB).unlink()
        return names

    monkeypatch.setattr(backup._Backup, "_copy_store", then_deleted)
    found = back_up(home, str(tmp_path / "b.tar"), secrets=False)
    assert snapshots == [{BLOB}, set()]
    assert found["lost"] == []


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
async def test_damaged_payload_is_named_and_left_out(home, tmp_path, damage):
    path = home.home / "blobs" / BLOB[:2] / BLOB
    if damage == "gone":
        path.unlink()
    else:
        path.chmod(0o600)
        path.write_bytes(LARGE[:-1] + (b"" if damage == "short" else bytes([LARGE[-1] ^ 1])))
    name = f"blobs/{BLOB[:2]}/{BLOB}"
    assert back_up(home, str(tmp_path / "b.tar"), secrets=False)["lost"] == [name]
    target = place(tmp_path, "other")
    assert restore(target, str(tmp_path / "b.tar"))["lost"] == [name]
    assert not (target.home / name).exists()


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b/"])
@pytest.mark.parametrize("damage", ["not opened", "not read to its end", "a folder"])
async def test_payload_that_cannot_be_read_costs_itself_alone(
    home, tmp_path, monkeypatch, name, damage
):
    path = home.home / "blobs" / BLOB[:2] / BLOB
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    opened = Path.open

    def failing(self, *arguments, **options):
        if self != path or damage == "a folder":
            return opened(self, *arguments, **options)
        if damage == "not opened":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return BadSector(opened(self, *arguments, **options))

    lost = [f"blobs/{BLOB[:2]}/{BLOB}"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", failing)
        found = back_up(home, f"{tmp_path}/{name}", secrets=True)
    assert (found["jobs"], found["lost"]) == (4, lost)
    target = place(tmp_path, "other")
    assert restore(target, f"{tmp_path}/{name}")["lost"] == lost
    for part in ("code", "logs", "secrets"):
        assert files_of(home.home / part) == files_of(target.home / part)
    assert not (target.home / lost[0]).exists()
    assert sorted(take_picture(target).jobs) == [1, 2, 3, 4]


class BadSector(io.BufferedReader):
    """A file that cannot be read beyond its first 70,000 bytes."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file.detach())

    def read(self, count: int | None = -1, /) -> bytes:
        if self.tell() + (count or 0) > 70_000:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(count)


async def test_folder_that_cannot_be_listed_is_named_and_what_is_not_ours_left_out(
    home, tmp_path
):
    (home.home / "code" / "ff").write_bytes(b"a file where a folder should be")
    (home.home / "code" / "notes.txt").write_bytes(b"somebody's")
    for stray in ("code/ee/notes.txt", "secrets/notes.txt", "logs/ee/notes.txt"):
        path = home.home / stray
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"somebody's")
    assert back_up(home, str(tmp_path / "b.tar"), secrets=True)["lost"] == ["code/ff"]
    assert restore(place(tmp_path, "other"), str(tmp_path / "b.tar"))["jobs"] == 4


async def test_damaged_store_is_not_backed_up(home, system, tmp_path):
    copied = place(tmp_path, "copied")
    shutil.copytree(home.home, copied.home, dirs_exist_ok=True)
    path = copied.home / "store.db"
    with sqlite3.connect(path) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        for page in range(3, path.stat().st_size // 2048):
            file.seek(page * 2048)
            file.write(os.urandom(64))
    with pytest.raises(Corrupt, match="damaged"):
        back_up(copied, str(tmp_path / "b.tar"), secrets=False)
    assert not list(tmp_path.glob("b.tar*"))


async def test_damaged_backup_is_refused_and_the_home_stays_empty(made, tmp_path):
    target, chance = place(tmp_path, "other"), Random(1)
    whole = made.read_bytes()
    used = [at for at in range(len(whole)) if whole[at]]
    broken = tmp_path / "broken.tar"
    for _ in range(40):
        at = chance.choice(used)
        flipped = bytearray(whole)
        flipped[at] ^= 1 << chance.randrange(8)
        cut = whole[: chance.randrange(len(whole) - 20_000)]
        for content in (bytes(flipped), cut):
            broken.write_bytes(content)
            try:
                restore(target, str(broken))
            except Corrupt:
                assert {path.name for path in target.home.iterdir()} <= {"lock"}
            else:  # a bit of a tar header that says nothing of the content
                with tarfile.open(broken) as tar, tarfile.open(made) as right:
                    assert tar.getnames() == right.getnames()
                shutil.rmtree(target.home)
                target.home.mkdir(mode=0o700)
    broken.write_bytes(b"")
    with pytest.raises(Corrupt):
        restore(target, str(broken))
    broken.write_bytes(b"print('a script')\n" * 99)
    with pytest.raises(Corrupt, match="no tar file. Nothing"):
        restore(target, str(broken))


@pytest.mark.parametrize("name", ["../outside", "/etc/x", "store.db-wal", "picloud_config.py"])
async def test_what_belongs_to_no_backup_is_refused(made, tmp_path, name):
    with tarfile.open(made, "a") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(Corrupt, match="belongs to no backup"):
        restore(place(tmp_path, "other"), str(made))


async def test_folder_without_its_list_or_with_a_link_is_refused(home, tmp_path):
    folder = tmp_path / "b"
    back_up(home, f"{folder}/", secrets=False)
    moved = (folder / "store.db").rename(tmp_path / "store.db")
    (folder / "store.db").symlink_to(moved)
    with pytest.raises(Corrupt, match="belongs to no backup"):
        restore(place(tmp_path, "other"), str(folder))
    (folder / "store.db").unlink()
    moved.rename(folder / "store.db")
    (folder / LIST).unlink()
    with pytest.raises(Corrupt, match="missing"):
        restore(place(tmp_path, "other"), str(folder))


async def test_targets_and_homes_that_are_taken_are_refused(home, made, tmp_path):
    with pytest.raises(Conflict, match="already"):
        back_up(home, str(made), secrets=False)
    with pytest.raises(Conflict, match="not empty"):
        back_up(home, str(tmp_path), secrets=False)
    with pytest.raises(NotFound, match="no folder"):
        back_up(home, str(tmp_path / "none" / "b.tar"), secrets=False)
    with pytest.raises(NotFound, match="no jobs"):
        back_up(place(tmp_path, "other"), str(tmp_path / "c.tar"), secrets=False)
    with pytest.raises(NotFound, match="no backup"):
        restore(place(tmp_path, "other"), str(tmp_path / "none"))
    with pytest.raises(Conflict, match="was used already"):
        restore(home, str(made))
    used = place(tmp_path, "used")
    lock = InstanceLock(used.lock)
    lock.acquire(used.record)
    with pytest.raises(Conflict, match="already runs"):
        restore(used, str(made))
    lock.release()


async def test_store_elsewhere_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PICLOUD_DATABASE_URL", "postgresql://x/y")
    with pytest.raises(InvalidRequest, match="pg_dump"):
        back_up(home, str(tmp_path / "b.tar"), secrets=False)


async def test_jobs_of_others_and_of_newer_versions_are_refused(home, system, tmp_path):
    with sqlite3.connect(home.home / "store.db") as store:
        store.execute("INSERT INTO schema_versions VALUES (99, 'later', 0)")
    back_up(home, str(tmp_path / "new.tar"), secrets=False)
    with pytest.raises(Incompatible, match="newer version"):
        restore(place(tmp_path, "other"), str(tmp_path / "new.tar"))
    with sqlite3.connect(home.home / "store.db") as store:
        store.execute("DELETE FROM schema_versions WHERE version = 99")
    await system.call(user_id=USER + 1)
    back_up(home, str(tmp_path / "two.tar"), secrets=False)
    with pytest.raises(NotAllowed, match=f"uid {USER + 1}"):
        restore(place(tmp_path, "other"), str(tmp_path / "two.tar"))


async def test_service_of_the_machine_takes_the_jobs_of_every_user(home, system, tmp_path):
    await system.call(user_id=USER + 1)
    back_up(home, str(tmp_path / "two.tar"), secrets=False)
    own = place(tmp_path, "machine")
    machine = ServicePaths(own.home, own.run, tmp_path / "public")
    assert restore(machine, str(tmp_path / "two.tar"))["jobs"] == 5


async def test_restore_that_was_cut_short_is_told_at_the_start_and_repeated(
    made, tmp_path, monkeypatch
):
    target = place(tmp_path, "other")
    rename = Path.rename
    for step in range(1, 5):  # blobs, code, logs, store

        def cut(self, to, left=[step]):  # noqa: B006  # counts down
            if self.parent.name == "restoring":
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt
            return rename(self, to)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", cut)
            with pytest.raises(KeyboardInterrupt):
                restore(target, str(made))
        with pytest.raises(InvalidRequest, match="did not come to its end"):
            startup._refuse_half_restored(target)
        assert not (target.home / "store.db").exists()
    assert restore(target, str(made))["jobs"] == 4
    startup._refuse_half_restored(target)
    assert not take_picture(target).damaged_blobs


async def test_half_a_backup_is_removed(home, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup_files.HashedFile, "read", full)
    (tmp_path / "b").mkdir()
    for name in ("b.tar", "b"):
        with pytest.raises(OSError, match="No space"):
            back_up(home, str(tmp_path / name), secrets=False)
    assert not list((tmp_path / "b").iterdir())
    assert not list(tmp_path.glob("b.tar*"))


async def test_every_error_has_words_for_the_command_line(made, tmp_path, capsys):
    from picloud_services.app.copying import run_copying

    assert run_copying("restore", place(tmp_path, "other"), [str(tmp_path / "none")]) == 1
    assert "there is no backup" in capsys.readouterr().out
    assert run_copying("restore", place(tmp_path, "other"), ["--system", str(made)]) == 0
