"""What a process writes goes on at once, and is kept as well."""

import os
import threading
from collections.abc import Callable
from typing import IO

_CHUNK_BYTES = 64 * 1024


class Pump:
    """A thread that reads ``source`` to its end, into descriptor ``target`` and into ``keep``.

    If either cannot take it ``give_up`` is called once, and the rest is read and dropped.
    """

    def __init__(
        self,
        source: IO[bytes] | None,
        target: int,
        keep: Callable[[bytes], None],
        give_up: Callable[[], None],
    ) -> None:
        assert source is not None  # it was asked for as a pipe
        self._source = source
        self._target = target
        self._keep = keep
        self._give_up = give_up
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Return when all has been read.

        Raises:
            OSError: some of it could not be kept or passed on.
        """
        self._thread.join()
        self._source.close()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        descriptor = self._source.fileno()
        while data := os.read(descriptor, _CHUNK_BYTES):
            if self._error is not None:
                continue
            try:
                self._pass_on(data)
                self._keep(data)
            except OSError as exc:
                self._error = exc
                self._give_up()

    def _pass_on(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._target, view) :]
