"""run.py: the private environment it makes and keeps, and what it copies for another user."""

import ast
import importlib.util
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from io import BytesIO
from pathlib import Path

import pytest

RUN_PY = Path(__file__).resolve().parents[2] / "run.py"


@pytest.fixture
def run():
    spec = importlib.util.spec_from_file_location("run_py_under_test", RUN_PY)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def venv(tmp_path):
    folder = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (folder / "bin" / "pip").touch()
    return folder


def test_an_environment_is_used_again(run, venv):
    assert run.is_usable(venv)


def test_an_environment_of_another_python_is_made_anew(run, venv):
    settings = venv / "pyvenv.cfg"
    settings.write_text(settings.read_text().replace("version = 3.", "version = 2."))
    assert not run.is_usable(venv)


@pytest.mark.parametrize("name", ["bin/pip", "bin/python", "pyvenv.cfg"])
def test_an_environment_whose_making_was_interrupted_is_made_anew(run, venv, name):
    (venv / name).unlink()
    assert not run.is_usable(venv)


def test_lab_leaves_the_project_linked_to_its_sources(run, tmp_path):
    heard = tmp_path / "heard"
    run.PYTHON = tmp_path / "python"
    run.PYTHON.write_text(f'#!/bin/sh\necho "$@" >> {heard}\n[ "$1" != -c ]\n')
    run.PYTHON.chmod(0o755)
    assert run.lab([]) == 0
    _, install, start = heard.read_text().splitlines()
    assert install.endswith(f"--editable {run.ROOT}[lab]")
    assert start.startswith("-m jupyterlab")


def test_a_python_too_old_for_the_project_can_still_read_run_py():
    """Annotations as `list[str]` and `X | None` end older ones with a traceback when evaluated."""
    tree = ast.parse(RUN_PY.read_text(), feature_version=(3, 7))
    first_import = next(node for node in tree.body if isinstance(node, ast.ImportFrom))
    assert first_import.module == "__future__"
    assert [alias.name for alias in first_import.names] == ["annotations"]


@pytest.mark.root
def test_root_copies_the_checkout_of_another_user(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    run.ROOT = tmp_path / "checkout"
    git = ["git", "-C", str(run.ROOT), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    run.ROOT.mkdir()
    (run.ROOT / "file.txt").write_text("kept")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    for path in (run.ROOT, run.ROOT / ".git"):
        shutil.chown(path, user="nobody")
    with tarfile.open(fileobj=BytesIO(run.committed_tree())) as archive:
        assert archive.getnames() == ["file.txt"]


@pytest.mark.root
def test_a_user_is_removed_as_soon_as_what_it_ran_was_buried(run):
    name = f"picloud-test-{secrets.token_hex(3)}"
    subprocess.run(["useradd", "--create-home", name], check=True)
    process = subprocess.Popen(["sleep", "60"], user=name)
    buried = threading.Timer(1.0, process.wait)  # until then it is there, though dead
    buried.start()
    try:
        run.remove_user(name)
    finally:
        buried.join()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(KeyError):
        pwd.getpwnam(name)
    assert not Path("/home", name).exists()
