"""Which uid a job runs as on the host. Pure."""

import zlib

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
