import copy
import errno
import os
import shutil
from typing import Any

import pytest

from picloud_jupyter.protocol.frames import split_frame
from picloud_services.agent.incoming import (
    RefusedFileError,
    blob_name,
    move_results,
    take_result,
)
from tests.tools.disks import mounted

OURS = {os.geteuid()}
LEASE = "0123456789abcdef"


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def incoming(tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


def test_take_when_it_is_a_plain_file_then_it_is_moved_and_sealed(out, incoming):
    (out / "r1").write_bytes(b"result")
    take_result(out, "r1", 6, incoming / "n1", OURS)
    assert (incoming / "n1").read_bytes() == b"result"
    assert (incoming / "n1").stat().st_mode & 0o777 == 0o400
    assert not list(out.iterdir())


def test_take_when_the_disk_refuses_to_keep_its_name_then_nothing_of_it_stays(
    out, incoming, monkeypatch
):
    def refuse(_folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("picloud_services.agent.incoming.sync_folder", refuse)
    (out / "r1").write_bytes(b"result")
    with pytest.raises(OSError, match="Input/output error"):
        take_result(out, "r1", 6, incoming / "n1", OURS)
    assert not list(incoming.iterdir())


@pytest.mark.root
def test_take_when_blobs_are_on_another_disk_then_it_is_copied_whole_or_not_at_all(
    out, tmp_path
):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        (out / "r1").write_bytes(b"x" * 2**21)
        take_result(out, "r1", 2**21, disk / "n1", OURS)
        assert (disk / "n1").read_bytes() == b"x" * 2**21
        assert (disk / "n1").stat().st_mode & 0o777 == 0o400
        assert not list(out.iterdir())
        (out / "r2").write_bytes(b"y" * 2**22)
        with pytest.raises(OSError, match="No space"):
            take_result(out, "r2", 2**22, disk / "n2", OURS)
        assert os.listdir(disk) == ["n1"]
        assert (out / "r2").exists()


def make_link(out):
    (out / "r").symlink_to("/etc/passwd")


def make_second_name(out):
    (out / "other").write_bytes(b"x" * 6)
    (out / "r").hardlink_to(out / "other")


def make_pipe(out):
    os.mkfifo(out / "r")


def make_folder(out):
    (out / "r").mkdir()


def make_nothing(_out):
    pass


def make_short(out):
    (out / "r").write_bytes(b"x")


@pytest.mark.parametrize(
    "make", [make_link, make_second_name, make_pipe, make_folder, make_nothing, make_short]
)
def test_take_when_it_is_no_plain_file_of_its_size_then_it_is_refused(out, incoming, make):
    make(out)
    with pytest.raises(RefusedFileError):
        take_result(out, "r", 6, incoming / "n", OURS)
    assert not list(incoming.iterdir())


def test_take_when_most_of_it_is_a_hole_that_would_not_fit_then_it_is_refused(out, incoming):
    (out / "r").touch()
    size = 2**43  # no disk of a test has so much room
    os.truncate(out / "r", size)
    with pytest.raises(RefusedFileError, match="never written"):
        take_result(out, "r", size, incoming / "n", OURS)
    assert not list(incoming.iterdir())


def test_take_when_a_hole_in_it_would_fit_then_it_is_taken(out, incoming):
    (out / "r").write_bytes(b"x")
    os.truncate(out / "r", 2**20)
    take_result(out, "r", 2**20, incoming / "n", OURS)
    assert (incoming / "n").stat().st_size == 2**20


@pytest.mark.root
def test_take_when_a_copy_would_not_fit_then_nothing_of_it_is_written(
    out, tmp_path, monkeypatch
):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        (out / "r").touch()
        os.truncate(out / "r", 2**24)  # fits here, and not there
        monkeypatch.delattr(os, "sendfile")
        with pytest.raises(OSError, match="No space"):
            take_result(out, "r", 2**24, disk / "n", OURS)
        assert not list(disk.iterdir())


def test_take_when_it_belongs_to_somebody_else_then_it_is_refused(out, incoming):
    (out / "r").write_bytes(b"x" * 6)
    with pytest.raises(RefusedFileError, match="belongs to uid"):
        take_result(out, "r", 6, incoming / "n", {os.geteuid() + 1})
    assert not list(incoming.iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "../r", "/etc/passwd", "a\0b"])
def test_take_when_the_name_leads_elsewhere_then_it_is_refused(out, incoming, name):
    with pytest.raises(RefusedFileError):
        take_result(out, name, 6, incoming / "n", OURS)


def test_take_when_the_folder_itself_is_a_link_then_nothing_is_taken(tmp_path, out, incoming):
    (tmp_path / "link").symlink_to(out)
    (out / "r").write_bytes(b"x" * 6)
    with pytest.raises(OSError, match="link"):
        take_result(tmp_path / "link", "r", 6, incoming / "n", OURS)
    assert (out / "r").exists()


def test_move_when_one_is_refused_then_its_element_failed_and_the_others_are_whole(
    out, incoming
):
    (out / "good").write_bytes(b"x" * 6)
    items: list[list[Any]] = [
        [0, "done", 1.0, 0.0, 0.0, 0.0, 3, None],
        [1, "done", 1.0, 0.0, 0.0, 0.0, 0, {"file": "bad", "size": 6}],
        [2, "done", 1.0, 0.0, 0.0, 0.0, 0, {"file": "good", "size": 6}],
        [3, "done", 1.0, 0.0, 0.0, 0.0, 2, {"note": "n"}],
    ]
    body = move_results(LEASE, items, b"abcde", out, incoming, OURS)
    sizes = [item[6] for item in items]
    assert sum(sizes) == len(body)
    assert body[:3] == b"abc"
    assert body[-2:] == b"de"
    header, _ = split_frame(body[3 : 3 + sizes[1]])
    assert "cannot be kept" in header["message"]
    assert [item[1] for item in items] == ["done", "result_unserializable", "done", "done"]
    assert (incoming / items[2][7]["file"]).read_bytes() == b"x" * 6


@pytest.mark.parametrize(
    ("call", "number", "reason", "note"),
    [
        *(
            (
                call,
                errno.EIO,
                "lost_worker",
                "the machine did not take its result (Input/output error)",
            )
            for call in ("open", "rename", "fsync")
        ),
        ("rename", errno.ENOSPC, "disk_full", None),
        ("fsync", errno.ENOSPC, "disk_full", None),
        ("open", errno.ELOOP, "result_unserializable", None),
    ],
)
def test_move_when_the_disk_refuses_then_its_element_says_whose_fault_it_is(
    out, incoming, monkeypatch, call, number, reason, note
):
    (out / "r").write_bytes(b"x" * 6)
    real = getattr(os, call)

    def refuse(what, *arguments, **options):
        if call == "open" and what != "r":
            return real(what, *arguments, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    items: list[list[Any]] = [[0, "done", 1.0, 0.0, 0.0, 0.0, 0, {"file": "r", "size": 6}]]
    body = move_results(LEASE, items, b"", out, incoming, OURS)
    assert items[0][1] == reason
    assert (items[0][7] or {}).get("note") == note
    assert items[0][6] == len(body)
    assert not list(incoming.iterdir())


@pytest.mark.parametrize("adopted", [False, True])
def test_move_when_the_batch_comes_again_then_the_same_file_is_named(out, incoming, adopted):
    (out / "r").write_bytes(b"x" * 6)
    items: list[list[Any]] = [[4, "done", 1.0, 0.0, 0.0, 0.0, 0, {"file": "r", "size": 6}]]
    again = copy.deepcopy(items)
    move_results(LEASE, items, b"", out, incoming, OURS)
    kept = incoming / items[0][7]["file"]
    if adopted:  # the control plane made it a blob, and the acknowledgement was lost
        blob = incoming.parent / kept.name[:2] / kept.name
        blob.parent.mkdir()
        kept = shutil.move(kept, blob)
    (out / "r").write_bytes(b"y" * 6)  # the runner uses the name for another result
    move_results(LEASE, again, b"", out, incoming, OURS)
    assert again == items
    assert kept.read_bytes() == b"x" * 6


def test_move_when_the_job_made_its_folder_a_link_then_it_is_not_run_again(
    tmp_path, out, incoming
):
    (out / "r").write_bytes(b"x" * 6)
    (tmp_path / "link").symlink_to(out)
    items: list[list[Any]] = [[0, "done", 1.0, 0.0, 0.0, 0.0, 0, {"file": "r", "size": 6}]]
    move_results(LEASE, items, b"", tmp_path / "link", incoming, OURS)
    assert (items[0][1], items[0][7]) == ("result_unserializable", None)
    assert (out / "r").exists()


def test_move_when_the_agent_died_before_sealing_then_the_file_is_sealed(out, incoming):
    items: list[list[Any]] = [[0, "done", 1.0, 0.0, 0.0, 0.0, 0, {"file": "r", "size": 6}]]
    moved = incoming / blob_name(LEASE, 0)
    moved.write_bytes(b"x" * 6)
    move_results(LEASE, items, b"", out, incoming, OURS)
    assert (items[0][1], items[0][7]["file"]) == ("done", moved.name)
    assert moved.stat().st_mode & 0o777 == 0o400


def test_written_files_are_taken_beside_the_result(out, incoming):
    (out / "r").write_bytes(b"result")
    (out / "w").write_bytes(b"written")
    files = {"file": "w", "size": 7, "count": 2, "left": 0}
    item: list[Any] = [3, "done", 0.0, 0.0, 0.0, 0.0, 0, {"file": "r", "size": 6, "digest": ""}]
    item[7]["files"] = dict(files)
    move_results(LEASE, [item], b"", out, incoming, OURS)
    assert (item[1], item[7]["file"]) == ("done", blob_name(LEASE, 3))
    name = blob_name(LEASE, 3, "files")
    assert item[7]["files"] == {**files, "file": name}
    assert (incoming / name).read_bytes() == b"written"
    assert not list(out.iterdir())


@pytest.mark.parametrize("make", [make_link, make_second_name, make_pipe, make_nothing])
def test_written_files_that_cannot_be_taken_leave_the_result_as_it_is(out, incoming, make):
    make(out)
    item: list[Any] = [0, "done", 0.0, 0.0, 0.0, 0.0, 4, {}]
    item[7] = {"files": {"file": "r", "size": 6, "count": 1, "left": 0}}
    assert move_results(LEASE, [item], b"body", out, incoming, OURS) == b"body"
    assert item[1] == "done"
    assert "files" not in item[7]
    assert "could not be kept" in item[7]["note"]
    assert not list(incoming.iterdir())
