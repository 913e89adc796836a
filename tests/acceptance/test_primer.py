"""The primer: every cell of it runs in a kernel, against a service of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.timeout(600)
def test_the_primer_runs_and_leaves_its_page(own_service, tmp_path):
    for name in ("primer.py", "primer.ipynb"):
        shutil.copy(DOCS / name, tmp_path)
    before = (tmp_path / "primer.ipynb").read_bytes()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "primer.py")],
        env={**os.environ, **own_service.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "pi is about 3.1",
        "[a picture, image/png",
        "GridSearchCV agrees",
        "sums by awk: [55, 5050, 500500]",
        "written in a container",
        "ZeroDivisionError: division by zero",
    ):
        assert words in done.stdout
    page = (tmp_path / "primer.html").read_text()
    assert "data:image/png;base64" in page
    assert "%%picloud" in page
    assert (tmp_path / "primer.ipynb").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "words"),
    [("1 / 0", "ZeroDivisionError"), ("import os; os._exit(1)", "Kernel died")],
)
def test_a_cell_that_fails_ends_the_primer_with_words(own_service, tmp_path, source, words):
    import nbformat

    shutil.copy(DOCS / "primer.py", tmp_path)
    cells = [nbformat.v4.new_code_cell("print('first')"), nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "primer.ipynb")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "primer.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("first\n")
    assert words in done.stdout
    assert "Traceback (most recent call last):\n  File" not in done.stderr
    assert (tmp_path / "primer.html").stat().st_size
