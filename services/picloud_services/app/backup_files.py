"""What a backup is: the files it may hold, in a folder or a tar file, and the list that they are checked by.

The list comes last: what has none was never finished.
"""

import contextlib
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from picloud_jupyter.protocol.errors import Corrupt, Incompatible

FORMAT = 1
LIST = "picloud-backup.json"
STORE = "store.db"
PIECE_BYTES = 1024 * 1024
_MAX_LIST_BYTES = 1024**3
_NAME = re.compile(
    r"store\.db|secrets/(?:[0-9]{1,10}\.json|CACHEDIR\.TAG)"
    r"|(?:blobs|code)/(?P<blob>[0-9a-f]{2})/(?P=blob)[0-9a-f]{14,62}"
    r"|logs/(?P<lease>[0-9a-f]{2})/(?P=lease)[0-9a-f]{14}\.[0-9a-z.]{1,40}"
)


@dataclass(slots=True)
class BackupList:
    """What a backup says of itself; ``lost`` was damaged or gone in the home already."""

    version: str
    host: str
    made_at: float
    secrets: bool
    lost: list[str] = field(default_factory=list)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)  # name -> bytes, sha256
    format: int = FORMAT

    def encode(self) -> bytes:
        """Return it as it stands in the backup."""
        return json.dumps(asdict(self)).encode()


def decode_list(data: bytes, where: object) -> BackupList:
    """Return the list of the backup ``where``.

    Raises:
        Corrupt: it is damaged.
        Incompatible: a newer version made it.
    """
    try:
        found = json.loads(data)
        if found["format"] > FORMAT:
            raise Incompatible(
                f"{where} was made by picloud-jupyter {found['version']}, in a form that this version does not know.",
                hint="pip install -U picloud-jupyter",
            )
        files = {
            name: (int(size), str(digest)) for name, (size, digest) in found["files"].items()
        }
        return BackupList(
            str(found["version"]),
            str(found["host"]),
            float(found["made_at"]),
            bool(found["secrets"]),
            [str(name) for name in found["lost"]],
            files,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise damaged(where, f"its list {LIST} cannot be read") from exc


def damaged(where: object, why: str) -> Corrupt:
    """Return the error for a backup that is not what was made."""
    return Corrupt(
        f"{where} is no whole backup: {why}. Nothing was restored.",
        hint="use another copy of it; `picloud backup` makes one",
    )


def belongs(name: str) -> bool:
    """Return whether a file of the home with this name goes into a backup."""
    return bool(_NAME.fullmatch(name))


class Readable(Protocol):
    """What bytes come from."""

    def read(self, count: int, /) -> bytes:
        """Return the next bytes, at most so many."""


class HashedFile:
    """Reads exactly ``size_bytes`` of a file, and hashes them on the way."""

    def __init__(self, file: Readable, size_bytes: int) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._left = self.size_bytes = size_bytes

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes; b"" at the end.

        Raises:
            EOFError: the file is shorter than was said.
        """
        wanted = self._left if count < 0 else min(count, self._left)
        piece = self._file.read(wanted)
        if wanted and not piece:
            raise EOFError(f"{self._left} bytes are missing at its end")
        self._left -= len(piece)
        self._hash.update(piece)
        return piece

    def copy_to(self, target: BinaryIO) -> None:
        """Write all of it into ``target``."""
        while piece := self.read(PIECE_BYTES):
            target.write(piece)

    @property
    def digest(self) -> str:
        """The sha256 in hex of what was read so far."""
        return self._hash.hexdigest()


class SourceFile:
    """Reads a file of the home. From where it cannot be read on come zeros, and ``is_read`` is false.

    Its size stands in the backup before its content does.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.is_read = True

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes; it never ends."""
        piece = b""
        if self.is_read:
            with contextlib.suppress(OSError):
                piece = self._file.read(count)
            self.is_read = len(piece) == count
        return piece.ljust(count, b"\0")


class Target(Protocol):
    """Where a backup goes."""

    def put(self, name: str, content: HashedFile) -> None:
        """Write one file."""

    def close(self) -> None:
        """Come to an end: it is whole."""


class FolderTarget:
    """A backup as a folder of files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, content: HashedFile) -> None:
        """See `Target`."""
        path = self._folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "xb", opener=_private) as file:
            content.copy_to(file)

    def close(self) -> None:
        """See `Target`."""


class TarTarget:
    """A backup as a tar file, compressed if its name ends in gz."""

    def __init__(self, path: Path, *, compressed: bool) -> None:
        path.unlink(missing_ok=True)  # a kill left it
        # A new file: in a folder like /tmp somebody else's would stay readable to them.
        self._file = open(path, "xb", opener=_private)  # noqa: SIM115  # closed by close
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=self._file, mode="w:gz" if compressed else "w", format=tarfile.PAX_FORMAT
        )

    def put(self, name: str, content: HashedFile) -> None:
        """See `Target`."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = content.size_bytes, 0o600
        self._tar.addfile(info, content)

    def close(self) -> None:
        """See `Target`."""
        self._tar.close()
        self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def put_list(target: Target, found: BackupList) -> None:
    """Write the list, which makes a backup whole."""
    data = found.encode()
    target.put(LIST, HashedFile(BytesIO(data), len(data)))


@contextlib.contextmanager
def read_backup(path: Path) -> Iterator[Iterator[tuple[str, HashedFile]]]:
    """Give the files of the backup at ``path`` one after another, each to be read before the next.

    Raises:
        Corrupt: it is none, or holds what no backup does, or cannot be read to its end.
    """
    try:
        if path.is_dir():
            yield _in_folder(path)
        else:
            with tarfile.open(path, "r:*") as tar:
                yield _in_tar(tar, path)
    except (tarfile.TarError, EOFError, zlib.error) as exc:
        several = "\n" in str(exc)  # tarfile tells what each way of reading it said
        raise damaged(path, "it is no tar file" if several else str(exc)) from exc


def _in_folder(folder: Path) -> Iterator[tuple[str, HashedFile]]:
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = str(path.relative_to(folder))
        _check(name, folder, plain=path.is_file() and not path.is_symlink())
        with path.open("rb") as file:
            yield name, HashedFile(file, path.stat().st_size)


def _in_tar(tar: tarfile.TarFile, where: Path) -> Iterator[tuple[str, HashedFile]]:
    for member in tar:
        _check(member.name, where, plain=member.isreg())
        file = tar.extractfile(member)
        assert file is not None  # it is a plain one
        yield member.name, HashedFile(file, member.size)


def _check(name: str, where: Path, *, plain: bool) -> None:
    if not plain or not (name == LIST or belongs(name)):
        raise damaged(where, f"it holds {name[:200]!r}, which belongs to no backup")


def read_list(content: HashedFile, where: Path) -> BackupList:
    """Return the list that ``content`` is."""
    if content.size_bytes > _MAX_LIST_BYTES:
        raise damaged(where, f"its list {LIST} is too long")
    return decode_list(content.read(), where)
