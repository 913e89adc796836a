"""Figures of matplotlib: shown inline in a cell, and nothing left of them for the next one."""

import os
import sys
from typing import Any

_INLINE = "module://matplotlib_inline.backend_inline"
_INLINE_MODULE = "matplotlib_inline.backend_inline"
_BACKEND_SETTINGS = frozenset(("backend", "backend_fallback"))


def begin(shell: Any) -> None:  # noqa: ANN401  # IPython's
    """Have ``shell`` show the figures of the cell that begins, whenever it imports matplotlib."""
    matplotlib = _loaded()
    if matplotlib is None:
        os.environ.setdefault("MPLBACKEND", _INLINE)
        return
    if dict.__getitem__(matplotlib.rcParams, "backend") != _INLINE:
        matplotlib.use(_INLINE)
    connect(shell)
    matplotlib.interactive(True)  # noqa: FBT003  # figures are shown without plt.show()


def connect(shell: Any) -> None:  # noqa: ANN401
    """Have ``shell`` show figures, if matplotlib's inline backend is loaded already."""
    inline = sys.modules.get(_INLINE_MODULE)
    if inline is None or getattr(inline.InlineBackend.instance(), "shell", None) is shell:
        return
    forget()
    inline.configure_inline_support(shell, _INLINE)


def end() -> None:
    """Close figures and bring back matplotlib's settings."""
    matplotlib = _loaded()
    if matplotlib is None:
        return
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and pyplot.get_fignums():
        pyplot.close("all")
    settings = matplotlib.rcParams
    changed = {
        key: value
        for key, value in matplotlib.rcParamsOrig.items()
        if key not in _BACKEND_SETTINGS and dict.__getitem__(settings, key) != value
    }
    if changed:
        settings.update(changed)


def forget() -> None:
    """Forget the shell in which figures were shown, and its settings."""
    inline = sys.modules.get(_INLINE_MODULE)
    if inline is not None:
        inline.configure_inline_support.current_backend = "unset"
        inline.InlineBackend.clear_instance()


def _loaded() -> Any:  # noqa: ANN401  # matplotlib, if it was imported as a whole
    matplotlib = sys.modules.get("matplotlib")
    return matplotlib if hasattr(matplotlib, "use") else None
