"""Makes the folder that every container gets: our own code for use inside, and cloudpickle. Sync."""

import hashlib
import importlib.util
import os
import py_compile
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from picloud_services.base.filesystem import sync_folder

INSIDE = "/run/picloud/bundle"
# Package -> the subpackages that go in (None: all). The others belong to notebooks and servers.
PACKAGES: dict[str, frozenset[str] | None] = {
    "picloud_jupyter": frozenset({"protocol", "serialize", "transport", "cloud", "cli"}),
    "picloud_kernels": None,
    "cloudpickle": None,
}
SUFFIXES = (".py", ".typed")


def make_bundle(home: Path) -> Path:
    """Return HOME/bundle/DIGEST, made now unless it is there; its name is a digest of the content.

    Read-only and readable by every uid. Byte code is inside, so that a container start compiles
    nothing.

    Raises:
        ModuleNotFoundError: a package is not installed; the message names it.
        OSError: the disk refused; nothing is left under the final name.
    """
    files = {name: path.read_bytes() for name, path in sorted(_collect())}
    digest = hashlib.sha256(repr(importlib.util.cache_from_source("x.py")).encode())
    for name, content in files.items():
        digest.update(b"%s\0%d\0" % (name.encode(), len(content)))
        digest.update(content)
    folder = home / "bundle"
    target = folder / digest.hexdigest()[:32]
    if target.is_dir():
        return target
    fresh = folder / f".{target.name}.{secrets.token_hex(4)}"
    try:
        _write(fresh, files)
        fresh.rename(target)
    except OSError:
        _remove(fresh)
        if not target.is_dir():  # else another process made it meanwhile
            raise
    sync_folder(folder)
    return target


def remove_unused(home: Path, used: Collection[str]) -> None:
    """Remove bundles of ``home`` whose names are not in ``used``."""
    folder = home / "bundle"
    if folder.is_dir():
        for found in folder.iterdir():
            if found.name not in used:
                _remove(found)


def _collect() -> Iterator[tuple[str, Path]]:
    for package, wanted in PACKAGES.items():
        root = _folder_of(package)
        for path in root.rglob("*"):
            relative = path.relative_to(root)
            inside = relative.parts[0] if len(relative.parts) > 1 else None
            if path.suffix not in SUFFIXES or (wanted and inside and inside not in wanted):
                continue
            yield f"{package}/{relative}", path


def _folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the package {package} is not installed beside the service; install picloud-jupyter again",
            name=package,
        )
    return Path(found.submodule_search_locations[0])


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(mode=0o755, parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write_file(path, content)
        if path.suffix == ".py":
            _compile(path, f"{INSIDE}/{name}")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _compile(path: Path, shown: str) -> None:
    py_compile.compile(
        str(path),
        dfile=shown,
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _remove(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)
