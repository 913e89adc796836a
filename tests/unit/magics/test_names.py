"""Values that go to a cell and come back."""

import types
from typing import Any

import cloudpickle

from picloud_jupyter.magics.capture import Names
from picloud_jupyter.magics.names import choose_inputs, describe_largest, receive, unsendable
from picloud_jupyter.protocol.cells import CellResult
from picloud_jupyter.serialize.adoption import loads_into
from picloud_jupyter.serialize.payload import dump_bytes

OPEN = object()


def names(needed=(), wanted=()):
    return Names(tuple(needed), tuple(wanted), (), ())


def test_builtins_stay_and_what_shadows_them_goes():
    found = choose_inputs(names(["list", "len"]), {"list": [1]}, {})
    assert found.values == {"list": [1]}
    assert found.undefined == ()


def test_ipythons_own_names_stay_and_what_shadows_them_goes():
    hidden = {"open": OPEN, "exit": OPEN}
    found = choose_inputs(names(["open", "exit", "display"]), {"open": OPEN, "exit": 5}, hidden)
    assert found.values == {"exit": 5}


def test_what_has_no_value_is_listed_once():
    found = choose_inputs(names(["a", "b"], ["c"]), {"b": 1}, {}, only=["a", "b", "z"])
    assert found.undefined == ("a", "z")


def test_wanted_names_are_needless():
    found = choose_inputs(names(["a"], ["b", "c"]), {"a": 1, "b": 2}, {})
    assert found.values == {"a": 1, "b": 2}
    assert found.needless == {"b"}


def test_what_cannot_be_sent_is_named_each():
    found = unsendable({"good": 1, "gen": (i for i in [0]), "deep": {"k": [(i for i in [0])]}})
    assert set(found) == {"gen", "deep"}
    assert "deep['k'][0]: generator" in found["deep"]
    assert "gen: generator" in found["gen"]
    assert describe_largest({"small": 1, "big": b"x" * 10_000}).startswith("big (10,0")


def functions_of_a_notebook(source):
    module = types.ModuleType("__main__")
    exec(source, vars(module))
    return vars(module)


def test_functions_use_the_notebooks_globals_and_overwrite_none():
    there = functions_of_a_notebook(
        "scale = 2\ndef helper():\n    return scale\ndef f():\n    return helper()\n"
        "class A:\n    def m(self):\n        return scale\n    p = property(lambda self: scale)\n"
    )
    data = cloudpickle.dumps({name: there[name] for name in ("f", "A")})
    namespace: dict[str, Any] = {"__name__": "__main__", "scale": 10}
    found = loads_into(namespace)(data)
    assert found["f"]() == 10
    assert namespace["scale"] == 10
    assert "helper" in namespace  # what it brought and was not there
    instance = found["A"]()
    namespace["scale"] = 20
    assert (found["f"](), instance.m(), instance.p) == (20, 20, 20)


def test_a_result_is_given_to_the_namespace():
    namespace: dict[str, Any] = {"gone": None}
    result = CellResult(
        values={"x": dump_bytes([1]), "broken": b"no payload"},
        modules={"js": "json", "none": "no_such_module_at_all"},
        not_sent={"gen": "a generator"},
        deleted=("gone", "never"),
    )
    found = receive(result, namespace)
    assert namespace["x"] == [1]
    assert namespace["js"].__name__ == "json"
    assert "gone" not in namespace
    assert found.deleted == ("gone",)
    assert set(found.not_received) == {"gen", "broken", "none"}
    assert "cannot be loaded here" in found.not_received["broken"]
