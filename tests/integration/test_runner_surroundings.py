"""The user's own Python in the runner, shipped code, and what is cleaned between elements."""

import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from picloud_jupyter.serialize.dependencies import DependencyFinder
from picloud_jupyter.serialize.payload import dump_function
from picloud_jupyter.serialize.pickler import References
from picloud_kernels.runner.reset import Baseline
from picloud_services.agent.overlay import remove_tree
from tests.tools.deep_folders import make_deep
from tests.tools.runner_harness import RunnerHarness


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment with a .pth file, an editable package with a finder, a customisation."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "v", with_pip=False)
    (site,) = (folder / "v").glob("lib/python*/site-packages")
    (folder / "by_path").mkdir()
    (folder / "by_path" / "plain_editable.py").write_text("x = 1\n")
    (folder / "by_finder").mkdir()
    (folder / "by_finder" / "mapped.py").write_text("x = 2\n")
    (site / "plain.pth").write_text(f"{folder / 'by_path'}\n")
    (site / "__editable___mapped_finder.py").write_text(
        "import sys\nfrom importlib.util import spec_from_file_location\n"
        f"MAPPING: dict[str, str] = {{'mapped': {str(folder / 'by_finder' / 'mapped')!r}}}\n"
        "class Finder:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        if name in MAPPING:\n"
        "            return spec_from_file_location(name, MAPPING[name] + '.py')\n"
        "def install():\n    sys.meta_path.append(Finder)\n"
    )
    (site / "mapped.pth").write_text("import __editable___mapped_finder as f; f.install()\n")
    (folder / "early").mkdir()  # for PYTHONPATH: a system's Python may have a sitecustomize too
    (folder / "early" / "sitecustomize.py").write_text(
        "import os\nos.environ['CUSTOMISED'] = 'yes'\n"
    )
    return folder / "v" / "bin" / "python"


def described(executable, source):
    """Return what ``source`` prints, evaluated as a Python literal, in that interpreter."""
    early = executable.parent.parent.parent / "early"
    done = subprocess.run(
        [executable, "-c", source],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": str(early)},
    )
    return eval(done.stdout)


def test_runner_is_the_users_virtual_environment(environment, tmp_path):
    import sysconfig

    sys_path = described(environment, "import sys; print([p for p in sys.path if p])")

    def look():
        import mapped  # type: ignore[import-not-found]
        import plain_editable  # type: ignore[import-not-found]

        return (
            sys.prefix,
            sysconfig.get_path("purelib"),
            plain_editable.x,
            mapped.x,
            os.environ["CUSTOMISED"],
            callable(exit),
        )

    with RunnerHarness(tmp_path, sys_path=sys_path, executable=str(environment)) as made:
        made.hello()
        prefix, library, plain, mapped, customised, has_exit = made.call(look).value
    assert prefix == str(environment.parent.parent)
    assert library.startswith(prefix)
    assert (plain, mapped, customised, has_exit) == (1, 2, "yes", True)


def test_host_python_names_what_an_environment_needs(environment):
    root = Path(__file__).parent.parent.parent
    import cloudpickle

    source = (
        f"import sys; sys.path += [{str(root)!r}, {str(Path(cloudpickle.__file__).parent.parent)!r}]\n"
        "from picloud_jupyter.cloud.host_python import host_python\n"
        "h = host_python(); print([h.executable, h.prefix, list(h.paths), list(h.sys_path)])"
    )
    executable, prefix, paths, sys_path = described(environment, source)

    def visible(path):
        return any(path == p or path.startswith(p + "/") for p in paths)

    assert executable == str(environment)
    folder = environment.parent.parent.parent
    needed = [
        prefix,
        os.path.realpath(executable),
        str(folder / "by_path"),
        str(folder / "by_finder" / "mapped.py"),
        *sys_path,
    ]
    assert [path for path in needed if not visible(path)] == []


