"""`cloud.files_of`: what a job wrote in its working folder."""

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote

from picloud_jupyter.cloud.jid_ranges import read_jids
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import Conflict, Corrupt, InvalidRequest, NotFound
from picloud_jupyter.protocol.ids import count_ranges
from picloud_jupyter.protocol.written_files import is_plain_path

_SLICE_BYTES = 16 * 1024 * 1024
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class JobFile:
    """One file that a job wrote. ``path`` is below its working folder, ``modified_at`` UTC seconds."""

    jid: int
    path: str
    size_bytes: int
    modified_at: float

    def read(self) -> bytes:
        """Return its content."""
        return b"".join(self.pieces())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return its content as text."""
        return self.read().decode(encoding)

    def pieces(self) -> Iterator[bytes]:
        """Yield its content in pieces of at most 16 MiB."""
        route = routes.FILE.format(jid=self.jid, path=quote(self.path, safe=""))
        done = 0
        while done < self.size_bytes:
            query = {"offset": done, "limit": _SLICE_BYTES}
            piece = session().client.exchange("GET", route, query=query).answer().body
            if not len(piece):
                raise Corrupt(f"{self.path!r} of job {self.jid} is shorter than it was listed")
            done += len(piece)
            yield bytes(piece)

    def save(self, target: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write it to ``target``, whose folders are made, and return that path.

        Raises:
            Conflict: there is something already, and ``overwrite`` was not asked for.
            OSError: this machine refused.
        """
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not overwrite and os.path.lexists(path):
            raise Conflict(
                f"{path} exists already", self.jid, hint="overwrite=True (--force) replaces it"
            )
        part = path.with_name(f".{path.name[:200]}.picloud-{os.urandom(4).hex()}")
        try:
            with open(part, "xb") as file:
                file.writelines(self.pieces())
            os.utime(part, (self.modified_at, self.modified_at))
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return path


class JobFiles(Sequence[JobFile]):
    """The files that a job wrote: by number, or by path: ``files["out/plot.png"].read()``.

    ``left`` are (path, why) of those that were not kept, ``note`` says what else there is to know.
    """

    def __init__(
        self, jid: int, files: Sequence[JobFile], left: Sequence[tuple[str, str]], note: str
    ) -> None:
        self.jid = jid
        self.left = tuple(left)
        self.note = note
        self._files = tuple(files)

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, key: int | str) -> JobFile: ...
    @overload
    def __getitem__(self, key: slice) -> "JobFiles": ...
    def __getitem__(self, key: int | str | slice) -> "JobFile | JobFiles":
        if isinstance(key, slice):
            return JobFiles(self.jid, self._files[key], self.left, self.note)
        if isinstance(key, int):
            return self._files[key]
        return self.find(key)

    def find(self, path: str) -> JobFile:
        """Return the file at ``path``.

        Raises:
            NotFound: it kept no such file; those that it did are named.
        """
        for file in self._files:
            if file.path == path:
                return file
        raise NotFound(f"it kept no file {path!r}; it has {self._names()}", self.jid)

    def fetch(
        self, folder: str | os.PathLike[str] = ".", *, overwrite: bool = False
    ) -> list[Path]:
        """Write all of them below ``folder``, under their paths, and return where they are now.

        Raises:
            Conflict: one is there already, and ``overwrite`` was not asked for; nothing was written.
            InvalidRequest: a path leads out of ``folder``, by a link that is there.
        """
        top = Path(folder)
        targets = [_target(top, file) for file in self._files]
        there = [str(target) for target in targets if os.path.lexists(target)]
        if there and not overwrite:
            names = ", ".join(there[:3]) + (" ..." if len(there) > 3 else "")
            raise Conflict(
                f"{len(there)} of {len(targets)} files exist already: {names}",
                self.jid,
                hint="name another folder, or overwrite=True (--force)",
            )
        return [
            file.save(target, overwrite=overwrite)
            for file, target in zip(self._files, targets, strict=True)
        ]

    def _names(self) -> str:
        more = f" and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return ", ".join(repr(file.path) for file in self._files[:_SHOWN]) + more or "none"

    def _head(self) -> str:
        count = f"{len(self):,} file{'' if len(self) == 1 else 's'} of job {self.jid}"
        return f"{count}. {self.note}" if self.note else count

    def _rest(self) -> list[str]:
        more = [f"... {len(self) - _SHOWN:,} more"] if len(self) > _SHOWN else []
        return more + [f"{path} is not kept: {why}" for path, why in self.left[:_SHOWN]]

    def __repr__(self) -> str:
        lines = [f"{file.path}  {file.size_bytes:,} bytes" for file in self._files[:_SHOWN]]
        return "\n  ".join([self._head(), *lines, *self._rest()])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(file.path)}</td><td>{file.size_bytes:,} bytes</td></tr>"
            for file in self._files[:_SHOWN]
        )
        head, *rest = (
            f"<div>{html.escape(line)}</div>" for line in (self._head(), *self._rest())
        )
        return f"{head}<table>{rows}</table>{''.join(rest)}"


def files_of(jid: Any) -> JobFiles:  # noqa: ANN401  # a jid, or anything that holds one
    """Return the files that a finished job wrote in its working folder.

    They are kept as long as its output, up to 10,000 files or 1 GiB of a job; ``left`` says what was
    not kept. ``files_of(jid).fetch("folder")`` brings all of them here.

    Raises:
        TypeError: it is not one job id.
        Conflict: the job is not finished.
        NotFound: it is not yours.
    """
    count = count_ranges(ranges := list(read_jids(jid)))
    if count != 1:
        raise TypeError(f"files_of takes one job id, got {count}: name the job that wrote")
    number = ranges[0][0]
    answer = session().client.get(routes.FILES.format(jid=number))
    files = [
        JobFile(number, f["path"], f["size_bytes"], f["modified_at"]) for f in answer["files"]
    ]
    left = [(entry["path"], entry["why"]) for entry in answer["left"]]
    return JobFiles(number, files, left, answer["note"])


def _target(top: Path, file: JobFile) -> Path:
    """Return where ``file`` goes; no path that a job chose leads out of ``top``."""
    target = top / file.path
    if not is_plain_path(file.path) or not target.parent.resolve().is_relative_to(
        top.resolve()
    ):
        raise InvalidRequest(
            f"{file.path!r} of job {file.jid} leads out of {top}",
            hint="fetch it with save(target)",
        )
    return target
