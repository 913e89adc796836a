"""Secrets of users: one private file each, beside the database and never in it.

Why no cipher: its key would have to lie in the same folder, so whoever reads one reads both. What
protects the values is the mode of the files, and that they are in no table, dump or message.
"""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from picloud_jupyter.protocol.errors import NotFound
from picloud_jupyter.protocol.secrets import SecretLine
from picloud_services.base.filesystem import sync_folder

T = TypeVar("T")
MAX_SECRETS = 1_000  # of one user
MAX_CHARACTERS = 2 * 1024**2  # of all values of one user: each change writes them all
# What backup programs leave out (https://bford.info/cachedir/): tar, borg, restic and others.
_NO_BACKUP = "Signature: 8a477f597d28d172789f06886806bc55\n# Secrets of picloud-jupyter: set them again.\n"


@dataclass(frozen=True, slots=True)
class _Secret:
    line: SecretLine
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Keeping:
    """All secrets of one user. ``last_version`` is never given out twice, deleted ones included."""

    last_version: int = 0
    secrets: dict[str, _Secret] = field(default_factory=dict)


class SecretStore:
    """Keeps secrets in ``folder`` (0700), a file UID.json (0600) per user. On the event loop."""

    def __init__(self, folder: Path, now_at: Callable[[], float]) -> None:
        self._folder = folder
        self._now_at = now_at
        self._users: dict[int, _Keeping] = {}
        self._writing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return "SecretStore(...)"

    @classmethod
    def load(cls, home: Path, now_at: Callable[[], float]) -> "SecretStore":
        """Return the secrets of the service at ``home``.

        Raises:
            ValueError: a file is damaged.
            PermissionError: others than its owner may read one.
        """
        store = cls(home / "secrets", now_at)
        for path in sorted(store._folder.glob("[0-9]*.json")):
            store._users[int(path.stem)] = _read(path)
        return store

    def lines(self, user_id: int) -> list[SecretLine]:
        """Return what is shown of a user's secrets, by name."""
        return [secret.line for _, secret in sorted(self._of(user_id).secrets.items())]

    async def set(self, user_id: int, name: str, value: str) -> SecretLine:
        """Keep ``value``; it is on the disk when this returns. A value of before is forgotten.

        Raises:
            OSError: the disk refused; nothing has changed.
            ValueError: the user has too many, or they are too long together.
        """
        return await self._to_its_end(self._set(user_id, name, value))

    async def _set(self, user_id: int, name: str, value: str) -> SecretLine:
        async with self._writing:
            kept = self._of(user_id)
            if name not in kept.secrets and len(kept.secrets) >= MAX_SECRETS:
                raise ValueError(f"there are {MAX_SECRETS} secrets already; delete one first")
            others = (kept.secrets[other].value for other in kept.secrets if other != name)
            if sum(map(len, others)) + len(value) > MAX_CHARACTERS:
                raise ValueError(
                    f"your secrets would have more than {MAX_CHARACTERS} characters together; delete "
                    "some, and keep data in files"
                )
            version = kept.last_version + 1
            line = SecretLine(name, version, self._now_at())
            secrets = {**kept.secrets, name: _Secret(line, value)}
            await self._write(user_id, _Keeping(version, secrets))
            return line

    async def delete(self, user_id: int, name: str) -> None:
        """Forget a secret. Jobs that run keep its value; those that wait for a core end.

        Raises:
            NotFound: there is none of that name.
        """
        await self._to_its_end(self._delete(user_id, name))

    async def _delete(self, user_id: int, name: str) -> None:
        async with self._writing:
            kept = self._of(user_id)
            if name not in kept.secrets:
                raise _unknown(name, kept.secrets)
            secrets = {other: kept.secrets[other] for other in kept.secrets if other != name}
            await self._write(user_id, replace(kept, secrets=secrets))

    def versions(self, user_id: int, names: Iterable[str]) -> tuple[int, ...]:
        """Return the versions of ``names`` as they are now.

        Raises:
            NotFound: there is none of one of the names; those that there are are named.
        """
        secrets = self._of(user_id).secrets
        missing = [name for name in names if name not in secrets]
        if missing:
            raise _unknown(missing[0], secrets)
        return tuple(secrets[name].line.version for name in names)

    def values(
        self, user_id: int, pairs: Iterable[tuple[str, str]]
    ) -> tuple[tuple[str, str], ...]:
        """Return (variable, value) for each (variable, name), as they are now.

        Raises:
            NotFound: one was deleted.
        """
        secrets = self._of(user_id).secrets
        found = []
        for variable, name in pairs:
            if name not in secrets:
                raise _unknown(name, secrets)
            found.append((variable, secrets[name].value))
        return tuple(found)

    def _of(self, user_id: int) -> _Keeping:
        return self._users.get(user_id) or _Keeping()

    async def _to_its_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Return what ``change`` gives. It is not cancelled with us: its thread would write on, unlocked."""
        task = asyncio.get_running_loop().create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _write(self, user_id: int, kept: _Keeping) -> None:
        await asyncio.to_thread(_write, self._folder / f"{user_id}.json", kept)
        self._users[user_id] = kept


def _unknown(name: str, secrets: Iterable[str]) -> NotFound:
    names = ", ".join(sorted(secrets)) or "none at all"
    return NotFound(
        f"You have no secret {name!r}; there are: {names}.",
        hint=f"cloud.secret.set({name!r}), or in a terminal: picloud secret set {name}",
    )


def _read(path: Path) -> _Keeping:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_mode & 0o077:
            raise PermissionError(
                f"{path} may be read by others; run `chmod 600 {path}` and start again"
            )
        try:
            read: dict[str, Any] = json.loads(file.read())
            secrets = {
                name: _Secret(SecretLine(name, int(version), float(set_at)), str(value))
                for name, (version, set_at, value) in read["secrets"].items()
            }
            return _Keeping(int(read["last_version"]), secrets)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path} is damaged; remove it, start again and set your secrets anew"
            ) from None  # the cause would show parts of the content


def _write(path: Path, kept: _Keeping) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    tag = path.with_name("CACHEDIR.TAG")
    if not tag.exists():
        tag.write_text(_NO_BACKUP)
    secrets = {
        name: [secret.line.version, secret.line.set_at, secret.value]
        for name, secret in kept.secrets.items()
    }
    fresh = path.with_suffix(".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(fresh, flags, 0o600)
    with open(descriptor, "wb") as file:
        file.write(json.dumps({"last_version": kept.last_version, "secrets": secrets}).encode())
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
    sync_folder(path.parent)
