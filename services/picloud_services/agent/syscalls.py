"""The few kernel calls that Python's os module lacks. Each raises OSError as os functions do."""

import ctypes
import os
import signal
import struct

MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x4000, 0x40000
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 0x1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_RESOLVE_NO_SYMLINKS = 0x4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
_MOUNT_ATTR_IDMAP = 0x00100000
# The same numbers on every architecture: these calls are younger than the common table.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MNT_DETACH = 0x2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount_at(
    source: str, target: str, kind: str = "", flags: int = 0, options: str = ""
) -> None:
    """Attach ``source`` at ``target``, or change how it is attached: what mount(2) does."""
    arguments = [os.fsencode(text) or None for text in (source, target, kind)]
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(options) or None)
    _checked(result, target)


def replace_root(folder: str) -> None:
    """Make the mount at ``folder`` the root of this mount namespace and let go of the old one."""
    os.chdir(folder)
    _checked(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), folder)
    _checked(_libc.umount2(b".", _MNT_DETACH), folder)
    os.chdir("/")


def unshare(flags: int) -> None:
    """Give the calling thread, which should be the only one, namespaces of its own."""
    _checked(_libc.unshare(flags), "unshare")


def clone_mount(
    source: str,
    *,
    read_only: bool,
    recursive: bool = False,
    devices: bool = False,
    user_namespace: int | None = None,
) -> int:
    """Return a descriptor of a new, detached mount of ``source``, where setuid means nothing.

    Neither do device files, unless ``devices``.
    With ``user_namespace`` owners are shown as that namespace's map says. The change of flags is
    one call for the whole tree, also where submounts are part of it.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    tree = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)
    _checked(tree, source)
    attributes = _MOUNT_ATTR_NOSUID | (0 if devices else _MOUNT_ATTR_NODEV)
    attributes |= _MOUNT_ATTR_RDONLY if read_only else 0
    attributes |= _MOUNT_ATTR_IDMAP if user_namespace is not None else 0
    request = struct.pack("=QQQQ", attributes, 0, 0, user_namespace or 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, request, len(request))
    if result < 0:
        number = ctypes.get_errno()
        os.close(tree)
        raise OSError(number, os.strerror(number), source)
    return int(tree)


def open_no_links(path: str) -> int:
    """Return an O_PATH descriptor of ``path``; with a symbolic link anywhere in it: OSError ELOOP."""
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    result = _libc.syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how))
    return _checked(result, path)


def attach_mount(tree: int, target: str | int) -> None:
    """Mount the tree of `clone_mount` at ``target``, a path or a descriptor; close ``tree``."""
    path, folder, flags = b"", _AT_FDCWD, _MOVE_MOUNT_F_EMPTY_PATH
    if isinstance(target, str):
        path = os.fsencode(target)
    else:
        folder, flags = target, flags | _MOVE_MOUNT_T_EMPTY_PATH
    try:
        result = _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", folder, path, flags)
        _checked(result, str(target))
    finally:
        os.close(tree)


def adopt_orphans(*, wanted: bool) -> None:
    """Make orphaned descendants of this process its children, or no longer."""
    _checked(
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0), "PR_SET_CHILD_SUBREAPER"
    )


def forgo_privileges() -> None:
    """Make setuid programs inert for this process and its later children."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def end_with(parent: int) -> None:
    """Have the calling process killed when ``parent`` ends, until it becomes another user.

    Raises:
        ProcessLookupError: that has ended already.
    """
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "end_with")
    if os.getppid() != parent:
        raise ProcessLookupError(f"process {parent} has ended")
