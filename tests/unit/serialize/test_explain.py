"""Explanations: the path to the part that cannot be pickled, within a bounded time."""

import functools
import pickle
import threading
import time
from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.serialize.explain import closure_sizes, explain_unpicklable
from picloud_jupyter.serialize.payload import dump

Pair = namedtuple("Pair", "left right")


class Box:
    def __init__(self, **content):
        self.__dict__.update(content)


def box(**content):
    return Box(**content)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (lambda lock: lock, "x"),
        (lambda lock: {"a": [1, lock]}, "x['a'][1]"),
        (lambda lock: box(model=box(lock=lock)), "x.model.lock"),
        (lambda lock: Pair(1, lock), "x.right"),
        (lambda lock: functools.partial(print, lock), "x.args[0]"),
        (lambda lock: functools.partial(print, end=lock), "x.keywords['end']"),
        (lambda lock: box(lock=lock).__init__, "x.__self__.lock"),
        (lambda lock: lambda: lock, "x.<closure>.lock"),
        (lambda lock: lambda a=lock: a, "x.<default>.a"),
    ],
)
def test_explain_names_the_innermost_part(value, path):
    found = explain_unpicklable(value(threading.Lock()), "x")
    assert (found.path, found.type_name) == (path, "_thread.lock")
    assert found.size_bytes > 0
    assert "__transient__" in str(found)


@given(st.lists(st.sampled_from(["list", "dict", "box", "tuple"]), max_size=8))
def test_explain_when_nested_at_random_evaluates_to_the_culprit(nesting):
    lock = threading.Lock()
    value = lock
    for kind in nesting:
        value = {
            "list": lambda v: [1, v],
            "dict": lambda v: {"k": v},
            "box": lambda v: box(v=v),
            "tuple": lambda v: (v, 2),
        }[kind](value)
    path = explain_unpicklable(value, "x").path
    assert eval(path, {"x": value}) is lock


def test_explain_when_state_is_custom_names_its_key():
    class Custom:
        def __getstate__(self):
            return {"inner": threading.Lock()}

    assert explain_unpicklable(Custom(), "x").path == "x.inner"


def test_explain_when_a_reduction_raises_names_that_object():
    class Odd:
        def __reduce__(self):
            raise RuntimeError("not me")

    found = explain_unpicklable([Odd()], "x")
    assert found.path == "x[0]"
    assert "not me" in str(found)


def test_explain_when_cyclic_ends():
    value: list[object] = [threading.Lock()]
    value.insert(0, value)
    assert explain_unpicklable(value, "x").path == "x[1]"


def test_explain_when_large_stays_within_its_time():
    value = [[str(i) * 10 for i in range(1000)] for _ in range(1000)] + [threading.Lock()]
    begun = time.monotonic()
    explain_unpicklable(value, "x", seconds=0.05)
    assert time.monotonic() - begun < 1


def test_closure_sizes_names_the_largest_first():
    big = b"x" * 1_000_000
    small = b"y" * 10

    def use(n, also=small):
        return big, also, n

    sizes = closure_sizes(use)
    assert sizes[0][0] == "big"
    assert sizes[0][1] >= 1_000_000
    assert "also" in dict(sizes)
    assert closure_sizes(functools.partial(use, big))[0][1] >= 1_000_000


class OddDict(dict[str, int]):
    def items(self):
        raise RuntimeError("no items")


class OddReduction:
    def __init__(self, reduced):
        self.reduced = reduced

    def __reduce_ex__(self, protocol):
        return self.reduced


@pytest.mark.parametrize(
    "value",
    [
        *(OddDict(x=1), OddReduction(5), OddReduction((OddReduction, 5))),
        *(
            OddReduction((OddReduction, (), None, 5)),
            OddReduction((OddReduction, (), None, (), 6)),
        ),
    ],
)
def test_explain_when_a_value_cannot_even_be_looked_into_names_it(value):
    with pytest.raises(pickle.PicklingError, match=r"value\['a'\]: .*Odd"):
        dump({"a": value})
