"""Which local modules go with a function, on real files."""

import io
import json
import sys
import time
import types
import zipfile

import pytest

from picloud_jupyter.serialize.dependencies import MANIFEST, DependencyFinder
from picloud_jupyter.serialize.pickler import References


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on sys.path; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder, **files):
    for name, text in files.items():
        path = folder / (name.replace("__", "/", 1) if "__" in name else name)
        path = path.with_name(path.name + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def shipped(*names, finder=None, main=None):
    return (finder or DependencyFinder()).ship(References(modules=set(names)), main=main)


def names_of(shipment):
    return [file.name for file in shipment.files]


def test_ship_when_nothing_is_local_is_empty():
    shipment = shipped(
        "numpy.linalg", "os", "json", "picloud_jupyter.cloud", "__main__", "hypothesis"
    )
    assert (shipment.data, shipment.digest, shipment.files) == (b"", "", ())
    assert str(shipment) == "no local modules"


def test_ship_follows_imports_and_takes_parent_packages(folder):
    write(folder, aa="import bb", bb="from pp.deep import x", cc="unused = 1")
    (folder / "pp").mkdir()
    (folder / "pp" / "__init__.py").write_text("")
    (folder / "pp" / "deep.py").write_text("x = 1")
    shipment = shipped("aa")
    assert names_of(shipment) == ["aa.py", "bb.py", "pp/__init__.py", "pp/deep.py"]
    assert "aa.py, bb.py, pp/" in str(shipment)


def test_ship_when_content_is_the_same_gives_the_same_digest(folder):
    write(folder, aa="x = 1")
    first = shipped("aa")
    (folder / "aa.py").touch()
    assert shipped("aa").digest == first.digest
    write(folder, aa="x = 2")
    assert shipped("aa").digest != first.digest


def test_ship_when_a_module_changes_is_noticed_by_the_same_finder(folder):
    finder = DependencyFinder()
    write(folder, aa="x = 1")
    first = shipped("aa", finder=finder)
    write(folder, aa="x = 22")
    assert shipped("aa", finder=finder).digest != first.digest


def test_ship_takes_what_the_notebook_imported(folder):
    write(folder, aa="def f(): pass")
    import aa  # type: ignore[import-not-found]

    main = types.ModuleType("__main__")
    vars(main).update(module=aa, number=5)
    assert names_of(shipped(main=main)) == ["aa.py"]
    vars(main).update(module=None, function=aa.f)
    assert names_of(shipped(main=main)) == ["aa.py"]


def test_ship_takes_imports_within_functions_sent_by_value(folder):
    write(folder, aa="x = 1")

    def use():
        import aa

        return aa.x

    assert names_of(DependencyFinder().ship(References(code=[use.__code__]))) == ["aa.py"]


def test_ship_when_syntax_is_wrong_warns_and_goes_on(folder):
    write(folder, aa="import broken", broken="def f(:")
    shipment = shipped("aa")
    assert names_of(shipment) == ["aa.py"]
    assert any("broken" in w and "SyntaxError" in w for w in shipment.warnings)


def test_ship_when_part_is_compiled_leaves_the_package_where_it_is(folder):
    write(folder, aa="import fast")
    (folder / "fast").mkdir()
    (folder / "fast" / "__init__.py").write_text("from fast import core")
    (folder / "fast" / "core.abi3.so").write_bytes(b"")
    shipment = shipped("aa")
    assert names_of(shipment) == ["aa.py"]
    assert [name for name, _ in shipment.live] == ["fast"]
    assert any("compiled" in warning for warning in shipment.warnings)
    with zipfile.ZipFile(io.BytesIO(shipment.data)) as archive:
        assert set(json.loads(archive.read(MANIFEST))) == {"fast", "fast.core"}


def test_ship_when_module_reads_beside_itself_stays_but_changes_the_version(folder):
    write(folder, aa="open(__file__)")
    first = shipped("aa")
    assert (first.files, first.warnings) == ((), ())
    assert dict(first.live)["aa"]
    write(folder, aa="open(__file__)  # changed")
    assert shipped("aa").digest not in ("", first.digest)


def test_ship_when_whitelisted_takes_those_and_their_parents_only(folder):
    write(folder, aa="import pp.deep, bb", bb="")
    (folder / "pp").mkdir()
    for name in ("__init__", "deep", "other"):
        (folder / "pp" / f"{name}.py").write_text("import pp.other" if name == "deep" else "")
    finder = DependencyFinder(whitelist=frozenset({"aa", "pp.deep"}))
    assert names_of(shipped("aa", finder=finder)) == ["aa.py", "pp/__init__.py", "pp/deep.py"]


def test_ship_when_imports_go_in_a_circle_ends(folder):
    write(folder, aa="import bb", bb="import aa")
    assert names_of(shipped("aa")) == ["aa.py", "bb.py"]


def test_ship_names_imports_that_cannot_be_followed(folder):
    write(folder, aa="__import__('x' + 'y')")
    assert any("not followed" in warning for warning in shipped("aa").warnings)


def test_ship_gives_a_zip_that_python_imports(folder, tmp_path, monkeypatch):
    write(folder, zz="value = 7")
    data = shipped("zz").data
    (folder / "zz.py").unlink()
    archive = folder / "code.zip"
    archive.write_bytes(data)
    monkeypatch.syspath_prepend(archive)
    import zz  # type: ignore[import-not-found]

    assert zz.value == 7


def test_ship_when_asked_again_is_quick():
    import collections
    import json as other

    main = types.ModuleType("__main__")
    vars(main).update({f"name{i}": i for i in range(200)}, a=collections, b=other, c=pytest)
    finder = DependencyFinder()
    shipped("numpy", finder=finder, main=main)
    best = min(_seconds(lambda: shipped("numpy", finder=finder, main=main)) for _ in range(20))
    assert best < 0.0005


def _seconds(function):
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun
