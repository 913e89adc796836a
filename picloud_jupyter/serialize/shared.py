"""Functions and values that many calls have in common, where the calls run.

Everything here is pickled by reference, so it lies where every runner can import it at once.
"""

import uuid
import weakref
from collections.abc import Callable, Iterable
from typing import Any


def call_each(function: Callable[..., Any], elements: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return ``function`` of each element, a tuple of its arguments."""
    return [function(*element) for element in elements]


class SharedArrays:
    """The function of calls that share ``arrays``: it calls its argument.

    The arrays travel once, with this function; an argument holds ``(take, (token, index, copy))`` in place of
    each. Where it was loaded, they stay in memory as long as the runner keeps the function.
    """

    def __init__(self, arrays: list[Any], token: str = "") -> None:
        self.arrays = arrays
        self.token = token or uuid.uuid4().hex
        _loaded[self.token] = self

    def __call__(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Return what ``call`` returns."""
        return call()

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedArrays, (self.arrays, self.token)


_loaded: "weakref.WeakValueDictionary[str, SharedArrays]" = weakref.WeakValueDictionary()


def take(token: str, index: int, copy: bool) -> Any:  # noqa: ANN401, FBT001  # bound by pickle
    """Return a shared array: a copy of this call's own, or the one that all calls read."""
    array = _loaded[token].arrays[index]
    if copy:
        return array.copy()
    array.flags.writeable = False
    return array
