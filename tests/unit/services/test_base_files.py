"""File systems, logs, the lock of one instance, environments."""

import errno
import io
import json
import logging
import os
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import Conflict, DiskFull, InvalidRequest
from picloud_jupyter.protocol.jobs import HostPython
from picloud_services.base import filesystem
from picloud_services.base.ballast import BALLAST_BYTES, fill_ballast
from picloud_services.base.filesystem import DiskSpace, DiskWatch, network_file_system
from picloud_services.base.logs import AppendedLog, LineFormatter, LogFile
from picloud_services.base.single_instance import (
    InstanceLock,
    ServiceRecord,
    boot_id,
    host_id,
    is_alive,
    process_start_ticks,
    read_record,
)
from picloud_services.environments.identity import environment_id
from picloud_services.environments.service import EnvironmentService

PYTHON = HostPython("/bin/sh", "/usr", "/usr", "3.11.2", paths=("/usr",), packages_digest="a")


def our_record(**changes) -> ServiceRecord:
    ours = ServiceRecord(
        host_id(), boot_id(), os.getpid(), process_start_ticks(os.getpid()), "1.0", 1, 0.0
    )
    return replace(ours, **changes)


def test_start_ticks_of_a_process_whose_name_is_no_text():
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    ours = process_start_ticks(os.getpid())
    try:
        name.write_bytes(b"\xff) Z (")
        assert process_start_ticks(os.getpid()) == ours > 0
    finally:
        name.write_bytes(before)


# ------------------------------------------------------------------------------ file systems
@pytest.mark.parametrize(
    ("magic", "name"),
    [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0x0BD00BD0, "Lustre"), (0xEF53, "")],
)
def test_network_file_system_when_magic_is_known_then_named(monkeypatch, tmp_path, magic, name):
    monkeypatch.setattr(filesystem, "file_system_magic", lambda _path: magic)
    assert network_file_system(tmp_path / "not" / "made" / "yet") == name


def test_file_system_magic_when_proc_then_its_number():
    assert filesystem.file_system_magic(Path("/proc")) == 0x9FA0
    with pytest.raises(FileNotFoundError):
        filesystem.file_system_magic(Path("/nowhere"))


def test_disk_watch_when_small_then_its_floor_is_a_part_of_it(monkeypatch, tmp_path):
    space = DiskSpace(total_bytes=256 * 2**20, free_bytes=20 * 2**20)
    monkeypatch.setattr(filesystem, "disk_space", lambda _folder: space)
    disk = DiskWatch(tmp_path, 64 * 2**20)
    assert disk.floor_bytes == 16 * 2**20
    disk.require()
    disk.require(4 * 2**20)
    with pytest.raises(DiskFull, match=r"20 MiB free; 21 MiB"):
        disk.require(5 * 2**20)


@pytest.mark.parametrize("short", [{"free_bytes": 0}, {"free_files": 0}])
def test_disk_watch_when_there_is_room_again_then_nothing_is_refused(
    monkeypatch, tmp_path, short
):
    """What filled the disk was ended just now; the next look is up to two seconds away."""
    spaces = [DiskSpace(2**40, 2**39, 2**20, 2**19)]
    looks = []

    def look(_folder):
        looks.append(1)
        return spaces[0]

    monkeypatch.setattr(filesystem, "disk_space", look)
    spaces.insert(0, replace(spaces[0], **short))
    disk = DiskWatch(tmp_path, 64 * 2**20)
    with pytest.raises(DiskFull):
        disk.require()
    del spaces[0]
    disk.require()
    looks.clear()
    disk.require()
    assert not looks  # with room to spare the disk is not asked


def test_write_atomically_when_the_folder_is_gone_then_nothing_is_left(tmp_path):
    with pytest.raises(FileNotFoundError):
        filesystem.write_atomically(tmp_path / "no" / "file", b"x")
    filesystem.write_atomically(tmp_path / "file", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_ballast_when_files_are_compressed_then_it_takes_its_room_still(tmp_path):
    path = tmp_path / "store.db.ballast"
    assert fill_ballast(path)
    sample = path.read_bytes()
    assert len(sample) == BALLAST_BYTES
    assert len(zlib.compress(sample[:65536], 1)) > 65000


# --------------------------------------------------------------------------------------- logs
def test_log_line_when_written_then_json_with_fields_and_without_secrets():
    record = logging.LogRecord(
        "picloud_services.gateway", logging.INFO, "f", 1, "key %s", ("pcj_1.2.3.ab.cd",), None
    )
    record.jid = 7
    record.url = "postgresql://ann:pass@db/x"
    line = json.loads(LineFormatter().format(record))
    assert (line["source"], line["level"], line["jid"]) == ("gateway", "info", 7)
    assert line["message"] == "key ***"
    assert line["url"] == "postgresql://***@db/x"
    assert line["at"].endswith("Z")


def test_log_line_when_an_exception_then_its_traceback_is_a_field():
    try:
        raise ValueError("Bearer abc")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "oh", (), sys.exc_info())
    text = LineFormatter().format(record)
    assert "\n" not in text
    assert "ValueError" in json.loads(text)["traceback"]
    assert "abc" not in text


