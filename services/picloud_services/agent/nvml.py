"""How busy GPUs are, read through NVIDIA's management library: the only door to it."""

import ctypes
import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"  # of the driver


_Utilization = ctypes.c_uint * 2  # nvmlUtilization_t: percent of time computing, and copying
_Memory = ctypes.c_ulonglong * 3  # nvmlMemory_t: bytes in all, free, used


class Nvml:
    """Reads GPUs by the number in /dev/nvidiaN; opened when first asked.

    Without the library, or where it refuses, there are no figures: that is logged once.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        self._name = library
        self._library: ctypes.CDLL | None = None
        self._handles: dict[int, ctypes.c_void_p] = {}
        self._is_opened = False

    def usage(self, indices: Sequence[int]) -> tuple[float, int] | None:
        """Return (percent of time busy, mean over the GPUs; bytes of memory used, their sum)."""
        try:
            if not self._is_opened:
                self._is_opened = True
                self._open()
            if self._library is None:
                return None
            read = [self._read(self._library, index) for index in indices]
        except (
            OSError,
            AttributeError,
            KeyError,
        ) as exc:  # AttributeError: a library without it
            logger.warning("GPUs cannot be measured: %s", exc)
            self.close()
            return None
        return sum(busy for busy, _ in read) / len(read), sum(used for _, used in read)

    def close(self) -> None:
        """Let go of the library; from now on there are no figures."""
        if self._library is not None:
            self._library.nvmlShutdown()
        self._library = None
        self._handles.clear()

    def _open(self) -> None:
        library = ctypes.CDLL(self._name)
        _check(library.nvmlInit_v2(), "nvmlInit")
        self._library = library
        count = ctypes.c_uint()
        _check(library.nvmlDeviceGetCount_v2(ctypes.byref(count)), "nvmlDeviceGetCount")
        for number in range(count.value):
            handle, minor = ctypes.c_void_p(), ctypes.c_uint()
            found = library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle))
            _check(found, "nvmlDeviceGetHandleByIndex")
            _check(library.nvmlDeviceGetMinorNumber(handle, ctypes.byref(minor)), "minor")
            self._handles[minor.value] = handle

    def _read(self, library: ctypes.CDLL, index: int) -> tuple[int, int]:
        handle = self._handles[index]
        busy, memory = _Utilization(), _Memory()
        # Some GPUs count no use (MIG): they are idle as far as one can see.
        if library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(busy)):
            busy[0] = 0
        _check(library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)), "memory")
        return busy[0], memory[2]


def _check(code: int, what: str) -> None:
    if code:
        raise OSError(f"NVML answered {code} to {what}")
