"""`picloud run`: a script of PiCloud's time, or any other, with `import cloud`."""

import argparse
import importlib.abc
import importlib.util
import linecache
import os
import re
import sys
import tokenize
import traceback
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from picloud_jupyter.cli import python2
from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.exit_codes import DONE, REFUSED, UNEXPECTED, ExitWith
from picloud_jupyter.protocol.errors import CloudException

NAME = "cloud"
_OURS = "picloud_jupyter.cloud"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_OF_PYTHON_2 = (NameError, ImportError, AttributeError, TypeError)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("script", metavar="SCRIPT", help="a Python program")
    parser.add_argument(
        "arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="its own"
    )


def _run(arguments: argparse.Namespace) -> ExitWith:
    path = os.path.abspath(arguments.script)
    try:
        source = _read(path)
    except (OSError, SyntaxError, UnicodeDecodeError) as exc:
        return _refuse(_why_unreadable(path, exc))
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as exc:
        return _refuse(_why_not_compiled(path, source, exc))
    provide_cloud(os.path.dirname(path))
    return _execute(code, path, source, arguments.arguments)


def _read(path: str) -> str:
    with tokenize.open(path) as file:  # as Python reads it, by its coding line
        return file.read()


def _execute(code: types.CodeType, path: str, source: str, arguments: list[str]) -> ExitWith:
    """Run ``code`` as `python SCRIPT ARGUMENTS` does, in this process."""
    main = types.ModuleType("__main__")
    main.__file__ = path
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    sys.argv[:] = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    try:
        exec(code, main.__dict__)  # noqa: S102  # what the user asked for
    except SystemExit as exc:
        return _exit(exc)
    except Exception as exc:  # noqa: BLE001  # whatever the script raises
        sys.stdout.flush()
        inner = exc.__traceback__.tb_next if exc.__traceback__ else None
        traceback.print_exception(type(exc), exc, inner)
        for words in explain_error(exc, path, source):
            print(f"picloud: {words}", file=sys.stderr)
        return ExitWith(UNEXPECTED, None)
    return ExitWith(DONE, None)


def _exit(exc: SystemExit) -> ExitWith:
    if exc.code is None or isinstance(exc.code, int):
        return ExitWith((exc.code or 0) & 0xFF, None)
    print(exc.code, file=sys.stderr)
    return ExitWith(UNEXPECTED, None)


# -------------------------------------------------------------------------------- import cloud
class CloudAlias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets `import cloud` and `import cloud.shell` find ours; asked last, it shadows nothing."""

    def __init__(self) -> None:
        self._own: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, _path: object = None, _target: object = None
    ) -> ModuleSpec | None:
        """Return how to load ``fullname`` if it is `cloud` or something in it."""
        if fullname != NAME and not fullname.startswith(f"{NAME}."):
            return None
        if importlib.util.find_spec(_ours(fullname)) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """Return our module itself, not a copy of it."""
        module = importlib.import_module(_ours(spec.name))
        self._own[spec.name] = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave the module as it is: it was loaded under its own name."""
        spec = module.__spec__
        if spec is not None and spec.name in self._own:
            module.__spec__ = self._own.pop(spec.name)


def _ours(name: str) -> str:
    return _OURS + name.removeprefix(NAME)


def provide_cloud(folder: str) -> None:
    """Make `import cloud` give our API, unless there is a package of that name: then say so.

    ``folder`` is the script's own, which is searched first.
    """
    sys.path.insert(0, folder)
    try:
        found = importlib.util.find_spec(NAME)
    finally:
        sys.path.remove(folder)
    if found is None:
        sys.meta_path.append(CloudAlias())
        return
    where = found.origin or ", ".join(found.submodule_search_locations or ())
    print(
        f"picloud: `import {NAME}` in this script is {where}, not PiCloud's: an installed package is never"
        " shadowed. Write `from picloud_jupyter import cloud` in the script.",
        file=sys.stderr,
    )


# ------------------------------------------------------------------------------------- words
def _refuse(words: str) -> ExitWith:
    print(f"picloud: {words}", file=sys.stderr)
    return ExitWith(REFUSED, None)


def _why_unreadable(path: str, exc: Exception) -> str:
    if isinstance(exc, OSError):
        return f"{path} cannot be read: {exc.strerror}"
    return (
        f"{path} is not UTF-8, and says no other encoding ({exc}). Nothing was run. Save it as UTF-8, or name"
        " its encoding in the first line:\n    # -*- coding: latin-1 -*-"
    )


def _why_not_compiled(path: str, source: str, exc: SyntaxError | ValueError) -> str:
    line = exc.lineno if isinstance(exc, SyntaxError) else None
    what = exc.msg if isinstance(exc, SyntaxError) else exc
    head = f"{path}:{line}: this Python cannot read it: {what}. Nothing was run."
    if isinstance(exc, TabError):
        head += " Its indentation mixes tabs and blanks; `expand SCRIPT > NEW` writes blanks."
    findings = python2.explain(source)
    if not findings:
        return head
    listed = python2.describe(path, findings)
    lines = "1 line" if len(findings) == 1 else f"{len(findings)} lines"
    return f"{head} It is Python 2 in {lines}:\n{listed}\n{python2.DIVISION}"


def explain_error(exc: BaseException, path: str, source: str) -> Iterator[str]:
    """Yield what to change in the script at ``path`` where ``exc`` came from Python 2 or an old API."""
    errors = list(_chain(exc))
    is_of_python_2 = any(isinstance(error, _OF_PYTHON_2) for error in errors)
    places = [
        place for error in errors for place in _places(error, f"{Path(path).parent}{os.sep}")
    ]
    for where, line in dict.fromkeys(places):
        finding = python2.explain_line(_source_of(where, path, source), line)
        if is_of_python_2 and finding:
            yield python2.describe(where, [finding])
        for words in python2.explain_old_api(linecache.getline(where, line)):
            yield f"{where}:{line}: {words}"


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__


def _places(error: BaseException, folder: str) -> Iterator[tuple[str, int]]:
    """Yield (file, line) in ``folder`` that ``error`` came through, the innermost first.

    The frames of a job are only in its text.
    """
    if isinstance(error, CloudException):
        for where, line in reversed(_FRAME.findall(str(error))):
            if where.startswith(folder):
                yield where, int(line)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(folder) and frame.lineno is not None:
            yield frame.filename, frame.lineno


def _source_of(where: str, path: str, source: str) -> str:
    return source if where == path else "".join(linecache.getlines(where))


COMMAND = Command(
    "run",
    "run a script in which `import cloud` is this API; explains what is of Python 2 in it",
    (
        "picloud run search.py              as `python search.py`, with PiCloud's module name",
        "picloud run search.py --depth 3    its own arguments follow its name",
    ),
    _run,
    _configure,
)
