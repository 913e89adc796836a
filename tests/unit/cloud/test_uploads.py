import errno
import os

import pytest

from picloud_jupyter.cloud import uploads
from picloud_jupyter.protocol.errors import DiskFull
from picloud_jupyter.protocol.frames import Buffer

PARTS: list[Buffer] = [b"some ", memoryview(b""), bytearray(b"bytes")]


def test_file_when_it_is_being_written_then_it_has_no_name(tmp_path, monkeypatch):
    seen = []
    write = os.writev

    def writev(file, views):
        seen.append(os.listdir(tmp_path))  # what a client leaves that is killed here
        return write(file, views[:1])

    monkeypatch.setattr(os, "writev", writev)
    path = tmp_path / "payload"
    digest = uploads._write_and_hash(str(path), PARTS)
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
    uploads._write_and_hash(str(path), PARTS)
    assert path.read_bytes() == b"some bytes"


def test_file_when_the_disk_is_full(tmp_path, monkeypatch):
    def writev(_file, _views):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", writev)
    with pytest.raises(DiskFull, match="does not fit"):
        uploads._write_and_hash(str(tmp_path / "payload"), PARTS)
    assert os.listdir(tmp_path) == []
