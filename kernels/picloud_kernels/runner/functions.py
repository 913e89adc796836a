"""Functions and arguments as they come: loaded once, failures kept in words."""

import functools
import mmap
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.protocol.recent import RecentKeys
from picloud_jupyter.serialize.failure import text_of
from picloud_jupyter.serialize.payload import (
    FunctionHeader,
    PayloadError,
    load_function,
    read_function_header,
)
from picloud_jupyter.serialize.sources import install_sources
from picloud_jupyter.serialize.versions import VersionReport, local_report, version_warnings
from picloud_kernels.runner.chunk import Chunk
from picloud_kernels.runner.words import failure_body, traceback_text

MAX_INLINE_FUNCTIONS = 64
MAX_FILE_FUNCTIONS = 8


def map_file(descriptor: int) -> mmap.mmap:
    """Return the file's bytes, writable without touching the file; closes ``descriptor``."""
    try:
        return mmap.mmap(
            descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    finally:
        os.close(descriptor)


def callable_of(loaded: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs ``loaded``: a function is itself, a word of the protocol has its own runner."""
    make = _RUN_BY.get(type(loaded).__module__)
    return loaded if make is None else make(loaded)


def _cell(loaded: Any) -> Callable[..., Any]:  # noqa: ANN401
    from picloud_kernels.runner.cells import CellCall  # not every runner runs cells

    return CellCall(loaded)


def _shell(loaded: Any) -> Callable[..., Any]:  # noqa: ANN401
    from picloud_kernels.runner.shell import run  # not every runner runs commands

    return functools.partial(run, loaded)


_RUN_BY: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "picloud_jupyter.protocol.cells": _cell,
    "picloud_jupyter.protocol.shell": _shell,
}


class Function:
    """A function by its bytes. After `load` either ``call`` or ``failure`` is set.

    ``failure`` is the body of a failed element.
    """

    call: Callable[..., Any] | None = None
    failure: bytes = b""
    header: FunctionHeader | None = None

    def __init__(self, body: Buffer, descriptors: Sequence[int]) -> None:
        self._source: Buffer | int | None = descriptors[0] if descriptors else body

    def load(self) -> bool:
        """Load the function if that was not done yet; return whether it was done now."""
        if self._source is None:
            return False
        self._load(self._source)
        self._source = None
        return True

    def _load(self, source: Buffer | int) -> None:
        try:
            data: Any = map_file(source) if isinstance(source, int) else source
            self.header = read_function_header(data)
            self.call = callable_of(load_function(data).call)
        except BaseException as exc:  # noqa: BLE001  # importing the user's modules may raise anything
            self.failure = load_failure_body(exc, "The function", self.header)


class FunctionCache:
    """The functions this runner was sent, the last ones by use.

    Those that come as files come with each chunk; they are kept apart, so that they never push
    out one that the supervisor may leave out: docs/internals.md 3.
    """

    def __init__(self) -> None:
        self._inline: RecentKeys[Function] = RecentKeys(MAX_INLINE_FUNCTIONS)
        self._files: RecentKeys[Function] = RecentKeys(MAX_FILE_FUNCTIONS)
        self._prepared: Function | None = None

    def announce(self, digest: str, body: bytes) -> Function | None:
        """Return the function of ``digest``, kept from now on as the last used; None if unknown."""
        function = self._inline.get(digest)
        if function is None and body:
            function = Function(body, ())
            self._inline.put(digest, function)
        return function

    def of_chunk(self, chunk: Chunk) -> Function:
        """Return the function of ``chunk``.

        Raises:
            RuntimeError: the supervisor left out one that is not here.
        """
        digest = chunk.function_digest
        if chunk.function_descriptors:
            function = self._files.get(digest)
            if function is not None:
                chunk.close_function()
            else:
                function = Function(b"", chunk.function_descriptors)
                self._files.put(digest, function)
        else:
            function = self.announce(digest, bytes(chunk.function_body))
        if function is None:
            raise RuntimeError(
                f"the supervisor left out function {digest}, which this runner does not have"
            )
        return function

    def prepare(self, function: Function) -> bool:
        """Load ``function`` if that was not done yet, and have tracebacks show its source.

        Returns whether it was loaded now.
        """
        is_new = function.load()
        if function is not self._prepared:  # another one may have lines of the same file
            self._prepared = function
            if function.header is not None:
                install_sources(function.header.sources)
        return is_new


def load_failure_body(
    exc: BaseException,
    what: str,
    header: FunctionHeader | None,
) -> bytes:
    """Return the body of an element whose function or arguments could not be loaded."""
    lines = [
        f"{what} could not be loaded where the job runs: {type(exc).__name__}: {text_of(exc)}"
    ]
    here = platform.python_version()
    if header is None:
        lines.append(f"Python {here} runs here.")
    else:
        lines.append(f"Made with Python {header.python}, loaded with Python {here}.")
        report = VersionReport(header.python, header.packages)
        lines += version_warnings(report, local_report(header.packages))
    lines.append(_next_step(exc))
    return failure_body(exc, "\n".join((traceback_text(exc), *lines)), message="\n".join(lines))


def _next_step(exc: BaseException) -> str:
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        return (
            f"Install {exc.name.partition('.')[0]} in the Python that submits, or make sure that the module "
            "lies in the notebook's folder or on sys.path when you call."
        )
    if isinstance(exc, PayloadError):
        return "Submit it again with the version of picloud-jupyter that the service runs."
    return "Send simpler values (numbers, arrays, text), or mend the class so that pickle can rebuild it."
