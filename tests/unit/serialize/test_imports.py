"""Static reading of sources."""

import pytest

from picloud_jupyter.serialize.imports import code_imports, read_source


def facts(text, module="pack.mod", *, is_package=False):
    return read_source(text.encode(), module, is_package=is_package)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import a.b, c", {"a.b", "c"}),
        ("from a import b", {"a", "a.b"}),
        ("from a import *", {"a"}),
        ("from . import x", {"pack", "pack.x"}),
        ("from .y import z", {"pack.y", "pack.y.z"}),
        ("from ... import z", set()),
        ("def f():\n  if 1:\n    import deep", {"deep"}),
        ("try:\n  import a\nexcept ImportError:\n  import b", {"a", "b"}),
    ],
)
def test_read_source_finds_imports(text, expected):
    assert facts(text).imports == expected


def test_read_source_when_package_resolves_from_itself():
    assert facts("from . import x", "pack", is_package=True).imports == {"pack", "pack.x"}


def test_read_source_tells_place_and_dynamic_imports():
    assert facts("open(__file__)").uses_place
    assert facts("from importlib.resources import files").uses_place
    assert facts("import importlib\nimportlib.import_module(x)").calls_import
    assert not facts("import a").uses_place


def test_read_source_when_not_python_raises():
    with pytest.raises(SyntaxError):
        facts("def f(:")


def test_code_imports_looks_into_nested_functions():
    def outer():
        import colorsys

        def inner():
            from os.path import join

            return join

        return colorsys, inner

    assert code_imports(outer.__code__) == {"colorsys", "os.path"}