def test_shipped_code_is_imported_and_its_source_shown(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "local_one.py").write_text(
        "from local_pack.deep import fail\ndef f():\n    return fail()  # calls\n"
    )
    (tmp_path / "mine" / "local_pack").mkdir()
    (tmp_path / "mine" / "local_pack" / "__init__.py").write_text("")
    (tmp_path / "mine" / "local_pack" / "deep.py").write_text(
        "def fail():\n    1 / 0  # fails\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "mine")
    import local_one  # type: ignore[import-not-found]

    references = References()
    payload = dump_function(local_one.f, references=references)
    shipment = DependencyFinder().ship(references)
    assert {f.name for f in shipment.files} == {
        "local_one.py",
        "local_pack/__init__.py",
        "local_pack/deep.py",
    }
    code = tmp_path / "code.zip"
    code.write_bytes(shipment.data)
    elsewhere = [p for p in sys.path if p and p != str(tmp_path / "mine")]
    with RunnerHarness(tmp_path, sys_path=elsewhere, code=str(code)) as made:
        made.hello()
        failure = made.call(payload).failure
    assert failure.type_name == "ZeroDivisionError"
    assert "# calls" in failure.traceback
    assert "# fails" in failure.traceback


def test_new_temporary_files_are_removed_and_known_ones_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ)
    before = dict(os.environ)
    temporary = tmp_path / "temporary"
    (temporary / "bound").mkdir(parents=True)
    baseline = Baseline(temporary=str(temporary))
    try:
        (temporary / "bound" / "inside").write_text("")
        (temporary / "new").mkdir()
        (temporary / "new" / "file").write_text("")
        (temporary / "link").symlink_to(tmp_path)
        baseline.restore_after_chunk()
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
    assert sorted(p.name for p in temporary.rglob("*")) == ["bound", "inside"]
    assert tmp_path.exists()


@pytest.fixture
def baseline(tmp_path, monkeypatch):
    """The surroundings with a temporary folder of the test's own, `tmp_path` / temporary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ)
    before = dict(os.environ)
    (tmp_path / "temporary").mkdir()
    yield Baseline(temporary=str(tmp_path / "temporary"))
    for name in set(os.environ) - set(before):
        del os.environ[name]


def test_temporary_folders_of_any_depth_are_removed(baseline, tmp_path):
    top = tmp_path / "temporary"
    subprocess.run(["/bin/mkdir", "-p", str(top / ("d/" * 1500))], check=True)
    (top / "d" / "link").symlink_to(tmp_path)
    baseline.restore_after_element()
    assert not list(top.iterdir())
    assert tmp_path.exists()
    assert not baseline.is_spent


def test_temporary_folder_that_is_gone_is_told(baseline, tmp_path):
    (tmp_path / "temporary").rmdir()
    (tmp_path / "temporary").touch()
    baseline.restore_after_element()
    assert baseline.is_spent


def test_temporary_folder_when_it_was_quiet_is_listed_again_only_after_a_change(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ)
    before = dict(os.environ)
    temporary = tmp_path / "temporary"
    (temporary / "bound").mkdir(parents=True)
    baseline = Baseline(temporary=str(temporary))
    listed: list[str] = []
    list_folder = os.listdir

    def noted(path):
        listed.append(path)
        return list_folder(path)

    monkeypatch.setattr(os, "listdir", noted)

    def reset() -> int:
        """Reset as after a chunk of one element; returns how often the folder was listed."""
        listed.clear()
        baseline.restore_after_element()
        baseline.restore_after_chunk()
        return len(listed)

    try:
        assert reset() > 0
        assert reset() > 0, "a change within the clock's grain would not be seen"
        later = time.time_ns() + 10**10
        monkeypatch.setattr(time, "time_ns", lambda: later)
        assert reset() > 0
        assert reset() == 0
        (temporary / "new").write_text("")
        assert reset() > 0
        assert [p.name for p in temporary.iterdir()] == ["bound"]
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]


def test_a_temporary_file_deeper_than_a_path_may_be_long_ends_the_runner(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    baseline = Baseline(temporary=str(temporary))
    make_deep(temporary, 100)
    baseline.restore_after_element()
    assert (os.listdir(temporary), baseline.is_spent) == ([], False)
    make_deep(temporary, 3000)
    baseline.restore_after_element()
    assert baseline.is_spent
    remove_tree(str(temporary))
