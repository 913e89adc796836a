"""NVIDIA GPUs of this machine: which there are, what a job needs to use one, and who has which.

Found by the files that the driver makes, without any library of NVIDIA: /dev/nvidiaN, and what
/proc/driver/nvidia/gpus says of each.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from picloud_jupyter.protocol.nodes import Gpu

DEVICES = "/dev"
DRIVER = "/proc/driver/nvidia"
# What every program needs besides the device of its own; those of them that exist.
SHARED = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
VISIBLE = "CUDA_VISIBLE_DEVICES"
LDCONFIG_SECONDS = 10.0
_DEVICE = re.compile(r"nvidia(\d+)")
_LIBRARY = re.compile(
    r"lib(cuda|cudadebugger|nvcuvid|nvoptix|nvidia-[a-z0-9-]+)\.so(\.[\d.]+)?"
)


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What was found. ``shared`` are device files for all, ``note`` says why there is no GPU."""

    gpus: tuple[Gpu, ...] = ()
    shared: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    note: str = ""


def find_gpus(devices: str = DEVICES, driver: str = DRIVER) -> GpuFacts:
    """Return the GPUs whose device files are in the folder ``devices``; "" means: use none."""
    if not devices:
        return GpuFacts(note="the setting gpu_devices is empty: jobs get no GPU")
    try:
        names = os.listdir(devices)
    except OSError as exc:
        return GpuFacts(note=f"{devices} cannot be read: {exc.strerror}")
    minors = sorted(int(found[1]) for name in names if (found := _DEVICE.fullmatch(name)))
    if not minors:
        return GpuFacts(
            note=f"there is no {devices}/nvidia0: no NVIDIA GPU, or its driver is not loaded"
        )
    # The driver speaks of the machine's own devices, not of those in another folder.
    told = _read_driver(driver) if devices == DEVICES else {}
    gpus = tuple(Gpu(n, f"{devices}/nvidia{n}", *told.get(n, ("", ""))) for n in minors)
    shared = tuple(f"{devices}/{name}" for name in SHARED if name in names)
    return GpuFacts(gpus, shared, _find_libraries())


def _read_driver(driver: str) -> dict[int, tuple[str, str]]:
    found = {}
    for path in Path(driver, "gpus").glob("*/information"):
        try:
            minor, uuid, model = parse_information(path.read_text())
        except (OSError, ValueError):  # a GPU that fell off its bus says nothing of use
            continue
        found[minor] = uuid, model
    return found


def parse_information(text: str) -> tuple[int, str, str]:
    r"""Return (minor, uuid, model) in the text of /proc/driver/nvidia/gpus/BUS/information.

    Raises:
        ValueError: it does not say which device it is.

    >>> parse_information("Model: \t NVIDIA A100\nGPU UUID: \t GPU-1a2b\nDevice Minor: \t 3\n")
    (3, 'GPU-1a2b', 'NVIDIA A100')
    """
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    uuid = fields.get("GPU UUID", "")
    if "?" in uuid:  # the driver writes GPU-????? until a program has used the device
        uuid = ""
    return int(fields.get("Device Minor", "")), uuid, fields.get("Model", "")


def _find_libraries() -> tuple[str, ...]:
    try:
        done = subprocess.run(
            ["/sbin/ldconfig", "-p"],
            capture_output=True,
            text=True,
            check=True,
            timeout=LDCONFIG_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):  # another libc: its folders are shown anyway
        return ()
    return tuple(path for path in parse_libraries(done.stdout) if os.path.exists(path))


def parse_libraries(text: str) -> list[str]:
    r"""Return the paths of the driver's libraries in what `ldconfig -p` prints.

    >>> parse_libraries("\tlibcuda.so.1 (libc6,x86-64) => /opt/nv/libcuda.so.1\n\tlibm.so.6 (x) => /lib/libm.so.6\n")
    ['/opt/nv/libcuda.so.1']
    """
    found = []
    for line in text.splitlines():
        name, _, path = line.strip().partition(" => ")
        if path and _LIBRARY.fullmatch(name.split(" ", 1)[0]):
            found.append(path)
    return found


def variables(gpus: Sequence[Gpu], *, any_here: bool, isolated: bool) -> dict[str, str]:
    """Return the variables of a job that has ``gpus``; ``any_here``: the machine has some.

    By UUID where the driver tells it: that means the same device whatever else is visible. By
    number, CUDA counts what it sees: in a container only the job's own.
    """
    if not gpus:
        return {VISIBLE: ""} if any_here else {}
    if all(gpu.uuid for gpu in gpus):
        names = [gpu.uuid for gpu in gpus]
    else:
        names = [str(n if isolated else gpu.index) for n, gpu in enumerate(gpus)]
    return {VISIBLE: ",".join(names)}


def device_files(gpus: Sequence[Gpu], shared: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return (path on this machine, path inside) of each device file of a job that has ``gpus``."""
    paths = [*(gpu.device for gpu in gpus), *shared] if gpus else []
    return tuple((path, f"/dev/{path.rpartition('/')[2]}") for path in paths)


def device_indices(devices: Sequence[tuple[str, str]]) -> list[int]:
    """Return the numbers of the GPUs among ``devices``, as `device_files` gave them.

    >>> device_indices([("/dev/nvidia3", "/dev/nvidia3"), ("/dev/nvidiactl", "/dev/nvidiactl")])
    [3]
    """
    names = (_DEVICE.fullmatch(inside.rpartition("/")[2]) for _, inside in devices)
    return [int(found[1]) for found in names if found]


class GpuBook:
    """Which container has which devices: each belongs to one at most. Pure."""

    def __init__(self, gpus: Iterable[Gpu]) -> None:
        self._owners: dict[Gpu, str] = dict.fromkeys(gpus, "")

    def take(self, container: str, count: int) -> tuple[Gpu, ...] | None:
        """Give ``count`` devices to ``container``; None if fewer are free, and nothing is given."""
        free = [gpu for gpu, owner in self._owners.items() if not owner]
        if len(free) < count:
            return None
        taken = tuple(free[:count])
        self._owners.update(dict.fromkeys(taken, container))
        return taken

    def note(self, container: str, devices: Sequence[str]) -> None:
        """Take down that an earlier agent gave the device files ``devices`` to ``container``."""
        for gpu in self._owners:
            if gpu.device in devices:
                self._owners[gpu] = container

    def of(self, container: str) -> tuple[Gpu, ...]:
        """Return the devices that ``container`` has."""
        return tuple(gpu for gpu, owner in self._owners.items() if owner == container)

    def give_back(self, container: str) -> bool:
        """Free the devices of ``container``, which is gone; return whether it had any."""
        had = self.of(container)
        self._owners.update(dict.fromkeys(had, ""))
        return bool(had)
