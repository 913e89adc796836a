"""How many files, sockets and pipes a process may have open."""

import resource

ENOUGH = 16_384  # as in the unit of a system service


def allow_open_files() -> None:
    """Let this process, and what it starts, have `ENOUGH` files open, or as many as it may ask for.

    The usual 1,024 are used up by the connections of two busy containers, or by one chunk of a
    thousand large arguments.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < ENOUGH:
        wanted = ENOUGH if most == resource.RLIM_INFINITY else min(ENOUGH, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
