"""PiCloud for Jupyter: ``from picloud_jupyter import cloud`` and call functions on all cores.

Importing this package loads nothing heavy; ``cloud`` is loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

from picloud_jupyter.protocol.version import __version__

if TYPE_CHECKING:
    from picloud_jupyter import cloud as cloud

__all__ = ["__version__", "cloud"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # a module
    if name == "cloud":
        import importlib

        return importlib.import_module("picloud_jupyter.cloud")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
