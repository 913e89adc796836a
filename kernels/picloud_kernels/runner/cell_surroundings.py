"""What a cell finds in the interpreter, and how it is taken back when the cell ends."""

import builtins
import contextlib
import logging
import sys
import threading
import types
import warnings
from collections.abc import Iterator

_HOOKS = (
    (sys, "breakpointhook"),
    (sys, "displayhook"),
    (sys, "excepthook"),
    (sys, "unraisablehook"),
    (threading, "excepthook"),
)


@contextlib.contextmanager
def cell_surroundings(module: types.ModuleType) -> Iterator[None]:
    """Make ``module`` the interpreter's ``__main__``; bring everything back at the end."""
    main = sys.modules["__main__"]
    known = dict(vars(builtins))
    hooks = [getattr(owner, name) for owner, name in _HOOKS]
    handlers, level = logging.root.handlers[:], logging.root.level
    sys.modules["__main__"] = module
    builtins.input = _refuse_input
    sys.breakpointhook = _refuse_breakpoint
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.modules["__main__"] = main
        for (owner, name), hook in zip(_HOOKS, hooks, strict=True):
            setattr(owner, name, hook)
        logging.root.handlers[:], logging.root.level = handlers, level
        _restore_builtins(known)
        _drop_event_loop()


def _refuse_input(prompt: object = "", /) -> str:
    raise EOFError(
        f"input({prompt!r}) was called in a cell that runs as a job, which has no keyboard; "
        "assign the value to a variable before, the cell takes it along"
    )


def _refuse_breakpoint(*_arguments: object, **_keywords: object) -> None:
    raise RuntimeError(
        "breakpoint() was called in a cell that runs as a job, which has no keyboard; "
        "run the cell here to debug it (--local)"
    )


def _restore_builtins(known: dict[str, object]) -> None:
    present = vars(builtins)
    if present != known:
        for name in present.keys() - known.keys():
            del present[name]
        present.update(known)


def _drop_event_loop() -> None:
    """Forget an event loop that the cell left behind; its last reference closes it."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return
    if sys.version_info >= (3, 14):  # there, no loop is made without being asked for
        asyncio.set_event_loop(None)
    else:
        asyncio.set_event_loop_policy(None)