def test_log_line_when_the_process_is_named_then_each_line_says_it_and_ranges_stay_lists():
    record = logging.LogRecord("x", logging.INFO, "f", 1, "lost", (), None)
    record.jids = [(3, 5)]
    line = json.loads(LineFormatter("supervisor", container="ab12").format(record))
    assert (line["component"], line["container"]) == ("supervisor", "ab12")
    assert line["jids"] == [[3, 5]]


def test_appended_log_when_the_file_was_rotated_then_the_new_one_gets_the_line(tmp_path):
    path = tmp_path / "agent.log"
    handler = AppendedLog(path)
    handler.emit(logging.LogRecord("x", logging.INFO, "f", 1, "one", (), None))
    path.rename(tmp_path / "agent.log.1")
    handler.emit(logging.LogRecord("x", logging.INFO, "f", 1, "two", (), None))
    assert path.read_text() == "two\n"
    assert path.stat().st_mode & 0o077 == 0


class FullDisk(io.TextIOWrapper):
    def write(self, _text, /):
        raise OSError(errno.ENOSPC, "no space left")


def test_log_file_when_it_cannot_be_written_then_counted_and_told_on_stderr(tmp_path, capsys):
    handler = LogFile(tmp_path / "x.log", max_bytes=10**6)
    handler.close()
    handler.setStream(FullDisk(io.BytesIO()))
    handler.emit(logging.LogRecord("x", logging.INFO, "f", 1, "no room", (), None))
    assert handler.dropped == 1
    assert "no room" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["kept", "appended"])
def test_log_when_a_name_is_no_utf8_then_it_is_written_and_can_be_told(tmp_path, kind):
    path = tmp_path / "agent.log"
    handler = LogFile(path, max_bytes=1000) if kind == "kept" else AppendedLog(path)
    handler.setFormatter(LineFormatter("agent"))
    words = os.fsdecode(b"caf\xe9")
    record = logging.makeLogRecord(
        {"msg": words, "levelname": "INFO", "name": "x", "jids": [words]}
    )
    handler.emit(record)
    handler.close()
    line = json.loads(path.read_bytes())
    assert line["message"] == "caf\\udce9"
    assert line["jids"] == ["caf\\udce9"]


def test_log_file_when_full_then_rotated_and_three_kept(tmp_path):
    handler = LogFile(tmp_path / "x.log", max_bytes=200)
    for n in range(60):
        handler.emit(
            logging.LogRecord("x", logging.INFO, "f", 1, f"line {n} " + "." * 30, (), None)
        )
    handler.close()
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["x.log", "x.log.1", "x.log.2", "x.log.3"]
    assert all(p.stat().st_mode & 0o077 == 0 for p in tmp_path.iterdir())
    assert "line 59" in (tmp_path / "x.log").read_text()


# ------------------------------------------------------------------------------ one instance
def test_lock_when_held_then_the_second_is_refused_naming_the_first(tmp_path):
    our_record().write(tmp_path / "record.json")
    first, second = InstanceLock(tmp_path / "lock"), InstanceLock(tmp_path / "lock")
    first.acquire(tmp_path / "record.json")
    with pytest.raises(Conflict, match=rf"process {os.getpid()} .*picloud down"):
        second.acquire(tmp_path / "record.json")
    first.release()
    second.acquire(tmp_path / "record.json")
    second.release()


@pytest.mark.parametrize(
    "change",
    [{"process_start_ticks": 1}, {"boot_id": "other"}, {"host_id": "other"}, {"pid": 2**22}],
)
def test_record_when_of_another_process_then_not_alive(tmp_path, change):
    assert is_alive(our_record())
    assert not is_alive(our_record(**change))


def test_record_when_written_then_read_and_when_damaged_then_none(tmp_path):
    path = tmp_path / "record.json"
    assert read_record(path) is None
    our_record().write(path)
    assert read_record(path) == our_record()
    path.write_text('{"pid": "x"}')
    assert read_record(path) is None


# ------------------------------------------------------------------------------- environments
def test_environment_id_when_a_package_changes_then_another():
    assert environment_id(PYTHON) == environment_id(replace(PYTHON))
    assert environment_id(PYTHON) != environment_id(replace(PYTHON, packages_digest="b"))
    assert environment_id(PYTHON) != environment_id(PYTHON, base="other")


class StoppedClock:
    seconds = 0.0

    def now_at(self) -> float:
        return self.seconds

    def steady_seconds(self) -> float:
        return self.seconds


async def test_check_when_a_path_is_missing_then_env_missing_and_a_new_look_after_a_while(
    tmp_path,
):
    clock = StoppedClock()
    service = EnvironmentService(clock)
    python = replace(PYTHON, paths=(str(tmp_path / "lib"),))
    with pytest.raises(InvalidRequest, match="lib") as caught:
        await service.check(0, python)
    assert caught.value.reason == "env_missing"
    (tmp_path / "lib").mkdir()
    assert await service.check(0, python) == environment_id(python)
    (tmp_path / "lib").rmdir()
    await service.check(0, python)
    clock.seconds = 6.0
    with pytest.raises(InvalidRequest):
        await service.check(0, python)


@pytest.mark.parametrize("folder", ["relative", "/nowhere", "/proc/x\0y"])
async def test_check_when_the_folder_is_wrong_then_refused(folder):
    with pytest.raises(InvalidRequest, match=folder.partition("\0")[0]):
        await EnvironmentService(StoppedClock()).check(0, PYTHON, folder)
