import errno
import fcntl
import os
from pathlib import Path

import pytest

from picloud_jupyter.cloud import uploads
from picloud_jupyter.protocol.errors import DiskFull
from picloud_jupyter.protocol.frames import Buffer

PARTS: list[Buffer] = [b"some ", memoryview(b""), bytearray(b"bytes")]


def is_held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_file_while_it_is_told_of_then_it_is_held(tmp_path):
    """Or the service would take it for that of a client that was killed."""
    path = tmp_path / "payload"
    with uploads._written(str(path), PARTS):
        assert is_held(path)
    assert not is_held(path)


def test_file_when_it_is_being_written_then_it_has_no_name(tmp_path, monkeypatch):
    seen = []
    write = os.writev

    def writev(file, views):
        seen.append(os.listdir(tmp_path))  # what a client leaves that is killed here
        return write(file, views[:1])

    monkeypatch.setattr(os, "writev", writev)
    path = tmp_path / "payload"
    with uploads._written(str(path), PARTS) as digest:
        pass
    assert seen == [[], []]
    assert path.read_bytes() == b"some bytes"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_nlink == 1
    assert digest == uploads._hash(PARTS)


def test_file_where_the_file_system_knows_none_without_a_name(tmp_path, monkeypatch):
    really = os.open

    def without_unnamed(path, flags, *mode):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "as NFS says")
        return really(path, flags, *mode)

    monkeypatch.setattr(os, "open", without_unnamed)
    path = tmp_path / "payload"
    with uploads._written(str(path), PARTS):
        assert path.read_bytes() == b"some bytes"
        assert is_held(path)
    assert not is_held(path)


@pytest.mark.parametrize(
    "call", ["open", "writev", "link"]
)  # of disks without bytes, without files
def test_file_when_the_disk_is_full(tmp_path, monkeypatch, call):
    def refuse(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, call, refuse)
    with (
        pytest.raises(DiskFull, match="does not fit"),
        uploads._written(str(tmp_path / "payload"), PARTS),
    ):
        pytest.fail("nothing was written")
    assert os.listdir(tmp_path) == []
