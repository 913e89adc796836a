"""No image of our memory, or of a job's, is left on a disk: it may hold secrets."""

import resource


def forbid_core_dumps() -> None:
    """Have the kernel write no core dumps of this process and what it starts from now on.

    The limit is 1 byte and not 0: then a program that takes dumps by a pipe gets none either
    (core(5), do_coredump of the kernel).
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    size_bytes = 0 if most == 0 else 1  # nobody but root may raise it
    resource.setrlimit(resource.RLIMIT_CORE, (size_bytes, size_bytes))
