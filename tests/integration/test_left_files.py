"""What a killed job left is kept; nothing in it is followed or believed."""

import os
from pathlib import Path

import pytest

from picloud_jupyter.protocol.frames import PREFIX, decode_header
from picloud_jupyter.protocol.written_files import MAX_LEFT, MAX_LISTING_BYTES, read_listing
from picloud_services.agent import left_files
from picloud_services.agent.left_files import MAX_DEPTH, has_files, keep_files
from picloud_services.agent.overlay import remove_tree
from picloud_services.base.user_rights import Rights, file_rights
from tests.tools.deep_folders import make_deep


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "files"
    path.mkdir()
    yield path
    remove_tree(str(path))  # what is too deep for pytest


def read(target):
    data = target.read_bytes()
    header_bytes, _ = PREFIX.unpack_from(data)
    start = PREFIX.size + header_bytes
    listing = read_listing(decode_header(data[PREFIX.size : start]), header_bytes, len(data))
    return {
        f.path: data[f.offset : f.offset + f.size_bytes] for f in listing.files
    }, listing.left


def test_files_are_kept_and_can_be_kept_again(folder, tmp_path):
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "a").write_bytes(b"x" * 3_000_000)
    (folder / "b").write_bytes(b"")
    for _ in range(2):  # the event that names it may come again
        said = keep_files(folder, tmp_path / "target")
        assert said is not None
        assert (said["count"], said["left"]) == (2, 0)
        assert said["size"] == (tmp_path / "target").stat().st_size
    kept, _ = read(tmp_path / "target")
    assert kept == {"b": b"", "deep/er/a": b"x" * 3_000_000}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "target"]


def test_links_and_pipes_are_named_and_not_followed(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("not yours")
    (folder / "to_file").symlink_to(secret / "key")
    (folder / "to_folder").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff")).write_bytes(b"x")
    assert keep_files(folder, tmp_path / "target") is not None
    kept, left = read(tmp_path / "target")
    assert kept == {}
    assert {path for path, _ in left} == {"to_file", "to_folder", "pipe", "?"}
    assert b"not yours" not in (tmp_path / "target").read_bytes()


def test_what_is_too_much_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(left_files, "MAX_FILES_BYTES", 10)
    (folder / "a").write_bytes(b"12345678")
    (folder / "b").write_bytes(b"12345678")
    keep_files(folder, tmp_path / "target")
    kept, left = read(tmp_path / "target")
    assert list(kept) == ["a"]
    assert [path for path, _ in left] == ["b"]


def test_where_nothing_was_written_no_file_is_made(folder, tmp_path):
    (folder / "empty").mkdir()
    assert has_files(folder)
    assert keep_files(folder, tmp_path / "target") is None
    assert not has_files(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_folders_without_end_cost_only_what_lies_in_them(folder, tmp_path):
    make_deep(folder, 1_200)
    (folder / "a").write_bytes(b"x")
    said = keep_files(folder, tmp_path / "target")
    assert said is not None
    kept, left = read(tmp_path / "target")
    assert kept == {"a": b"x"}
    assert left == (("/".join(["d"] * (MAX_DEPTH + 1)), left_files._TOO_DEEP),)


def test_what_is_not_kept_is_counted_and_the_list_stays_readable(folder, tmp_path):
    for number in range(MAX_LEFT + 5):
        (folder / f"{number:04}{'x' * 200}").symlink_to("nowhere")
    said = keep_files(folder, tmp_path / "target")
    assert said is not None
    assert said["left"] == MAX_LEFT + 5
    _, left = read(tmp_path / "target")
    assert len(left) == MAX_LEFT + 1
    assert left[-1] == ("...", "5 more were left out")


def test_long_names_are_left_out_before_the_list_is_too_long_to_read(folder, tmp_path):
    deep = folder / "/".join(["\x01" * 200] * 4)  # a letter of it takes 6 bytes in the list
    deep.mkdir(parents=True)
    for number in range(1_000):
        (deep / str(number)).write_bytes(b"")
    keep_files(folder, tmp_path / "target")
    header_bytes, _ = PREFIX.unpack_from((tmp_path / "target").read_bytes())
    assert header_bytes <= MAX_LISTING_BYTES
    kept, left = read(tmp_path / "target")
    assert kept
    assert len(kept) + len(left) == 1_000


def test_a_disk_that_is_full_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def refuse(_folder) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(left_files, "sync_folder", refuse)
    (folder / "a").write_bytes(b"x")
    with pytest.raises(OSError, match="No space"):
        keep_files(folder, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_what_the_job_closed_is_named_and_the_rest_kept(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)  # the folders above are not everybody's
    folder, target = Path("files"), Path("target")
    with file_rights(Rights(65534, 65534) if os.geteuid() == 0 else None):
        (folder / "closed").mkdir(parents=True)
        (folder / "a").write_bytes(b"x")
        (folder / "closed_file").write_bytes(b"y")
        for closed in ("closed", "closed_file"):
            (folder / closed).chmod(0)
        keep_files(folder, target)
        kept, left = read(target)
        assert kept == {"a": b"x"}
        assert {path for path, _ in left} == {"closed", "closed_file"}
        folder.chmod(0)
        assert has_files(folder)
        folder.chmod(0o700)
