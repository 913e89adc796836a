"""The Python that submits: what must be visible in a container for it to run there unchanged."""

import ast
import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import HostPython
from picloud_jupyter.transport.paths import checked

_SITE_FOLDERS = ("site-packages", "dist-packages")
_METADATA = (".dist-info", ".egg-info", ".egg-link")
_MAX_CHARACTERS = 4_000_000  # a finder's table of a large repository


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found, and the state of this interpreter in which it is right."""

    state: tuple[list[str], str, str]
    sites: tuple[str, ...]
    changed_ns: tuple[int, ...]
    python: HostPython


_last: _Seen | None = None


def host_python() -> HostPython:
    """Return this interpreter as jobs need it: paths to show, order of imports, packages.

    Cheap to call at each submit: nothing is listed again unless sys.path or a folder of installed
    packages changed.

    Raises:
        InvalidRequest: a path of this interpreter cannot be read or is no UTF-8, named in the message.
    """
    global _last  # noqa: PLW0603  # a cache of one
    seen = _last
    if (
        seen is None
        or seen.state != (sys.path, sys.prefix, sys.executable)
        or seen.changed_ns != tuple(map(_modified_ns, seen.sites))
    ):
        seen = _last = _see()
    return seen.python


def _see() -> _Seen:
    entries = [entry for entry in sys.path if entry]
    sites = tuple(entry for entry in entries if os.path.basename(entry) in _SITE_FOLDERS)
    changed_ns = tuple(map(_modified_ns, sites))  # before they are read
    return _Seen((sys.path[:], sys.prefix, sys.executable), sites, changed_ns, _look(entries))


def _modified_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _look(entries: Sequence[str]) -> HostPython:
    existing = [os.path.abspath(entry) for entry in entries if os.path.exists(entry)]
    sites = [entry for entry in existing if os.path.basename(entry) in _SITE_FOLDERS]
    executable = sys.executable or ""
    wanted = [
        sys.prefix,
        sys.base_prefix,
        *_links_to(executable),
        *existing,
        *(target for site in sites for target in editable_targets(site)),
    ]
    paths = _with_real_paths(wanted)
    for path in paths:
        checked(path)
        if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
            raise InvalidRequest(
                f"{path} belongs to this Python ({executable}) and cannot be read by this user, so jobs could not "
                "use it; make it readable, or take it out of sys.path"
            )
    return HostPython(
        executable=os.path.abspath(executable),
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        version=platform.python_version(),
        paths=tuple(_outermost(paths)),
        sys_path=tuple(dict.fromkeys(existing)),
        packages_digest=packages_digest(sites),
    )


def _links_to(executable: str) -> Iterator[str]:
    """Yield the folders that links from ``executable`` to the real interpreter lead through."""
    path = os.path.abspath(executable)
    for _ in range(40):  # as many as the kernel follows
        if not os.path.islink(path):
            return
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        folder = os.path.dirname(path)
        # the folder above "bin" is the installation; a link that leads to one is followed by it
        yield os.path.dirname(folder) if os.path.basename(folder) == "bin" else folder


def _with_real_paths(wanted: Iterable[str]) -> list[str]:
    """Return each existing path as it is written and as it really is; links must lead somewhere."""
    found: dict[str, None] = {}
    for path in wanted:
        if path and path != "/" and os.path.exists(path):
            found[os.path.abspath(path)] = None
            found[os.path.realpath(path)] = None
    found.pop("/", None)
    return list(found)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return ``paths`` sorted, without those that lie in another of them.

    >>> _outermost(["/usr/lib/python3", "/usr", "/usr-local"])
    ['/usr-local', '/usr']
    """
    kept: list[str] = []
    for path in sorted(paths, key=lambda path: path + "/"):
        if not kept or not path.startswith(kept[-1] + "/"):
            kept.append(path)
    return kept


def editable_targets(site: str) -> list[str]:
    """Return the source folders of packages installed in editable mode into ``site``.

    Both ways are read: lines of .pth files, and the MAPPING of the finders that PEP 660 backends
    write as ``__editable__*.py``.
    """
    targets: list[str] = []
    for name in _listing(site):
        path = os.path.join(site, name)
        if name.endswith(".pth"):
            targets += _pth_targets(site, path)
        elif name.startswith("__editable__") and name.endswith(".py"):
            targets += _finder_targets(path)
    return [target for target in dict.fromkeys(targets) if os.path.exists(target)]


def _pth_targets(site: str, path: str) -> list[str]:
    lines = (line.strip() for line in _text(path).splitlines())
    return [
        os.path.normpath(os.path.join(site, line))
        for line in lines
        if line and not line.startswith(("#", "import ", "import\t"))
    ]


def _finder_targets(path: str) -> list[str]:
    try:
        module = ast.parse(_text(path))
    except SyntaxError:
        return []
    targets: list[str] = []
    for node in module.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        names = (
            node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        )
        if value is None or not any(
            isinstance(n, ast.Name) and n.id in ("MAPPING", "NAMESPACES") for n in names
        ):
            continue
        try:
            found = ast.literal_eval(value)
        except ValueError:
            continue
        for target in found.values():
            targets += [target] if isinstance(target, str) else target
    return [_package_folder(target) for target in targets]


def _package_folder(target: str) -> str:
    """Return what must be visible for a mapped module: its folder, or its file."""
    return target if os.path.exists(target) else f"{target}.py"


def packages_digest(sites: Sequence[str]) -> str:
    """Return a digest of names, versions and times of what is installed in ``sites``."""
    total = hashlib.sha256()
    for site in sites:
        total.update(site.encode("utf-8", "surrogateescape") + b"\0")
        for name in _listing(site):
            if name.endswith((*_METADATA, ".pth")) or name.startswith("__editable__"):
                stated = f"{name}\0{_modified_ns(os.path.join(site, name))}\n"
                total.update(stated.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _listing(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_MAX_CHARACTERS)
    except OSError:
        return ""
