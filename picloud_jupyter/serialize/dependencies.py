"""Which local modules go with a function, as one zip file whose sha256 is the code version.

Pure-Python modules that lie outside the installed packages are found by static reading, from what
the pickles mention and from what the notebook imported. Modules that look for files beside
themselves, and packages with compiled parts, are not moved: they are imported where they are, and
only their contents enter the code version, so that a change is seen all the same.
"""

import functools
import hashlib
import importlib.machinery
import io
import json
import os
import sys
import sysconfig
import types
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from picloud_jupyter.serialize.imports import (
    SourceFacts,
    code_imports,
    is_listed,
    read_source,
    with_parents,
)
from picloud_jupyter.serialize.pickler import References

MANIFEST = "picloud_manifest.json"
MAX_MODULE_BYTES = 16_000_000
_OWN = frozenset(("picloud_jupyter", "picloud_kernels", "picloud_services", "cloudpickle"))
_NEVER = sys.stdlib_module_names | _OWN | {"__main__", "__mp_main__", "builtins"}
_INSTALLED_PARTS = ("/site-packages/", "/dist-packages/")
_SUFFIXES = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can state


@dataclass(frozen=True, slots=True)
class ShippedFile:
    """One file of the zip: its path in there, where it comes from, and its size."""

    name: str
    source: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Shipment:
    """The code that goes with a function. ``digest`` is "" and ``data`` empty where there is none.

    ``live`` are top-level modules that stay where they are, with the reason. ``warnings`` are
    sentences for the user.
    """

    data: bytes = b""
    digest: str = ""
    files: tuple[ShippedFile, ...] = ()
    live: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.files:
            return "no local modules"
        size = sum(file.size_bytes for file in self.files)
        tops = dict.fromkeys(_shown(file.name) for file in self.files)
        return f"{', '.join(tops)} ({max(size // 1000, 1)} kB)"


def _shown(name: str) -> str:
    top, slash, _ = name.partition("/")
    return f"{top}/" if slash else top


@dataclass(frozen=True, slots=True)
class _Module:
    """One module found on disk: its file ("" for a namespace package) and what that says."""

    name: str
    path: str
    is_package: bool
    data: bytes
    facts: SourceFacts
    warning: str = ""


_NO_SHIPMENT = Shipment()
_DEFINITIONS = (type, types.FunctionType, types.ModuleType)
_NOTHING = SourceFacts(frozenset(), uses_place=False, calls_import=False)


@dataclass(slots=True)
class DependencyFinder:
    """Finds local modules; keeps what it read by (path, time, size), so that asking again is cheap."""

    whitelist: frozenset[str] | None = None
    _read: dict[str, tuple[tuple[int, int], _Module]] = field(default_factory=dict)
    _staying: set[str] = field(default_factory=lambda: set(_NEVER))  # top-level modules
    _last: tuple[object, Shipment] | None = None

    def ship(self, references: References, *, main: types.ModuleType | None = None) -> Shipment:
        """Return the code that ``references`` and the imports of ``main`` need elsewhere.

        ``main`` is the notebook's namespace (`sys.modules["__main__"]`).
        """
        names = set(references.modules)
        for code in references.code:
            names |= code_imports(code)
        if main is not None:
            names |= _imported_by(main)
        if "django" in sys.modules and (settings := os.environ.get("DJANGO_SETTINGS_MODULE")):
            names |= {settings} & sys.modules.keys()
        modules = self._reach(names)
        if not modules:
            return _NO_SHIPMENT
        state = tuple((m.name, m.path, hash(m.data)) for m in modules)
        if self._last is None or self._last[0] != state:
            self._last = (state, _pack(modules))
        return self._last[1]

    def _reach(self, names: Iterable[str]) -> list[_Module]:
        """Return every local module reached from ``names``, sorted by name."""
        pending = [name for name in names if self._may_travel(name)]
        found: dict[str, _Module] = {}
        seen: set[str] = set()
        while pending:
            for name in with_parents(pending.pop()):
                if name in seen or not self._may_travel(name):
                    continue
                seen.add(name)
                if not is_listed(name, self.whitelist):
                    continue
                module = self._find(name)
                if module is not None:
                    found[name] = module
                    pending.extend(module.facts.imports - seen)
        return [found[name] for name in sorted(found)]

    def _may_travel(self, name: str) -> bool:
        return name.partition(".")[0] not in self._staying

    def _find(self, name: str) -> _Module | None:
        spec = _spec_of(name)
        if spec is None:
            return None
        origin = spec.origin or ""
        if not origin or origin in ("built-in", "frozen"):
            if spec.submodule_search_locations and not _is_installed(
                next(iter(spec.submodule_search_locations), "")
            ):
                return _Module(name, "", is_package=True, data=b"", facts=_NOTHING)
            return None
        if _is_installed(origin):
            if "." not in name:
                self._staying.add(name)
            return None
        return self._read_module(name, origin, spec.submodule_search_locations is not None)

    def _read_module(self, name: str, path: str, is_package: bool) -> _Module | None:  # noqa: FBT001
        if path.endswith(_SUFFIXES):
            return _Module(name, path, is_package, _stamp(path), _NOTHING, "compiled")
        if not path.endswith(".py"):
            return _Module(name, path, is_package, _stamp(path), _NOTHING, "not a source file")
        try:
            found = os.stat(path)
        except OSError:
            return _Module(name, path, is_package, b"", _NOTHING, "not a file")
        state = (found.st_mtime_ns, found.st_size)
        kept = self._read.get(path)
        if kept is not None and kept[0] == state and kept[1].name == name:
            return kept[1]
        module = _parse(name, path, is_package)
        self._read[path] = (state, module)
        return module


