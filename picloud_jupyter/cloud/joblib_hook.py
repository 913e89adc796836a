"""Registers the joblib backend "picloud" as soon as somebody imports joblib, and never imports it.

joblib has no entry points: a backend counts once `register_parallel_backend` was called. Where joblib is
not loaded yet, a finder waits for its module of backends and leaves when that was loaded.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader  # would be a third of our import time

NAME = "picloud"
_MODULE = "joblib.parallel"


def install() -> None:
    """Have the backend registered: now if joblib is loaded, else when it is."""
    loaded = sys.modules.get(_MODULE)
    if loaded is not None and hasattr(loaded, "register_parallel_backend"):
        register(loaded)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def register(parallel: ModuleType) -> None:
    """Register the backend with the module joblib.parallel."""
    parallel.register_parallel_backend(NAME, _make)


def _make(**options: Any) -> Any:  # noqa: ANN401  # joblib ships no types
    from picloud_jupyter.cloud.joblib_backend import PiCloudBackend

    return PiCloudBackend(**options)


class _Finder:
    """Finds nothing itself: it has the others find joblib.parallel, and looks on as it is loaded."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # it is one by its methods
        return spec


class _Loader:
    """Loads as ``loader`` does, and registers the backend then."""

    def __init__(self, loader: "Loader") -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        register(module)
