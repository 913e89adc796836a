"""Values that name local files: found before anything is sent."""

import os

import pytest

from picloud_jupyter.cloud import config
from picloud_jupyter.cloud.shell_templates import parse_template
from picloud_jupyter.cloud.shell_values import LocalFile, bind, bind_value, check_filled, load
from picloud_jupyter.protocol.errors import PayloadTooLarge
from picloud_jupyter.protocol.shell import MAX_COMMAND_BYTES, CommandFailed, UploadedFile
from picloud_jupyter.serialize.payload import bytes_prefix, dump_bytes, dump_call, load_call
from picloud_jupyter.serialize.payload import load as load_payload


def test_a_value_that_begins_with_at_is_a_file(tmp_path):
    (tmp_path / "data.txt").write_bytes(b"\xffcontents")
    path = str(tmp_path / "data.txt")
    values = bind({"f": f"@{path}", "text": "x@y", "name": r"\@bob"})
    assert values == {"f": LocalFile(path), "text": "x@y", "name": "@bob"}
    assert load(values)["f"] == UploadedFile("data.txt", b"\xffcontents")


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").touch()
    assert bind_value("@~/x") == LocalFile(str(tmp_path / "x"))


def test_what_cannot_be_sent_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file to send"):
        bind_value(f"@{tmp_path}/missing")
    with pytest.raises(ValueError, match="regular file"):
        bind_value(f"@{tmp_path}")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="regular file"):
        bind_value(f"@{tmp_path}/pipe")
    with pytest.raises(ValueError, match="names no file"):
        bind_value("@")


def test_a_file_above_the_guard_is_refused_by_its_size(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(config.max_transmit_data + 1)
    with pytest.raises(PayloadTooLarge, match=r"large has [\d,]+ bytes, more than the"):
        bind_value(f"@{path}")


def test_the_name_of_a_file_counts_for_the_length(tmp_path):
    path = tmp_path / ("n" * 200)
    path.touch()
    pieces = parse_template("{f} " + "x" * (MAX_COMMAND_BYTES - 205))
    with pytest.raises(ValueError, match="bytes"):
        check_filled(pieces, {"f": LocalFile(str(path))})
    check_filled(pieces, {"f": "short"})


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_files_travel_as_they_are(size):
    data = os.urandom(size)
    parts = dump_call(({"f": UploadedFile("x", data)},), {}, fast=2)
    (values,), _ = load_call(b"".join(parts))
    assert values["f"].name == "x"
    assert bytes(values["f"].data) == data


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100_000])
def test_bytes_behind_the_prefix_are_a_payload_of_them(size):
    data = os.urandom(size)
    assert load_payload(bytes_prefix(size) + data) == data
    assert len(bytes_prefix(size)) == len(bytes_prefix(0))


def test_a_failed_command_can_be_pickled():
    error = load_payload(dump_bytes(CommandFailed("words", 3, b"err")))
    assert (str(error), error.exit_code, error.stderr) == ("words", 3, b"err")
