"""What a killed job left is kept; nothing in it is followed or believed."""

import os

import pytest

from picloud_jupyter.protocol.frames import PREFIX, decode_header
from picloud_jupyter.protocol.written_files import read_listing
from picloud_services.agent import left_files
from picloud_services.agent.left_files import has_files, keep_files


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "files"
    path.mkdir()
    return path


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
