"""Names of functions, and whether arguments fit."""

import functools
import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.cloud.functions import check_arguments, function_name


class Thing:
    def method(self, a):
        return a

    def __call__(self, a):
        return a


def test_names_say_module_and_line():
    here = Thing.method.__code__.co_filename
    assert f"Thing.method at {here}:" in function_name(Thing().method)
    assert f"Thing at {here}:" in function_name(Thing())
    assert function_name(Thing).endswith("test_functions.Thing")
    assert function_name(math.sqrt) == "math.sqrt"
    assert function_name(functools.partial(Thing().method, 1)).startswith("partial_of_")


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (lambda: 1, (), {}),
        (lambda a, b=2: 1, (1,), {}),
        (lambda *a: 1, (1, 2, 3), {}),
        (lambda a, *, k: 1, (1,), {"k": 2}),
        (Thing().method, (1,), {}),
        (Thing(), (1,), {}),
        (functools.partial(pow, 2), (3,), {}),
        (print, (1, 2), {"end": ""}),
        (dict, (), {"a": 1}),
    ],
)
def test_arguments_that_fit_pass(func, args, kwargs):
    check_arguments(func, args, kwargs)


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (lambda a: 1, (), {}),
        (lambda a: 1, (1, 2), {}),
        (lambda a: 1, (1,), {"b": 2}),
        (lambda a, *, k: 1, (1,), {}),
        (Thing().method, (), {}),
    ],
)
def test_arguments_that_do_not_fit_raise_type_error(func, args, kwargs):
    with pytest.raises(TypeError):
        check_arguments(func, args, kwargs)


@given(st.integers(0, 6))
def test_quick_look_agrees_with_the_signature(count):
    for func in (lambda a, b, c=3: 1, lambda a=1, *more: 1, lambda: 1, lambda a, /, b: 1):
        args = (0,) * count
        try:
            inspect.signature(func).bind(*args)
            fits = True
        except TypeError:
            fits = False
        if fits:
            check_arguments(func, args, {})
        else:
            with pytest.raises(TypeError):
                check_arguments(func, args, {})
