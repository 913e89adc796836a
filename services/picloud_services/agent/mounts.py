"""The kernel's mount table, as plain values. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# File systems of this machine's own disks: a look into one of them never waits for another machine.
LOCAL_TYPES = frozenset(
    {
        "bcachefs",
        "btrfs",
        "erofs",
        "exfat",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "jfs",
        "ntfs3",
        "overlay",
        "squashfs",
        "vfat",
        "xfs",
        "zfs",
    }
)
# The kernel's own words in the form of files; no file system of anybody.
KERNEL_TYPES = frozenset(
    {
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    }
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo: where (``target``), of what (``root`` within its source)."""

    target: str
    root: str
    type: str
    super_options: tuple[str, ...]


def parse_mountinfo(text: str) -> list[Mount]:
    r"""Return the mounts of ``text`` in their order; a later one covers an earlier at the same place.

    >>> parse_mountinfo("31 23 0:28 / /a\\040b rw shared:1 - cgroup cgroup rw,cpu")
    [Mount(target='/a b', root='/', type='cgroup', super_options=('rw', 'cpu'))]
    """
    found = []
    for line in text.splitlines():
        place, separator, source = line.partition(" - ")
        fields, rest = place.split(" "), source.split(" ")
        if separator and len(fields) >= 6 and len(rest) >= 3:
            options = tuple(rest[2].split(","))
            found.append(Mount(_plain(fields[4]), _plain(fields[3]), rest[0], options))
    return found


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def is_under(path: str, folder: str) -> bool:
    """Say whether ``path`` is ``folder`` or inside it; both absolute, without . and ..

    >>> is_under("/home/a", "/home"), is_under("/home2", "/home"), is_under("/x", "/")
    (True, False, True)
    """
    return path == folder or path.startswith(folder if folder == "/" else folder + "/")


def is_under_any(path: str, folders: Iterable[str]) -> bool:
    """Say whether ``path`` is one of ``folders`` or inside one of them."""
    return any(is_under(path, folder) for folder in folders)


def outermost(paths: Iterable[str]) -> list[str]:
    """Return ``paths`` sorted, without those that are inside another of them.

    >>> outermost(["/b/c", "/a", "/b", "/bc"])
    ['/a', '/b', '/bc']
    """
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split("/")):
        if not kept or not is_under(path, kept[-1]):
            kept.append(path)
    return kept
