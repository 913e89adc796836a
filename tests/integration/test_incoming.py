import os
from typing import Any

import pytest

from picloud_jupyter.protocol.frames import split_frame
from picloud_services.agent.incoming import RefusedFileError, move_results, take_result

OURS = {os.geteuid()}


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
    name = take_result(out, "r1", 6, incoming, OURS)
    assert (incoming / name).read_bytes() == b"result"
    assert (incoming / name).stat().st_mode & 0o777 == 0o400
    assert not list(out.iterdir())


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
        take_result(out, "r", 6, incoming, OURS)
    assert not list(incoming.iterdir())


def test_take_when_it_belongs_to_somebody_else_then_it_is_refused(out, incoming):
    (out / "r").write_bytes(b"x" * 6)
    with pytest.raises(RefusedFileError, match="belongs to uid"):
        take_result(out, "r", 6, incoming, {os.geteuid() + 1})
    assert not list(incoming.iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "../r", "/etc/passwd", "a\0b"])
def test_take_when_the_name_leads_elsewhere_then_it_is_refused(out, incoming, name):
    with pytest.raises(RefusedFileError):
        take_result(out, name, 6, incoming, OURS)


def test_take_when_the_folder_itself_is_a_link_then_nothing_is_taken(tmp_path, out, incoming):
    (tmp_path / "link").symlink_to(out)
    (out / "r").write_bytes(b"x" * 6)
    with pytest.raises(OSError, match="link"):
        take_result(tmp_path / "link", "r", 6, incoming, OURS)
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
    body = move_results(items, b"abcde", out, incoming, OURS)
    sizes = [item[6] for item in items]
    assert sum(sizes) == len(body)
    assert body[:3] == b"abc"
    assert body[-2:] == b"de"
    header, _ = split_frame(body[3 : 3 + sizes[1]])
    assert "cannot be kept" in header["message"]
    assert [item[1] for item in items] == ["done", "result_unserializable", "done", "done"]
    assert (incoming / items[2][7]["file"]).read_bytes() == b"x" * 6
