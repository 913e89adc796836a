"""Notebook cells: each in a fresh ``__main__``, its displays in the output, its names in the result."""

import linecache
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from picloud_jupyter.protocol.cells import Cell, CellResult, cell_name
from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.serialize.adoption import loads_into
from picloud_jupyter.serialize.payload import load_call
from picloud_jupyter.transport.inside import current_job
from picloud_kernels.runner import cell_plain
from picloud_kernels.runner.cell_names import CellNames, NotSentError
from picloud_kernels.runner.cell_source import CellSource
from picloud_kernels.runner.cell_surroundings import cell_surroundings
from picloud_kernels.runner.cell_traceback import cut_frames
from picloud_kernels.runner.shell import uploaded
from picloud_kernels.runner.words import ElementEnded, describe_raised

_last_names: list[str] = []  # of the cells whose lines linecache still has


class CellCall:
    """A cell as a function of its inputs; functions of the notebook share the cell's globals."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._module = types.ModuleType("__main__")

    def load_call(self, data: Buffer) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments in ``data``; what their functions bring along enters the namespace."""
        self._module = types.ModuleType("__main__")
        return load_call(data, loads=loads_into(vars(self._module)))

    def __call__(self, inputs: dict[str, Any]) -> CellResult:
        """Run the cell; see `run`."""
        return run(self._cell, inputs, self._module)


def run(cell: Cell, inputs: dict[str, Any], module: types.ModuleType) -> CellResult:
    """Run ``cell`` with ``inputs`` in the namespace of ``module`` and return what it left there.

    Raises:
        ElementEnded: the cell raised, or a name that was asked for cannot be sent back.
    """
    job = current_job()
    source = CellSource.of(cell, cell_name(cell, None if job is None else job.jid))
    _show_lines_of(source)
    names = CellNames(cell, inputs)
    try:
        with cell_surroundings(module), _files_of(cell):
            plain, error = _execute(source, module, names)
            if error is not None:
                cut_frames(error)
                raise ElementEnded(*describe_raised(error))
            return names.collect(vars(module), plain)
    except NotSentError as exc:
        raise ElementEnded("result_unserializable", exc.body) from None
    finally:
        vars(
            module
        ).clear()  # functions hold the namespace in a cycle; its arrays must not wait


@contextmanager
def _files_of(cell: Cell) -> Iterator[None]:
    """Have the files that came with ``cell`` in the working folder, under their own names."""
    with uploaded(os.getcwd(), {file.name: file for file in cell.files}) as names_there:
        if taken := [name for name, there in names_there.items() if there != name]:
            raise FileExistsError(
                f"{taken[0]} lies in the job's folder already; give the file another name: --file PATH:NAME"
            )
        yield


def _execute(
    source: CellSource, module: types.ModuleType, names: CellNames
) -> tuple[str, BaseException | None]:
    """Return (why IPython did not run it, what the cell raised)."""
    why = ""
    try:
        from picloud_kernels.runner import cell_shell
    except ImportError as exc:
        why = _no_ipython(exc)
    if why:  # what the cell raises is not to be chained to the ImportError
        return why, cell_plain.execute(source, module, names, why)
    return "", cell_shell.execute(source, module, names)


def _no_ipython(exc: ImportError) -> str:
    is_absent = isinstance(exc, ModuleNotFoundError) and exc.name == "IPython"
    what = "IPython is not installed" if is_absent else f"IPython cannot be used ({exc})"
    return (
        f"{what} in {sys.executable}: the cell ran as plain Python, without magics, !commands and rich displays; "
        f"install it there with: {sys.executable} -m pip install --upgrade ipython"
    )


def _show_lines_of(source: CellSource) -> None:
    """Have tracebacks show the lines of this cell and no longer those of the ones before."""
    while _last_names:
        linecache.cache.pop(_last_names.pop(), None)
    source.install()
    _last_names.append(source.name)
