"""Looks at files with the rights of a user, though the process is root's: for a service of many users."""

import ctypes
import functools
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_AT_FDCWD, _AT_EACCESS, _AT_EMPTY_PATH = -100, 0x200, 0x1000
_SYS_FACCESSAT2 = 439  # the same number on every architecture
# The library's own function would change the groups of all threads.
_SYS_SETGROUPS = {"x86_64": 116, "aarch64": 159}
_KEEP = 0xFFFFFFFF  # setfsuid of this changes nothing and tells what it is
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Rights:
    """Who looks at files; ``groups`` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@functools.lru_cache(maxsize=1024)
def account_name(uid: int) -> str:
    """Return what the user ``uid`` of this machine is called.

    Raises:
        KeyError: there is no such user; this is not remembered.
    """
    return pwd.getpwuid(uid).pw_name


def rights_of(uid: int) -> Rights:
    """Return the rights of the user ``uid``, with the groups that they are in now.

    Raises:
        KeyError: there is no such user.
    """
    user = pwd.getpwuid(uid)
    return Rights(uid, user.pw_gid, tuple(os.getgrouplist(user.pw_name, user.pw_gid)))


@contextmanager
def file_rights(rights: Rights | None) -> Iterator[None]:
    """While inside: what the calling thread does with files is done with ``rights``, and not as root.

    None changes nothing. Other threads are not touched, and the user cannot signal this one. To be
    used by root, around code that neither awaits nor starts threads.

    Raises:
        PermissionError: the kernel refuses, for this process is not root's.
    """
    if rights is None:
        yield
        return
    before = Rights(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    try:
        _become(rights)
        yield
    finally:
        _become(before)


def _become(rights: Rights) -> None:
    groups = (ctypes.c_uint32 * len(rights.groups))(*rights.groups)
    number = _SYS_SETGROUPS[os.uname().machine]
    if _libc.syscall(number, ctypes.c_size_t(len(groups)), groups) != 0:
        raise _error("setgroups")
    for change, value in ((_libc.setfsgid, rights.gid), (_libc.setfsuid, rights.uid)):
        change(ctypes.c_uint32(value))
        if change(ctypes.c_uint32(_KEEP)) & _KEEP != value:
            raise PermissionError(1, "the rights of a user cannot be taken on", change.__name__)


def may(path: str, mode: int) -> bool:
    """Say whether ``path`` may be used as ``mode`` (os.R_OK ...) says, with the rights of `file_rights`."""
    return _access(_AT_FDCWD, os.fsencode(path), mode, _AT_EACCESS)


def may_open(descriptor: int, mode: int) -> bool:
    """Say the same of what ``descriptor``, opened with O_PATH, is."""
    return _access(descriptor, b"", mode, _AT_EACCESS | _AT_EMPTY_PATH)


def _access(folder: int, path: bytes, mode: int, flags: int) -> bool:
    return bool(_libc.syscall(_SYS_FACCESSAT2, folder, path, mode, flags) == 0)


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
