"""Large arrays that several calls use: they travel once, in the function of the calls.

The first call that uses an array takes it along. When a second one comes with it, the array becomes part of
the function, which the service stores once, containers map from one file, and runners load once.
"""

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from picloud_jupyter.cloud.calls import send_call
from picloud_jupyter.cloud.functions import function_name
from picloud_jupyter.cloud.handles import Jid
from picloud_jupyter.cloud.kept_functions import PickledFunction
from picloud_jupyter.cloud.keywords import Options
from picloud_jupyter.cloud.session import session
from picloud_jupyter.cloud.settings import config
from picloud_jupyter.cloud.submission import prepare
from picloud_jupyter.cloud.uploads import check_size, upload
from picloud_jupyter.protocol.frames import Buffer, encode_json
from picloud_jupyter.protocol.jobs import INLINE_BYTES
from picloud_jupyter.serialize.payload import digest, dump_call, dump_function_parts
from picloud_jupyter.serialize.pickler import Pickler, References
from picloud_jupyter.serialize.shared import SharedArrays, take

SHARED_BYTES = INLINE_BYTES  # smaller arrays travel with each call
_Key = tuple[object, ...]


class ArrayTable:
    """Submits calls, and knows the arrays that they share.

    Arrays of ``read_only_bytes`` and more are one read-only array for all calls of a runner, smaller
    ones a copy for each call; None = always a copy. An array that changes between two calls is not
    noticed, as with joblib's own backends.
    """

    def __init__(self, read_only_bytes: int | None = None) -> None:
        self._read_only_bytes = read_only_bytes
        self._lock = threading.Lock()
        self._seen: dict[_Key, weakref.ref[Any]] = {}
        self._shared: dict[_Key, int] = {}
        self._function = SharedArrays([])
        self._references = References()
        self._pickled: PickledFunction | None = None

    def clear(self) -> None:
        """Forget all arrays."""
        with self._lock:
            self._seen.clear()
            self._set_shared({}, [])

    def submit(self, call: Any, options: Options) -> Jid:  # noqa: ANN401  # a batch of joblib
        """Return the id of a new job that runs ``call``, which takes no argument.

        Raises:
            pickle.PicklingError, PayloadTooLarge, CloudException: as `cloud.call` has them.
        """
        with self._lock:
            references = References()
            arguments = self._dump(call, references)
            function = self._pickle_function(_name_of(call))
        references.modules |= self._references.modules
        references.code += self._references.code
        check_size(arguments, config.max_transmit_data, "the arguments")
        current = session()
        submission = prepare(current, self._function, function, references, options)
        return send_call(current, submission, arguments)

    def _dump(self, call: Any, references: References) -> list[Buffer]:  # noqa: ANN401
        """The arguments as bytes, after the arrays that come again were made part of the function."""
        met: dict[_Key, Any] = {}
        parts = self._dump_with(call, references, met)
        again = {key: array for key, array in met.items() if self._is_known(key)}
        self._seen.update((key, weakref.ref(_owner(array))) for key, array in met.items())
        if again:
            positions = dict(self._shared)
            arrays = list(self._function.arrays)
            for key, array in again.items():
                positions[key] = len(arrays)
                arrays.append(array)
            self._set_shared(positions, arrays)
            parts = self._dump_with(call, references, {})
        return parts

    def _is_known(self, key: _Key) -> bool:
        """Whether an array with that address came before, and is still there."""
        owner = self._seen.get(key)
        return owner is not None and owner() is not None

    def _dump_with(
        self,
        call: Any,  # noqa: ANN401
        references: References,
        met: dict[_Key, Any],
    ) -> list[Buffer]:
        make = functools.partial(_ArrayPickler, find=self._find, met=met)
        return dump_call(
            (call,),
            {},
            references=references,
            file_limit_bytes=config.max_transmit_data,
            pickler=make,
        )

    def _find(self, key: _Key, array: Any) -> tuple[Any, ...] | None:  # noqa: ANN401
        """How a call takes the array with ``key``; None if it is not shared."""
        index = self._shared.get(key)
        if index is None:
            return None
        limit = self._read_only_bytes
        copy = limit is None or array.nbytes < limit
        return take, (self._function.token, index, copy)

    def _set_shared(self, positions: dict[_Key, int], arrays: list[Any]) -> None:
        self._shared = positions
        self._function = SharedArrays(arrays)
        self._pickled = None

    def _pickle_function(self, name: str) -> PickledFunction:
        if self._pickled is None:
            self._references = References()
            parts = dump_function_parts(self._function, references=self._references)
            size = check_size(parts, config.max_transmit_data, "the arrays that calls share")
            if size > INLINE_BYTES:  # stored now, once for all calls
                reference = upload(session(), parts, size)
                self._pickled = PickledFunction(b"", name, encode_json(reference))
            else:
                data = b"".join(parts)
                reference = {"size_bytes": size, "digest": digest([data])}
                self._pickled = PickledFunction(data, name, encode_json(reference))
        return self._pickled


class _ArrayPickler(Pickler):
    """Writes shared arrays as references, and notes the other large ones in ``met``."""

    def __init__(
        self,
        file: Any,  # noqa: ANN401
        *,
        find: Callable[[_Key, Any], tuple[Any, ...] | None],
        met: dict[_Key, Any],
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(file, **options)
        self._find = find
        self._met = met

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401
        """Return how ``obj`` is rebuilt; see `Pickler`."""
        if _is_large_array(obj):
            interface = obj.__array_interface__
            key = (interface["data"][0], obj.shape, obj.strides, obj.dtype)
            taken = self._find(key, obj)
            if taken is not None:
                return taken
            self._met[key] = obj
        return super().reducer_override(obj)


def _owner(array: Any) -> Any:  # noqa: ANN401
    """The array that has the memory that ``array`` may be a view of."""
    while type(array.base) is type(array):
        array = array.base
    return array


def _is_large_array(obj: Any) -> bool:  # noqa: ANN401
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and type(obj) is numpy.ndarray
        and obj.nbytes >= SHARED_BYTES
        and not obj.dtype.hasobject
    )


def _name_of(call: Any) -> str:  # noqa: ANN401
    """The name of the first task's function, without the wrapper that scikit-learn puts around it."""
    items = getattr(call, "items", None)
    first = items[0][0] if items else call
    return function_name(getattr(first, "function", first))
