"""Makes the folder that every container gets: our own code for use inside, and cloudpickle. Sync."""

import hashlib
import importlib.util
import py_compile
import secrets
import shutil
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from picloud_services.base.single_instance import boot_id

INSIDE = "/run/picloud/bundle"
# Package -> the subpackages that go in (None: all). The others belong to notebooks and servers.
PACKAGES: dict[str, frozenset[str] | None] = {
    "picloud_jupyter": frozenset({"protocol", "serialize", "transport", "cloud", "cli"}),
    "picloud_kernels": None,
    "cloudpickle": None,
}
SUFFIXES = (".py", ".typed")
# PEP 552: magic number, flags, then source time and size, or with flag 1 (hash-based, with flag 2
# checked) the hash of the source.
PYC_HEADER = struct.Struct("<4sIII")
UNCHECKED_HASH = (1).to_bytes(4, "little")


def make_bundle(home: Path) -> Path:
    """Return HOME/bundle/DIGEST, made now unless it is there; its name is a digest of the content.

    Read-only and readable by every uid. Byte code is inside, so that a container start compiles
    nothing. Made anew after a boot: nothing is synced to the disk, and a power cut may have hurt it.

    Raises:
        ModuleNotFoundError: a package is not installed; the message names it.
        OSError: the disk refused; nothing is left under the final name.
    """
    files = dict(sorted(_collect()))
    contents = {name: path.read_bytes() for name, path in files.items()}
    digest = hashlib.sha256(f"{importlib.util.MAGIC_NUMBER!r} {boot_id()}".encode())
    for name, content in contents.items():
        digest.update(b"%s\0%d\0" % (name.encode(), len(content)))
        digest.update(content)
    folder = home / "bundle"
    target = folder / digest.hexdigest()[:32]
    if target.is_dir():
        return target
    fresh = folder / f".{target.name}.{secrets.token_hex(4)}"
    try:
        _write(fresh, files, contents)
        fresh.rename(target)
    except OSError:
        _remove(fresh)
        if not target.is_dir():  # else another process made it meanwhile
            raise
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


def _write(folder: Path, files: dict[str, Path], contents: dict[str, bytes]) -> None:
    folder.mkdir(mode=0o755, parents=True)
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_bytes(contents[name])
        if path.suffix == ".py":
            _add_byte_code(path, source, contents[name], f"{INSIDE}/{name}")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def _add_byte_code(path: Path, source: Path, content: bytes, shown: str) -> None:
    """Put the byte code of ``path`` beside it, from that of ``source`` where it is up to date."""
    code = _existing_code(source, content)
    if code is None:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(path), dfile=shown, doraise=True, invalidation_mode=mode)
        return
    target = Path(importlib.util.cache_from_source(str(path)))
    target.parent.mkdir(mode=0o755, exist_ok=True)
    header = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH + importlib.util.source_hash(content)
    target.write_bytes(header + code)


def _existing_code(source: Path, content: bytes) -> bytes | None:
    """Return the code that Python itself keeps beside ``source``; None if it is absent or old."""
    try:
        data = Path(importlib.util.cache_from_source(str(source))).read_bytes()
    except OSError:
        return None
    changed_at = int(source.stat().st_mtime) & 0xFFFFFFFF
    header = PYC_HEADER.pack(
        importlib.util.MAGIC_NUMBER, 0, changed_at, len(content) & 0xFFFFFFFF
    )
    return data[PYC_HEADER.size :] if data.startswith(header) else None


def _remove(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)
