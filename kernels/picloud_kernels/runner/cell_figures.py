"""Figures of matplotlib: shown inline in a cell, and nothing left of them for the next one."""

import os
import sys
from typing import Any

_INLINE = "module://matplotlib_inline.backend_inline"
_INLINE_MODULE = "matplotlib_inline.backend_inline"
_BACKEND_SETTINGS = frozenset(("backend", "backend_fallback"))


def show_inline(shell: Any) -> None:  # noqa: ANN401  # IPython's
    """Have ``shell`` show the figures of the cell that begins, whenever it imports matplotlib."""
    matplotlib = _loaded()
    if matplotlib is None:
        os.environ.setdefault("MPLBACKEND", _INLINE)
        return
    if dict.__getitem__(matplotlib.rcParams, "backend") != _INLINE:
        matplotlib.use(_INLINE)
    if not sys.modules.keys().isdisjoint(("matplotlib.pyplot", _INLINE_MODULE)):
        from matplotlib_inline.backend_inline import configure_inline_support

        configure_inline_support(shell, _INLINE)
        matplotlib.interactive(True)  # noqa: FBT003  # figures are shown without plt.show()


def reset() -> None:
    """Close figures, bring back matplotlib's settings, and forget the shell they were shown in."""
    inline = sys.modules.get(_INLINE_MODULE)
    if inline is not None:
        inline.configure_inline_support.current_backend = "unset"
        inline.InlineBackend.clear_instance()
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


def _loaded() -> Any:  # noqa: ANN401  # matplotlib, if it was imported as a whole
    matplotlib = sys.modules.get("matplotlib")
    return matplotlib if hasattr(matplotlib, "use") else None
