"""Sheet 1.8 and 1.9: what travels, and which local code goes with it."""

import collections
import dataclasses
import enum
import functools
import io
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from picloud_jupyter import cloud

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]


def test_closures_defaults_and_globals_travel():
    offset = 5

    def outer(x, y=3):
        return helper(x) + y + offset

    def helper(x):
        return x * 10

    assert cloud.result(cloud.call(outer, 2)) == 28


def test_bound_methods_partials_and_builtins():
    class Counter:
        def __init__(self, start):
            self.start = start

        def add(self, n):
            return self.start + n

    assert cloud.result(cloud.call(Counter(5).add, 2)) == 7
    assert cloud.result(cloud.call(functools.partial(pow, 2), 5)) == 32
    assert cloud.result(cloud.call(sorted, [3, 1])) == [1, 3]


def test_values_come_back_as_what_they_are():
    @dataclasses.dataclass
    class Point:
        x: int

    class Colour(enum.Enum):
        RED = 1

    Pair = collections.namedtuple("Pair", "a b")
    point, colour, pair = cloud.result(cloud.call(lambda: (Point(3), Colour.RED, Pair(1, 2))))
    assert isinstance(point, Point)
    assert colour is Colour.RED
    assert isinstance(pair, Pair)


def test_changes_made_there_do_not_come_back():
    values = [1]
    cloud.result(cloud.call(values.append, 2))
    assert values == [1]


def test_open_files_for_reading_travel(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("abcdef")
    with path.open() as f:
        f.read(2)
        assert cloud.result(cloud.call(lambda g: g.read(), f)) == "cdef"


@pytest.mark.parametrize(
    "make", [threading.Lock, lambda: (i for i in [1]), lambda: open(os.devnull, "w")]
)
def test_what_cannot_travel_is_named(make):
    value = make()
    with pytest.raises(Exception, match=r"args\[0\]") as caught:
        cloud.call(lambda x: 1, [value])
    assert type(value).__name__ in str(caught.value)
    if isinstance(value, io.IOBase):
        value.close()


def test_deep_path_of_what_cannot_travel_is_named():
    class Model:
        pass

    model = Model()
    model.lock = threading.Lock()
    with pytest.raises(Exception, match=r"args\[0\].*model.*lock|lock: _thread\.lock"):
        cloud.call(lambda x: 1, {"model": model})


def test_transient_attributes_stay_here():
    class Thing:
        __transient__ = ("lock",)

        def __init__(self):
            self.lock = threading.Lock()
            self.x = 4

    assert cloud.result(cloud.call(lambda t: (t.x, hasattr(t, "lock")), Thing())) == (4, False)


def test_large_closure_is_refused_with_its_variable():
    big_table = b"x" * 20_000_000

    with pytest.raises(Exception, match="big_table"):
        cloud.call(lambda: len(big_table))


def test_large_arguments_and_results_travel():
    import numpy

    array = numpy.arange(3_000_000, dtype=float)
    back = cloud.result(cloud.call(lambda a: a * 2, array))
    assert (back == array * 2).all()
    back[0] = 5  # writable


def test_argument_guard_can_be_set():
    cloud.config.max_transmit_data = 1000
    try:
        with pytest.raises(cloud.CloudException, match=r"max_transmit_data"):
            cloud.call(lambda x: 1, b"x" * 5000)
    finally:
        cloud.config.max_transmit_data = 256_000_000


def test_unpicklable_result_is_named():
    with pytest.raises(cloud.CloudException, match="lock"):
        cloud.result(cloud.call(lambda: {"a": threading.Lock()}))


def run_script(folder, text):
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(script)],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p)),
    )


def test_local_modules_and_packages_go_with_the_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pack.deep import number\ndef f(): return number() + 1\n"
    )
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "deep.py").write_text("def number(): return 41\n")
    done = run_script(
        tmp_path,
        """
        import mine
        from picloud_jupyter import cloud
        print(cloud.result(cloud.call(mine.f)), cloud.result(cloud.call(lambda: mine.f())))
    """,
    )
    assert done.stdout.strip() == "42 42", done.stderr


def test_a_changed_module_is_shipped_anew(tmp_path):
    done = run_script(
        tmp_path,
        """
        import importlib, pathlib, sys, os
        sys.dont_write_bytecode = True
        from picloud_jupyter import cloud
        pathlib.Path("mod.py").write_text("def f(): return 1")
        import mod
        first = cloud.result(cloud.call(mod.f))
        pathlib.Path("mod.py").write_text("def f(): return 222")
        importlib.reload(mod)
        print(first, cloud.result(cloud.call(mod.f)))
    """,
    )
    assert done.stdout.strip() == "1 222", done.stderr


def test_module_with_a_syntax_error_warns_and_missing_one_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    done = run_script(
        tmp_path,
        """
        from picloud_jupyter import cloud
        def f():
            import broken
        try:
            cloud.result(cloud.call(f))
        except cloud.CloudException as e:
            print("SyntaxError" in str(e))
        def g():
            import no_such_module_anywhere
        try:
            cloud.result(cloud.call(g))
        except cloud.CloudException as e:
            print("no_such_module_anywhere" in str(e))
    """,
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_whitelist_limits_what_is_shipped(tmp_path):
    (tmp_path / "allowed_one.py").write_text("x = 1\n")
    (tmp_path / "other_one.py").write_text("x = 2\n")
    done = run_script(
        tmp_path,
        """
        import allowed_one, other_one
        from picloud_jupyter import cloud
        cloud.set_dependency_whitelist(["allowed_one"])
        jid = cloud.call(lambda: (allowed_one.x, other_one.x))
        cloud.join(jid, ignore_errors=True)
        print(cloud.info(jid, "code_version")[jid]["code_version"] is not None)
    """,
    )
    assert done.stdout.strip() == "True", done.stderr


def test_files_beside_the_script_can_be_read_and_written_without_touching_them(
    service, tmp_path
):
    (tmp_path / "data.csv").write_text("1,2")
    done = run_script(
        tmp_path,
        """
        from picloud_jupyter import cloud
        def f():
            text = open("data.csv").read()
            open("new.txt", "w").write("x")
            return text, open("new.txt").read()
        print(cloud.result(cloud.call(f)))
    """,
    )
    assert done.stdout.strip() == "('1,2', 'x')", done.stderr
    if service.kind != "plain":
        assert not (tmp_path / "new.txt").exists()