def _parse(name: str, path: str, is_package: bool) -> _Module:  # noqa: FBT001
    with open(path, "rb") as file:
        data = file.read(MAX_MODULE_BYTES + 1)
    if len(data) > MAX_MODULE_BYTES:
        return _Module(name, path, is_package, _stamp(path), _NOTHING, "larger than 16 MB")
    try:
        facts = read_source(data, name, is_package=is_package)
    except (SyntaxError, ValueError) as exc:
        return _Module(name, path, is_package, data, _NOTHING, f"SyntaxError: {exc}")
    return _Module(name, path, is_package, data, facts)


def _stamp(path: str) -> bytes:
    """Return what stands for a file's contents where those are not read."""
    try:
        found = os.stat(path)
    except OSError:
        return b""
    return f"{found.st_mtime_ns} {found.st_size}".encode()


def _imported_by(main: types.ModuleType) -> set[str]:
    values = list(vars(main).values())
    # looking at each type once: most values of a notebook are data
    kinds = {kind for kind in set(map(type, values)) if issubclass(kind, _DEFINITIONS)}
    names = {
        value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        for value in values
        if type(value) in kinds
    }
    return {name for name in names if isinstance(name, str)}


def _spec_of(name: str) -> importlib.machinery.ModuleSpec | None:
    """Return where ``name`` is, without importing anything."""
    module = sys.modules.get(name)
    if module is not None:
        spec = getattr(module, "__spec__", None)
        return spec if isinstance(spec, importlib.machinery.ModuleSpec) else None
    parent = name.rpartition(".")[0]
    if not parent:
        return _first_spec(name, None)
    above = _spec_of(parent)
    if above is None or above.submodule_search_locations is None:
        return None
    return _first_spec(name, list(above.submodule_search_locations))


def _first_spec(name: str, path: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, path) if find is not None else None
        if isinstance(spec, importlib.machinery.ModuleSpec):
            return spec
    return None


def _is_installed(path: str) -> bool:
    if any(part in path for part in _INSTALLED_PARTS):
        return True
    return path.startswith(_library_folders())


@functools.cache
def _library_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib")
    found = (sysconfig.get_path(name) for name in names)
    return tuple(dict.fromkeys(folder.rstrip("/") + "/" for folder in found if folder))


def _pack(modules: list[_Module]) -> Shipment:
    tops: dict[str, list[_Module]] = {}
    for module in modules:
        tops.setdefault(module.name.partition(".")[0], []).append(module)
    warnings: list[str] = []
    pinned: list[_Module] = []
    live: list[tuple[str, str]] = []
    stamps: dict[str, str] = {}
    for top, members in sorted(tops.items()):
        warnings += _warnings(members)
        reason = _reason_to_stay(members)
        if reason:
            live.append((top, reason))
            stamps.update((m.name, hashlib.sha256(m.data).hexdigest()) for m in members)
        else:
            pinned += members
    files = [ShippedFile(_name_in_zip(m), m.path, len(m.data)) for m in pinned]
    data = _write_zip([(f.name, m.data) for f, m in zip(files, pinned, strict=True)], stamps)
    return Shipment(
        data,
        hashlib.sha256(data).hexdigest() if data else "",
        tuple(files),
        tuple(live),
        tuple(warnings),
    )


def _reason_to_stay(members: list[_Module]) -> str:
    for module in members:
        if module.warning == "compiled":
            return f"{module.name} is compiled"
        if module.facts.uses_place:
            return f"{module.name} looks for files beside itself"
        if not module.path:
            return f"{module.name} is a namespace package"
        if module.warning:
            return f"{module.name}: {module.warning}"
    return _compiled_part(members[0])


def _compiled_part(top: _Module) -> str:
    if not top.is_package or not top.path:
        return ""
    folder = os.path.dirname(top.path)
    for name in sorted(os.listdir(folder)):
        if name.endswith(_SUFFIXES):
            return f"{top.name} has a compiled part, {name}"
    return ""


def _warnings(members: list[_Module]) -> Iterator[str]:
    for module in members:
        if module.warning == "compiled":
            yield (
                f"{module.name} ({module.path}) is a compiled extension and cannot be shipped; jobs find it only on "
                "machines that have it at the same path"
            )
        elif module.warning:
            yield f"{module.name} ({module.path}) was not shipped: {module.warning}"
        elif module.facts.calls_import:
            yield f"{module.name} imports modules by names made at run time; those are not followed"


def _name_in_zip(module: _Module) -> str:
    path = module.name.replace(".", "/")
    return f"{path}/__init__.py" if module.is_package else f"{path}.py"


def _write_zip(files: list[tuple[str, bytes]], stamps: dict[str, str]) -> bytes:
    """Return a zip file that is the same for the same contents; b"" for none."""
    if stamps:
        files = [*files, (MANIFEST, json.dumps(stamps, sort_keys=True).encode())]
    if not files:
        return b""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files):
            entry = zipfile.ZipInfo(name, _FIXED_TIME)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, whatever made it
            archive.writestr(entry, data)
    return target.getvalue()
