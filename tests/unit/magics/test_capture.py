"""Which names a cell reads and assigns, by its syntax; against what Python does with it."""

import builtins

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from picloud_jupyter.magics.capture import capture

transform = TransformerManager().transform_cell


def needed(source):
    names = capture(source, transform).needed
    return {n for n in names if not hasattr(builtins, n) and n != "get_ipython"}


def wanted(source):
    return set(capture(source, transform).wanted)


def assigned(source):
    return set(capture(source, transform).assigned)


@pytest.mark.parametrize(
    ("source", "reads", "assigns"),
    [
        ("x = y + 1", {"y"}, {"x"}),
        ("x = x + 1", {"x"}, {"x"}),
        ("x += 1", {"x"}, {"x"}),
        ("a[i] = v", {"a", "i", "v"}, set()),
        ("a.b = v", {"a", "v"}, set()),
        ("a, (b, *c) = v", {"v"}, {"a", "b", "c"}),
        ("a = b = v", {"v"}, {"a", "b"}),
        ("x: kind = v", {"v"}, {"x"}),
        ("x: kind", set(), set()),
        ("del x", {"x"}, set()),
        ("x = 1\ndel x\nx", set(), {"x"}),
        ("import a.b, c as d", set(), {"a", "d"}),
        ("from m import f as g", set(), {"g"}),
        ("[x for x in xs if x > low]", {"xs", "low"}, set()),
        ("{k: v for k, v in d.items()}", {"d"}, set()),
        ("[y for x in xs for y in x]", {"xs"}, set()),
        ("[(n := x) for x in xs]\nn", {"xs"}, {"n"}),
        ("if (m := f(s)): m", {"f", "s"}, {"m"}),
        ("with open(p) as f: f", {"p"}, {"f"}),
        ("for i in xs: last = i", {"xs"}, {"i", "last"}),
        ("for i, a[0] in xs: pass", {"xs", "a"}, {"i"}),
        ("while go: step()", {"go", "step"}, set()),
        ("try:\n    f()\nexcept E as e:\n    e\nfinally:\n    g()", {"f", "E", "g"}, set()),
        (
            "match p:\n    case [a, *b]: a\n    case {'k': v, **r}: v\n    case C(x=q) as w: q",
            {"p", "C"},
            {"a", "b", "v", "r", "q", "w"},
        ),
        ("print(f'{x!r:>{w}} {y=}')", {"x", "w", "y"}, set()),
        ("lambda a, b=d: a + b + c", {"c", "d"}, set()),
        ("async def f():\n    async with a as b:\n        return b\nawait f()", {"a"}, {"f"}),
        ("await g(1)", {"g"}, set()),
        ("assert ok, why", {"ok", "why"}, set()),
        ("global z\nz = 1", set(), {"z"}),
        ("nonsense if chosen else sense", {"nonsense", "chosen", "sense"}, set()),
    ],
)
def test_statements(source, reads, assigns):
    assert needed(source) == reads
    assert assigned(source) == assigns


def test_functions_read_when_they_are_used():
    source = "def f(a, b=d, *r, **k):\n    q = a + g\n    return q, r, k, later"
    assert needed(source) == {"d"}  # nobody calls it here
    assert wanted(source) == {"g", "later"}
    assert needed(f"{source}\nf(1)") == {"d", "g", "later"}
    assert needed(f"@wrap\n{source}") == {"wrap", "d", "g", "later"}
    assert needed(f"def h():\n    return f(1)\n{source}\nh()") == {"d", "g", "later"}


def test_a_name_that_the_cell_assigns_later_may_be_used_by_its_functions():
    found = capture("def f():\n    return x + f()\nx = 1\nf()")
    assert found.needed == ()
    assert "x" in found.wanted


def test_a_function_may_assign_globally():
    found = capture("def f():\n    global made\n    made = used\nf()\nmade")
    assert set(found.assigned) == {"f", "made"}
    assert found.needed == ("used",)


def test_nested_functions_and_classes():
    source = "def outer(a):\n    b = 1\n    def inner():\n        nonlocal b\n        return a + b + g\n    return inner\nouter(1)"
    assert needed(source) == {"g"}
    source = "class A(Base, metaclass=M):\n    n = size\n    m = n + 1\n    def f(self):\n        return n, helper\nA()"
    # a method does not see the class's own names
    assert needed(source) == {"Base", "M", "size", "n", "helper"}
    assert assigned(source) == {"A"}


def test_what_depends_on_the_way_is_wanted():
    assert wanted("if c:\n    x = 1\nprint(x)") == {"x"}
    assert wanted("if c:\n    x = 1\nelse:\n    x = 2\nx") == set()
    assert wanted("for i in r:\n    if i:\n        print(prev)\n    prev = i") == {"prev"}
    assert wanted("a and (b := 1)\nb") == {"b"}
    assert wanted("try:\n    x = 1\nexcept E:\n    pass\nx") == {"x"}


