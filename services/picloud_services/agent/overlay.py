"""A container's own folders on disk: made before it starts, removed after its end."""

import contextlib
import os
import stat
from collections.abc import Iterator
from itertools import count

from picloud_services.agent.binds import HOME, Layer
from picloud_services.agent.container import ContainerRequest
from picloud_services.agent.uids import Identity

USER = "picloud"
_PRIVATE = ("home", "tmp", "var_tmp")  # the job's; the others are for the mounts
_PLAIN = ("upper", "work", "root", "empty", "files", "files_work", "files_root")


def prepare(request: ContainerRequest, who: Identity) -> None:
    """Make the folders of ``request.layer_dir`` and the places inside ``run_dir``; repeatable.

    Raises:
        OSError: for example ENOSPC when the disk is full.
    """
    layer = Layer(request.layer_dir)
    for name in (*_PLAIN, *_PRIVATE):
        os.makedirs(layer.at(name), mode=0o755, exist_ok=True)
    for name in (*_PRIVATE, "files"):
        give(layer.at(name), who, 0o700 if name == "home" else 0o755)
    os.chmod(layer.at("upper"), 0o755)  # noqa: S103  # the container's /
    os.chmod(layer.at("tmp"), 0o1777)  # noqa: S103  # as everywhere; its parent is private
    os.chmod(layer.at("var_tmp"), 0o1777)  # noqa: S103
    _write(
        layer.at("passwd"),
        _accounts("/etc/passwd", who.uid, f":x:{who.uid}:{who.gid}::{HOME}:/bin/sh"),
    )
    _write(layer.at("group"), _accounts("/etc/group", who.gid, f":x:{who.gid}:"))
    for name in ("out", "bundle", "written"):
        os.makedirs(f"{request.run_dir}/{name}", exist_ok=True)
    _write(f"{request.run_dir}/code.zip", b"")
    if not os.path.exists(f"{request.run_dir}/resolv.conf"):
        _write(f"{request.run_dir}/resolv.conf", _text("/etc/resolv.conf"))
    os.chmod(request.run_dir, 0o755)  # noqa: S103  # the job passes through; its parent is private
    give(request.out_dir, who, 0o700)


def give(folder: str, who: Identity, mode: int) -> None:
    """Make ``folder`` belong to ``who`` with ``mode``."""
    found = os.stat(folder)
    if (found.st_uid, found.st_gid) != (who.uid, who.gid):
        os.chown(folder, who.uid, who.gid)
    if stat.S_IMODE(found.st_mode) != mode:
        os.chmod(folder, mode)


def _accounts(path: str, number: int, rest: str) -> bytes:
    """The host's list of users or groups, in which ``number`` is called picloud."""
    mark = str(number).encode()
    kept = [line for line in _text(path).splitlines() if line.split(b":")[2:3] != [mark]]
    return b"\n".join([*kept, (USER + rest).encode(), b""])


def remove_tree(folder: str) -> None:
    """Remove ``folder`` with everything in it; one that is gone already is fine.

    Whatever a job left there: folders that nobody may enter, links, and trees deeper than any
    path may be long. Folders are flattened into ``folder`` step by step and never followed by path.
    """
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fchmod(top, 0o700)
        names = (f".{number}" for number in count())
        while inner := _remove_files(top):
            for name in inner:
                _empty(top, name, names)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(folder)


def _empty(top: int, name: str, names: Iterator[str]) -> None:
    """Remove the files of the folder ``name``, move its folders up into ``top``."""
    _open_up(name, top)
    place = os.open(
        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top
    )
    try:
        for inner in _remove_files(place):
            _open_up(inner, place)  # a folder that moves gets a new ".."
            os.rename(inner, _unused(top, names), src_dir_fd=place, dst_dir_fd=top)
    finally:
        os.close(place)


def _open_up(name: str, place: int) -> None:
    """Let ourselves into the folder ``name`` of ``place``; as root there is nothing to open up.

    Its user may still reach it through a descriptor from outside, and put a link there meanwhile.
    """
    file = os.open(
        name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place
    )
    try:
        with contextlib.suppress(PermissionError):
            os.chmod(f"/proc/self/fd/{file}", 0o700)
    finally:
        os.close(file)


def _remove_files(place: int) -> list[str]:
    """Remove what is not a folder in ``place``; return the names of the folders."""
    folders = []
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=place)
    return folders


def _unused(top: int, names: Iterator[str]) -> str:
    """A name that is not in ``top``; renaming onto an empty folder would be no harm either."""
    for name in names:
        try:
            os.lstat(name, dir_fd=top)
        except FileNotFoundError:
            return name
    raise AssertionError("an endless iterator ended")


def _text(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _write(path: str, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(file, 0o644)
        os.write(file, data)
    finally:
        os.close(file)
