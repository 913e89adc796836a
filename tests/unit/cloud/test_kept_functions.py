"""Bytes of a function are used again only while they are right."""

import math
import sys
import types

import pytest

from picloud_jupyter.cloud import kept_functions
from picloud_jupyter.cloud.submission import dump_checked_function
from picloud_jupyter.serialize.imports import code_imports
from picloud_jupyter.serialize.payload import load_function
from picloud_jupyter.serialize.pickler import References


def make(text, **names):
    """A function of a notebook: its globals are ``names``."""
    module = {"__name__": "__main__", **names}
    exec(text, module)
    return module["f"]


def kept(func):
    references = References()
    pickled = dump_checked_function(func, references)
    again = References()
    found = kept_functions.find(func, again)
    if found is not None:
        assert found is pickled
        assert again.modules == references.modules.union(*map(code_imports, references.code))
    return found is not None


def test_plain_function_is_kept_with_what_it_mentions():
    assert kept(make("def f(x, y=2): return math.sqrt(x) + len(str(y))", math=math))
    assert kept(make("def f(x: int) -> str: return [str(i) for i in range(x)]"))
    assert kept(make("def f(x):\n import colorsys\n return colorsys.hls_to_rgb(x, x, x)"))


@pytest.mark.parametrize(
    "func",
    [
        make("def f(): return table", table=[1]),
        make("def f(): return number", number=1),
        make("def f(): return [g() for _ in 'a']", g=abs),
        make("def f(): return module.value", module=types.ModuleType("not_importable")),
        make("def f(a=[]): return a"),
        make("def f(*, a=1): return a"),
        make("def g(n): return lambda: n\nf = g(5)"),
        print,
        [].append,
    ],
)
def test_function_that_may_change_is_not_kept(func):
    assert not kept(func)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.__globals__.update(math=types.ModuleType("other")),
        lambda f: f.__globals__.update(len=lambda x: 0),
        lambda f: setattr(f, "note", 1),
        lambda f: setattr(f, "__defaults__", (7,)),
        lambda f: setattr(f, "__defaults__", (True,)),
        lambda f: setattr(f, "__code__", (lambda x: x).__code__),
    ],
)
def test_changed_function_is_pickled_anew(change):
    func = make("def f(x=1): return math.sqrt(len('abcd')) + x", math=math)
    assert kept(func)
    change(func)
    assert kept_functions.find(func, References()) is None


def test_new_module_makes_all_doubtful(monkeypatch):
    func = make("def f(): return 1")
    assert kept(func)
    monkeypatch.setitem(sys.modules, "a_new_module", types.ModuleType("a_new_module"))
    assert kept_functions.find(func, References()) is None


def test_kept_bytes_load():
    func = make("def f(x): return x + 1")
    dump_checked_function(func, References())
    assert load_function(dump_checked_function(func, References()).data).call(1) == 2
