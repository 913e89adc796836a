"""What is at a path of this machine, as root or as the submitter of a job sees it."""

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager

from picloud_services.agent.mounts import Mount
from picloud_services.base.user_rights import Rights, file_rights, may


class HostFiles:
    """Answers about paths of this host; a test gives another one."""

    def __init__(self, mounts: Sequence[Mount], submitter: Rights | None = None) -> None:
        self.mounts = mounts
        self._submitter = submitter
        self._real: dict[str, str] = {}

    def as_submitter(self) -> AbstractContextManager[None]:
        """While inside: the answers are those that the submitter would get."""
        self._real.clear()
        return file_rights(self._submitter)

    def real(self, path: str) -> str:
        """Return ``path`` without symbolic links; parts that do not exist are kept as they are."""
        found = self._real.get(path)
        if found is None:
            found = self._real[path] = os.path.realpath(path)
        return found

    def top(self) -> list[tuple[str, str | None]]:
        """Return (path, text of the link or None) of each folder and link in ``/``."""
        with os.scandir("/") as entries:
            return sorted(
                (entry.path, os.readlink(entry.path) if entry.is_symlink() else None)
                for entry in entries
                if entry.is_dir() or entry.is_symlink()
            )

    def link(self, path: str) -> str | None:
        """Return the text of the symbolic link ``path``, None if it is none."""
        try:
            return os.readlink(path)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def exists(self, path: str) -> bool:
        """Say whether there is something at ``path``."""
        return os.path.exists(path)

    def may_read(self, path: str) -> bool:
        """Say whether the folder ``path`` may be read and entered, within `as_submitter` by them."""
        return may(path, os.R_OK | os.X_OK)

    def is_open(self, path: str, uid: int) -> bool:
        """Say whether ``uid`` may enter the folder, or read the file, by its plain permissions."""
        found = os.stat(path)
        needed = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
        shift = 6 if found.st_uid == uid else 0
        return found.st_mode >> shift & needed == needed
