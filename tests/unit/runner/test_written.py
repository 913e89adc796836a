"""What an element wrote is kept and taken away; links and devices are never followed."""

import os

import pytest

from picloud_jupyter.protocol.frames import PREFIX, decode_header
from picloud_jupyter.protocol.written_files import (
    Listing,
    WrittenFile,
    listing_header,
    read_listing,
)
from picloud_kernels.runner import written
from picloud_kernels.runner.written import WrittenFiles


@pytest.fixture
def folder(tmp_path):
    """The job's folder, which is its own layer here: what is removed from one is gone from both."""
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.fixture
def out(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture
def files(folder, out):
    return WrittenFiles(str(folder), str(folder), str(out))


def read(out, extra) -> tuple[Listing, bytes]:
    data = (out / extra["files"]["file"]).read_bytes()
    assert len(data) == extra["files"]["size"]
    header_bytes, body_bytes = PREFIX.unpack_from(data)
    start = PREFIX.size + header_bytes
    assert start + body_bytes == len(data)
    return read_listing(decode_header(data[PREFIX.size : start]), header_bytes, len(data)), data


def test_nothing_written_costs_no_file(files, out):
    assert files.take() == {}
    assert not list(out.iterdir())
    assert not files.is_spent


def test_files_are_kept_with_their_paths_and_taken_away(files, folder, out):
    (folder / "a.txt").write_bytes(b"first")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "b").write_bytes(b"")
    (folder / "deep" / "c").write_bytes(b"x" * 100_000)
    extra = files.take()
    listing, data = read(out, extra)
    kept = {f.path: data[f.offset : f.offset + f.size_bytes] for f in listing.files}
    assert kept == {"a.txt": b"first", "deep/c": b"x" * 100_000, "deep/er/b": b""}
    assert extra["files"]["count"] == 3
    assert not list(folder.iterdir())
    assert not files.is_spent


def test_each_element_has_its_own_files(files, folder, out):
    found = []
    for number in range(3):
        (folder / f"f{number}").write_text(str(number))
        found.append([f.path for f in read(out, files.take())[0].files])
        assert files.take() == {}
    assert found == [["f0"], ["f1"], ["f2"]]


def test_links_devices_and_pipes_are_named_and_not_followed(files, folder, out, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("not yours")
    (folder / "link").symlink_to(secret / "key")
    (folder / "folder_link").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    listing, data = read(out, files.take())
    assert not listing.files
    assert {path for path, _ in listing.left} == {"link", "folder_link", "pipe"}
    assert b"not yours" not in data
    assert (secret / "key").read_text() == "not yours"
    assert not list(folder.iterdir())


def test_what_is_too_much_is_named(files, folder, out, monkeypatch):
    monkeypatch.setattr(written, "MAX_FILES_BYTES", 2 * 1024 * 1024)
    monkeypatch.setattr(written, "MAX_FILES", 3)
    (folder / "a").write_bytes(b"a")
    (folder / "big").write_bytes(b"x" * 3 * 1024 * 1024)
    for name in "cdef":
        (folder / name).write_bytes(b"y")
    listing, _ = read(out, files.take())
    assert [f.path for f in listing.files] == ["a", "c", "d"]
    assert dict(listing.left)["big"].startswith("at most 2 MiB of a job are kept")
    assert dict(listing.left)["f"].startswith("at most 3 files of a job are kept")


def test_a_name_that_is_no_text_is_named(files, folder, out):
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")
    listing, _ = read(out, files.take())
    assert [why for _, why in listing.left] == ["its name is not UTF-8"]
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_looked_into_is_named_and_serves_nobody_else(
    files, folder, out
):
    inside = os.open(folder, os.O_RDONLY)
    for _ in range(20):  # deeper than the longest path, which stops root too
        os.mkdir("d" * 250, dir_fd=inside)
        outer, inside = inside, os.open("d" * 250, os.O_RDONLY, dir_fd=inside)
        os.close(outer)
    os.close(os.open("result", os.O_WRONLY | os.O_CREAT, dir_fd=inside))
    os.close(inside)
    listing, _ = read(out, files.take())
    ((path, why),) = listing.left
    assert path.startswith("ddd")
    assert why.startswith("it is a folder that cannot be looked into: ")
    assert files.is_spent


def test_a_list_that_would_be_too_long_to_be_read_ends_early(files, folder, out, monkeypatch):
    monkeypatch.setattr(written, "_LISTED_BYTES", 500)
    for number in range(5):
        (folder / (f"{number}" + "é" * 50)).write_text("x")
    (folder / ("z" * 250)).mkdir()
    os.mkfifo(folder / ("z" * 250) / ("z" * 250))
    os.mkfifo(folder / ("z" * 250) / ("y" * 250))
    listing, _ = read(out, files.take())
    assert 0 < len(listing.files) < 5
    assert any("too long" in why for _, why in listing.left)
    assert max(len(path) for path, _ in listing.left) < 510


@pytest.mark.parametrize("at", [2e11, -2e11])
def test_a_file_of_an_impossible_time_does_not_cost_the_list(at):
    header = listing_header([WrittenFile("a", 0, at), WrittenFile("b", 0, 5.0)], [])
    listing = read_listing(header, 100, PREFIX.size + 100)
    assert [(f.path, f.modified_at) for f in listing.files] == [("a", at / 2), ("b", 5.0)]


def test_a_full_disk_costs_the_files_and_not_the_result(files, folder, out):
    (folder / "a").write_bytes(b"a")
    out.rmdir()
    assert "could not be kept" in files.take()["note"]
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("folder_name", "layer"), [("", "x"), ("x", ""), ("x", "/nowhere")])
def test_without_a_layer_nothing_is_looked_at(out, folder_name, layer):
    assert WrittenFiles(folder_name, layer, str(out)).take() == {}
