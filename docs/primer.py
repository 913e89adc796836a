"""Runs the primer, docs/primer.ipynb, in a kernel: ``python3 run.py primer``.

Prints what its cells print and leaves docs/primer.html beside it, with the pictures. The notebook
itself is left as it is; open it with ``python3 run.py lab``.
"""

import base64
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter

NOTEBOOK = Path(__file__).with_name("primer.ipynb")
PAGE = NOTEBOOK.with_suffix(".html")
CELL_SECONDS = 600
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    """Run all cells; return 1 if one of them failed."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        extra_arguments=["--log-level=ERROR"],  # it warns that loopback is not encrypted
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        on_cell_execute=lambda cell, cell_index: print_title(notebook.cells, cell_index),
        on_cell_executed=lambda cell, cell_index, execute_reply: print_outputs(cell),
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        print(f"\nA cell of {NOTEBOOK.name} failed:\n{ESCAPES.sub('', str(error))}")
        return 1
    finally:
        page, _ = HTMLExporter().from_notebook_node(notebook)
        PAGE.write_text(page, encoding="utf-8")
    print(f"\nWith its pictures: {PAGE}\nTo change and run it: python3 run.py lab")
    return 0


def print_title(cells: list[Any], index: int) -> None:
    """Print the heading above a cell that is about to run."""
    above = cells[index - 1] if index else None
    if above is not None and above.cell_type == "markdown" and above.source.startswith("## "):
        title = above.source.splitlines()[0].removeprefix("## ")
        print(f"\n{title}\n{'-' * len(title)}", flush=True)


def print_outputs(cell: Any) -> None:
    """Print what a cell printed; its pictures as words."""
    for output in cell.outputs:
        if output.output_type == "stream":
            print(output.text.rstrip("\n"), flush=True)
        for kind, data in output.get("data", {}).items():
            if kind.startswith("image/png"):
                size_bytes = len(base64.b64decode(data))
                print(f"[a picture, {kind}, {size_bytes / 1024:.0f} KiB]", flush=True)


if __name__ == "__main__":
    sys.exit(main())
