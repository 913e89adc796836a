"""A user namespace that only says whose files are whose, for mounts."""

import contextlib
import os

from picloud_services.agent import syscalls


class OwnerMap:
    """Shows the files of ``source_id`` as those of ``target_id``; a process keeps it until `open`.

    That process begins at once and is awaited in `open` only, and it ends, which takes milliseconds,
    between `open` and `close`, so that other work can be done meanwhile. Needs root.
    """

    def __init__(self, source_id: int, target_id: int) -> None:
        self._line = f"{source_id} {target_id} 1"
        self._ready, ready = os.pipe()
        told, self._told = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._told)
            with contextlib.suppress(OSError):
                syscalls.unshare(syscalls.CLONE_NEWUSER)
                os.write(ready, b"1")
                os.read(told, 1)
            os._exit(0)
        os.close(ready)
        os.close(told)

    def open(self) -> int:
        """Return a descriptor of the namespace, which keeps it from now on.

        Raises:
            PermissionError: the kernel makes none.
        """
        if not os.read(self._ready, 1):
            raise PermissionError(1, "the kernel refused a user namespace", "unshare")
        for name in ("uid_map", "gid_map"):
            file = os.open(f"/proc/{self._pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(file, self._line.encode())
            finally:
                os.close(file)
        names = os.open(f"/proc/{self._pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        os.close(self._told)
        os.close(self._ready)
        return names

    def close(self) -> None:
        """Bury the process."""
        os.waitpid(self._pid, 0)
