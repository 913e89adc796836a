"""A machine-wide ledger of cores, so that two embedded services do not both use all of them.

One file per core in a folder that every user may open. Who uses a core holds an exclusive lock on
its file; the kernel lets go of it when the process ends, however it ends. A service that gets no
core at all, or too few for any of its jobs, holds a lock on one of the ``hungry`` files: the others see
that and go down to half of the machine. One that still gets too few after a few seconds (a third service
on two cores, long jobs elsewhere, a job for all cores) uses what one job needs all the same: slower work
for all is better than none for one. The folder has no content that anybody trusts.
"""

import fcntl
import math
import os
import stat
from pathlib import Path

HUNGRY_FILES = 16
PATIENT_CLAIMS = 5  # claims come every second while less was granted than wanted


class CoresLedger:
    """This process's part of the cores of the machine.

    ``total`` is how many cores the machine lets this process use. Close it, or end, to give all
    back. Not safe for threads: it belongs to one event loop.
    """

    def __init__(self, total: int, folder: Path) -> None:
        self._folder = folder
        self._total = max(1, total)
        self._held: dict[int, int] = {}  # core -> descriptor whose lock we hold
        self._hungry: int | None = None
        self._hungry_claims = 0
        self._usable = _make_shared_folder(folder)

    @property
    def held(self) -> int:
        """How many cores are ours now."""
        return len(self._held)

    def claim(self, wanted_cores: float, least_cores: float = 1.0) -> int:
        """Return how many cores may be used from now on: at most ``wanted_cores``, rounded up.

        ``least_cores``: with fewer nothing can be begun.
        Call it again as demand changes, and every second while any is wanted: that is when a
        grant shrinks because another service has none. Finish what runs then and start no more.
        Where the folder cannot be used everything is granted: then there is no other service.
        """
        wanted = min(self._total, math.ceil(wanted_cores))
        if not self._usable:
            return wanted
        allowed = wanted
        if wanted > 0 and self._others_hungry():
            allowed = min(wanted, self._total // 2)
        while len(self._held) > allowed:
            _, descriptor = self._held.popitem()
            os.close(descriptor)
        for core in range(self._total):
            if len(self._held) >= allowed:
                break
            if core not in self._held and (taken := self._take(f"core-{core}")) is not None:
                self._held[core] = taken
        least = min(wanted, math.ceil(least_cores))
        is_hungry = len(self._held) < least
        self._show_hunger(hungry=is_hungry)
        if is_hungry:
            self._hungry_claims += 1
        elif wanted:  # one who wanted nothing for a moment is as patient as before
            self._hungry_claims = 0
        return least if self._hungry_claims > PATIENT_CLAIMS else len(self._held)

    def close(self) -> None:
        """Give everything back."""
        self.claim(0)

    def _others_hungry(self) -> bool:
        """Whether another service holds one of the hungry files."""
        for number in range(HUNGRY_FILES):
            path = self._folder / f"hungry-{number}"
            if not path.exists():
                return False  # they are made and taken in this order
            descriptor = self._take(path.name)
            if descriptor is None:
                return self._hungry is None
            os.close(descriptor)
        return False

    def _show_hunger(self, *, hungry: bool) -> None:
        if not hungry and self._hungry is not None:
            os.close(self._hungry)
            self._hungry = None
        elif hungry and self._hungry is None:
            for number in range(HUNGRY_FILES):
                self._hungry = self._take(f"hungry-{number}")
                if self._hungry is not None:
                    return

    def _take(self, name: str) -> int | None:
        """Return a descriptor that holds the lock of ``name``; None if another has it."""
        descriptor = _open_shared(self._folder / name)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def _make_shared_folder(folder: Path) -> bool:
    try:
        folder.mkdir()
        folder.chmod(0o1777)
    except FileExistsError:
        return stat.S_ISDIR(folder.lstat().st_mode)
    except OSError:
        return False
    return True


def _open_shared(path: Path) -> int | None:
    """Return a read-only descriptor of ``path``, made if absent; None if it is not usable."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        # without O_CREAT first: the kernel refuses O_CREAT on another user's file in a sticky folder
        pass
    except OSError:
        return None
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o444)
    except OSError:
        return None
