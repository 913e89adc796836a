"""Tracebacks of cells: the user's frames alone."""

import os
import sys
import types

_OWN_FOLDER = os.path.dirname(__file__) + os.sep


def cut_frames(error: BaseException) -> None:
    """Take our own frames and IPython's out of ``error``'s traceback and its chain's."""
    hidden = _hidden_folders()
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        exc = pending.pop()
        if exc is None or id(exc) in seen:
            continue
        seen.add(id(exc))
        exc.__traceback__ = _without(exc.__traceback__, hidden)
        pending += [exc.__cause__, exc.__context__]
        if isinstance(exc, BaseExceptionGroup):
            pending += exc.exceptions


def _without(
    frames: types.TracebackType | None, hidden: tuple[str, ...]
) -> types.TracebackType | None:
    kept = []
    while frames is not None:
        if not frames.tb_frame.f_code.co_filename.startswith(hidden):
            kept.append(frames)
        frames = frames.tb_next
    following = None
    for each in reversed(kept):
        following = types.TracebackType(following, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return following


def _hidden_folders() -> tuple[str, ...]:
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.__file__ is None:
        return (_OWN_FOLDER,)
    return (_OWN_FOLDER, os.path.dirname(ipython.__file__) + os.sep)
