"""Negative test 1, by reading: nothing of the services and the agent, and of what they import of ours,
can turn bytes into objects or text into programs.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted((ROOT / "services" / "picloud_services").rglob("*.py"))
MODULES = frozenset(
    [
        "pickle",
        "_pickle",
        "cloudpickle",
        "dill",
        "marshal",
        "shelve",
        "joblib",
        "yaml",
        "jsonpickle",
        "copyreg",
        "code",
        "codeop",
        "runpy",
        "imp",
        "pty",
        "zipimport",
        "numpy",
        "pandas",
        "torch",
    ]
)
BUILTINS = frozenset(("eval", "exec", "compile", "__import__"))
CALLS = frozenset(
    [
        "os.system",
        "os.popen",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "builtins.eval",
        "builtins.exec",
        "importlib.import_module",
        "pkgutil.resolve_name",
        "asyncio.create_subprocess_shell",
    ]
)


def with_what_they_import(paths: list[Path]) -> list[Path]:
    """Return ``paths`` and, of ours, each module that they import, directly or not."""
    found: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("picloud_"):
                module = ROOT / (node.module or "").replace(".", "/")
                files = [module.with_suffix(".py"), module / "__init__.py"]
                files += [module / f"{name.name}.py" for name in node.names]
                waiting += [file for file in files if file.exists()]
    return sorted(found)


SOURCES = with_what_they_import(SERVICES)


def offences(source: str) -> Iterator[str]:
    """Yield what in ``source`` could run or revive what it is given; also in functions and comments of types."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = [name.name for name in names]
                yield from (f"imports {n}" for n in found if n.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=module, names=names):
                if (module or "").partition(".")[0] in MODULES:
                    yield f"imports from {module}"
                whole = [f"{module}.{name.name}" for name in names]
                yield from (f"imports {n}" for n in whole if n in CALLS)
            case ast.Name(id=name) if name in BUILTINS:
                yield f"names {name}"
            case ast.Attribute() if (dotted := ast.unparse(node)) in CALLS:
                yield f"names {dotted}"
            case ast.keyword(arg="shell", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield "passes shell="
            case _:
                pass


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_1_no_deserialiser_no_evaluation_and_no_shell(path: Path) -> None:
    assert list(offences(path.read_text())) == []


def test_1_the_words_and_the_wire_are_read_too() -> None:
    read = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"picloud_jupyter/protocol/jobs.py", "picloud_jupyter/transport/paths.py"} <= read
    assert not any(path.startswith("picloud_jupyter/serialize") for path in read)


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import pickle as p",
        "import os, marshal",
        "from cloudpickle import loads",
        "from joblib.numpy_pickle import load",
        "def f():\n    import dill",
        "def f():\n    from yaml import load",
        "eval('1')",
        "run = exec",
        "compile('1', '', 'eval')",
        "__import__('pickle')",
        "import importlib\nimportlib.import_module('pickle')",
        "from importlib import import_module",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import subprocess\nsubprocess.run('x', shell=anything)",
        "import os\nos.system('x')",
        "import asyncio\nasyncio.create_subprocess_shell('x')",
        "if TYPE_CHECKING:\n    import shelve",
    ],
)
def test_1_the_reader_sees_what_is_planted(planted: str) -> None:
    assert list(offences(planted))


def test_1_the_reader_lets_pass_what_is_harmless() -> None:
    source = (
        "import json, re\nre.compile('x')\nsubprocess.run(['x'], shell=False)\nspec.loads()"
    )
    assert list(offences(source)) == []
