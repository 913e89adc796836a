"""Starts a program with exactly the descriptors it should have: the one fork of the supervisor."""

import contextlib
import errno
import itertools
import os
import resource
import signal
from collections.abc import Callable, Sequence
from typing import NoReturn

from picloud_services.agent.container import ContainerError
from picloud_services.base.core_dumps import forbid_core_dumps

DOCTOR_HINT = "; `picloud doctor` tries each part"
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


def spawn(
    become: Callable[[], NoReturn],
    *,
    stdout_fd: int,
    stderr_fd: int,
    keep_fds: Sequence[int],
    close_fds: Sequence[int] = (),
    report_fd: int,
) -> int:
    """Fork, arrange the child's descriptors and signals, and call ``become`` there; return its pid.

    ``become`` ends in an exec, over which ``keep_fds`` stay open; ``close_fds`` are closed by it.
    What it raises is written to ``report_fd``, for `reported_error`; that one is closed by the
    exec too unless it is kept.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        _settle(stdout_fd, stderr_fd, set(keep_fds), {*close_fds, report_fd})
        become()
    except BaseException as exc:  # noqa: BLE001  # the child must not run on as a second parent
        with contextlib.suppress(OSError):
            os.write(report_fd, _report(exc))
    os._exit(127)


def _report(exc: BaseException) -> bytes:
    words = [str(exc) or type(exc).__name__]
    if isinstance(exc, ContainerError):
        words = ["", exc.reason, *words]
    elif isinstance(exc, OSError):
        words = [str(exc.errno or 0), str(exc.filename or ""), str(exc.strerror or exc)]
    else:
        words = ["0", "", *words]
    return ("!" + "\0".join(words)).encode("utf-8", "replace")[:4000]


def reported_error(text: bytes) -> OSError | ContainerError | None:
    """Return what stopped ``become``, given what came from the report; None if nothing did."""
    if not text.startswith(b"!"):
        return None
    number, name, why = text[1:].decode("utf-8", "replace").split("\0", 2)
    return (
        OSError(int(number), why, name or None) if number else ContainerError(why, reason=name)
    )


def failure(exc: OSError) -> ContainerError:
    """Return the error to raise when ``exc`` stopped the making of a container."""
    what = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc.strerror or exc)
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return ContainerError(
            f"the disk is full ({what}); free some space and submit the job again",
            reason="disk_full",
        )
    return ContainerError(f"the container could not be made ({what}){DOCTOR_HINT}")


def _settle(stdout_fd: int, stderr_fd: int, keep: set[int], until_exec: set[int]) -> None:
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDONLY)
    for file, number in ((null, 0), (stdout_fd, 1), (stderr_fd, 2)):
        os.dup2(file, number)
    _close_others({0, 1, 2} | keep | until_exec)
    for number in keep:
        os.set_inheritable(number, True)  # noqa: FBT003
    for number in _RESTORED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    forbid_core_dumps()


def _close_others(keep: set[int]) -> None:
    edges = [-1, *sorted(keep), os.sysconf("SC_OPEN_MAX")]
    for low, high in itertools.pairwise(edges):
        if low + 1 < high:  # an empty range would mean all of them to Python 3.11
            os.closerange(low + 1, high)


def limit_processes(count: int) -> None:
    """Let the calling process's user start about ``count`` more: where no control group counts.

    The kernel counts all processes of a user, so what runs already is added.
    """
    with open("/proc/loadavg", encoding="ascii") as file:
        running = int(file.read().split()[3].partition("/")[2])
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    wanted = running + count
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NPROC, (wanted, wanted))