def test_asking_whether_a_name_exists_is_no_error():
    assert needed("try:\n    x\nexcept NameError:\n    x = {}") == set()
    assert needed("try:\n    x\nexcept:\n    pass") == set()
    assert needed("try:\n    x\nexcept ValueError:\n    pass") == {"x"}
    assert needed("if 'x' in globals():\n    print(x)") == set()


def test_a_star_import_may_bring_any_name():
    found = capture("a\nfrom numpy import *\narray(b)")
    assert found.has_star
    assert found.needed == ("a",)
    assert set(found.wanted) == {"array", "b"}
    assert found.modules == ("numpy",)


def test_ipython():
    assert wanted("!ls $path {name + '.txt'}") == {"path", "name"}
    assert assigned("files = !ls") == {"files"}
    assert needed("%time y = f(x)") == {"f", "x"}
    assert assigned("%time y = f(x)") == {"y"}
    assert needed("%timeit -n 10 -r 3 f(x)") == {"f", "x"}
    assert needed("%%time\ny = f(x)\n!echo hi") == {"f", "x"}
    assert assigned("%%capture out\ny = 1") == {"out", "y"}
    assert needed("data?") == {"data"}
    assert needed("%matplotlib inline") == set()
    assert needed("%%bash\necho $HOME") == set()
    assert wanted("def f():\n    !ls $here") == {"here", "get_ipython"}


def test_syntax_errors_are_raised():
    with pytest.raises(SyntaxError):
        capture("x = (1")


# ------------------------------------------------------------------------ against Python itself
NAMES = st.sampled_from("abcde")


def _block(lines, head):
    return [head, *(f"    {line}" for line in lines)]


STATEMENT = st.recursive(
    st.one_of(
        st.tuples(NAMES, NAMES).map(lambda p: [f"{p[0]} = {p[1]}"]),
        st.tuples(NAMES, NAMES).map(lambda p: [f"{p[0]} = [{p[1]} for {p[1]} in [1]]"]),
        NAMES.map(lambda n: [f"{n} = 1"]),
        NAMES.map(lambda n: [f"{n} += {n}"]),
        NAMES.map(lambda n: [f"def f(): return {n}", "f()"]),
        NAMES.map(lambda n: [f"class A: {n} = {n}"]),
        st.tuples(NAMES, NAMES).map(lambda p: [f"({p[0]} := {p[1]})"]),
    ),
    lambda inner: st.one_of(
        inner.map(lambda lines: _block(lines, "if True:")),
        inner.map(lambda lines: _block(lines, "for i in [1, 2]:")),
        inner.map(lambda lines: _block(lines, "with nothing:")),
        inner.map(lambda lines: [*_block(lines, "try:"), "finally: pass"]),
        st.tuples(inner, inner).map(lambda p: [*p[0], *p[1]]),
    ),
    max_leaves=6,
)


class Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@settings(max_examples=300, deadline=None)
@given(st.lists(STATEMENT, min_size=1, max_size=5))
def test_a_cell_that_gets_the_captured_names_finds_all_of_its_names(blocks):
    source = "\n".join(line for block in blocks for line in block)
    found = capture(source)
    given_names = dict.fromkeys((*found.needed, *found.wanted), 1)
    namespace = {**given_names, "nothing": Nothing()}
    before = set(namespace)
    exec(source, namespace)  # no NameError
    new = set(namespace) - before - {"__builtins__"}
    assert new <= set(found.assigned)


@settings(max_examples=200, deadline=None)
@given(st.lists(STATEMENT, min_size=1, max_size=5))
def test_a_straight_cell_fails_without_a_name_that_it_needs(blocks):
    source = "\n".join(line for block in blocks for line in block)
    found = capture(source)
    for absent in found.needed:
        namespace = dict.fromkeys((*found.needed, *found.wanted), 1) | {"nothing": Nothing()}
        del namespace[absent]
        if absent == "nothing" or hasattr(builtins, absent):
            continue
        with pytest.raises(NameError):
            exec(source, namespace)


@pytest.mark.parametrize(
    "head",
    [
        "def f(x: a.B, *args: c, y: d = 1, **rest: e) -> g: pass",
        "async def f(x: a.B, *args: c, y: d = 1, **rest: e) -> g: pass",
        "class A:\n    def f(x: a.B, *args: c, y: d = 1, **rest: e) -> g: pass",
        "class A:\n    a = 1\n    def f(x: a.B, *args: c, y: d = 1, **rest: e) -> g: pass\nx: a",
    ],
)
def test_annotations_of_functions_are_sent_where_the_notebook_has_them(head):
    # evaluated with the definition, unless `from __future__ import annotations` puts them off
    assert wanted(head) == {"a", "c", "d", "e", "g"}
    assert needed(head) == set()


def test_a_sum_of_thousands_of_terms_is_read_from_left_to_right():
    names = [f"x{n}" for n in range(2_000)]
    found = capture("total = (later := " + " + ".join(names) + ") + later")
    assert found.needed == tuple(names)
    assert set(found.assigned) == {"total", "later"}
