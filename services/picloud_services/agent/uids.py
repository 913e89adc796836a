"""Which uid a job runs as on the host."""

import os
import pwd
import zlib
from dataclasses import dataclass

from picloud_services.agent.container import ContainerError

# Above every range that distributions and systemd hand out, below what a signed 32-bit uid holds.
POOL_FIRST = 2_000_000_000
POOL_COUNT = 65_536


def host_uid(user_id: int, home: str) -> int:
    """Return the uid for jobs of ``user_id``, submitted to the service whose home is ``home``.

    A user's jobs run as that user. Jobs of root run as a uid of a pool that owns nothing; it is
    the same for one service always, so that its containers find their own files.

    >>> host_uid(1000, "/home/ann/.local/share/picloud")
    1000
    >>> host_uid(0, "/root/.local/share/picloud") >= POOL_FIRST
    True
    """
    return (
        user_id or POOL_FIRST + zlib.crc32(home.encode("utf-8", "surrogateescape")) % POOL_COUNT
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process of a job is on the host; ``groups`` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def identity(uid: int) -> Identity:
    """Return who runs as ``uid``: a user with their groups, or somebody of the pool with none.

    Raises:
        ContainerError: there is no such user any more.
    """
    if uid == os.geteuid():
        return Identity(uid, os.getegid(), tuple(os.getgroups()))
    if uid >= POOL_FIRST:
        return Identity(uid, uid)
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        raise ContainerError(
            f"uid {uid} has no account on this machine any more, so no job can run as it; "
            "make the account again, then submit again"
        ) from None
    return Identity(uid, user.pw_gid, tuple(os.getgrouplist(user.pw_name, user.pw_gid)))
