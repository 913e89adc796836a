"""PiCloud for Jupyter: ``from picloud_jupyter import cloud`` and call functions on all cores.

Importing this package loads nothing heavy; ``cloud`` is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from picloud_jupyter.protocol.version import __version__

if TYPE_CHECKING:
    from picloud_jupyter import cloud as cloud

__all__ = ["__version__", "cloud"]
_MAGICS = "picloud_jupyter.magics.magic"


def load_ipython_extension(shell: Any) -> None:  # noqa: ANN401  # IPython's
    """Give ``%%picloud``, ``%picloud`` and ``cloud`` to IPython: ``%load_ext picloud_jupyter``."""
    importlib.import_module(_MAGICS).load(shell)


def unload_ipython_extension(shell: Any) -> None:  # noqa: ANN401  # IPython's
    """Take the magics away; jobs go on, and ``cloud`` stays."""
    importlib.import_module(_MAGICS).unload(shell)


def __getattr__(name: str) -> Any:  # noqa: ANN401  # a module
    if name == "cloud":
        return importlib.import_module("picloud_jupyter.cloud")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
