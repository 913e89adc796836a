"""What can be said of a function before it is sent: its name, and whether the arguments fit."""

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence

from picloud_jupyter.protocol.cells import Cell
from picloud_jupyter.protocol.shell import ShellCommand

Runnable = Callable[..., object] | ShellCommand | Cell  # what a job's function may be


def function_name(func: Runnable) -> str:
    """Return ``module.name at file:line``, as far as the function knows them; a command as it was written.

    >>> function_name(len), function_name(functools.partial(len))
    ('builtins.len', 'partial_of_builtins.len')
    """
    if isinstance(func, ShellCommand):
        return func.name
    if isinstance(func, Cell):
        return func.title
    if isinstance(func, functools.partial):
        return f"partial_of_{function_name(func.func)}"
    code = getattr(func, "__code__", None)
    if not hasattr(func, "__qualname__"):  # an object of a class with __call__
        func, code = type(func), getattr(type(func).__call__, "__code__", None)
    module = getattr(func, "__module__", None) or "builtins"
    name = getattr(func, "__qualname__", "")
    if code is None:
        return f"{module}.{name}"
    return f"{module}.{name} at {code.co_filename}:{code.co_firstlineno}"


def check_arguments(
    func: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
) -> None:
    """Return if ``func`` takes these arguments, as far as its signature tells.

    Raises:
        TypeError: it does not; the message names the function.
    """
    if not kwargs and _surely_takes(func, len(args)):
        return
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):
        return  # a builtin that does not tell: the job will
    try:
        signature.bind(*args, **kwargs)
    except TypeError as exc:
        name = getattr(func, "__name__", type(func).__name__)
        raise TypeError(f"{name}{signature}: {exc}") from None


def _surely_takes(func: object, count: int) -> bool:
    """A plain function and plain arguments need no look at the signature, which is slow."""
    if type(func) is not types.FunctionType or hasattr(func, "__wrapped__"):
        return False
    code = func.__code__
    if code.co_kwonlyargcount:
        return False
    most = code.co_argcount
    least = most - len(func.__defaults__ or ())
    return least <= count and (count <= most or bool(code.co_flags & inspect.CO_VARARGS))
