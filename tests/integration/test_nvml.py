"""NVML through its C interface, with a library of the test's own in its place."""

import shutil
import subprocess

import pytest

from picloud_services.agent.nvml import Nvml

# Two GPUs: device file 3 comes first in the order of buses, and device file 0 counts no use.
LIBRARY = """
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { unsigned long long total, free, used; } memory;
static int ids[2] = {3, 0};
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = &ids[index]; return 0; }
int nvmlDeviceGetMinorNumber(void *device, unsigned int *minor) { *minor = *(int *)device; return 0; }
int nvmlDeviceGetUtilizationRates(void *device, utilization *rates) {
  if (*(int *)device == 0) return 3;
  rates->gpu = 80; rates->memory = 7; return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
  found->total = 1ULL << 34; found->free = 0; found->used = (1ULL << 33) + *(int *)device; return 0;
}
"""


@pytest.fixture
def make_library(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the library with")

    def make(init: int = 0) -> str:
        source, library = tmp_path / "nvml.c", tmp_path / f"libnvml{init}.so"
        source.write_text(LIBRARY)
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o", library, source],
            check=True,
            timeout=60,
        )
        return str(library)

    return make


def test_usage_then_devices_are_found_by_the_number_of_their_file(make_library):
    nvml = Nvml(make_library())
    assert nvml.usage([3]) == (80.0, 2**33 + 3)
    assert nvml.usage([0]) == (0.0, 2**33)
    assert nvml.usage([0, 3]) == (40.0, 2**34 + 3)
    nvml.close()
    assert nvml.usage([3]) is None


@pytest.mark.parametrize("indices", [[7], [3, 7]])
def test_usage_when_there_is_no_such_device_then_there_are_no_figures(
    make_library, indices, caplog
):
    assert Nvml(make_library()).usage(indices) is None
    assert "cannot be measured" in caplog.text


def test_usage_when_the_driver_refuses_then_it_is_said_once(make_library, caplog):
    nvml = Nvml(make_library(init=9))
    assert nvml.usage([3]) is None
    assert nvml.usage([3]) is None
    assert caplog.text.count("NVML answered 9") == 1


def test_usage_when_there_is_no_library_then_it_is_said_once(caplog):
    nvml = Nvml("/nowhere/libnvidia-ml.so.1")
    assert nvml.usage([0]) is None
    assert nvml.usage([0]) is None
    assert caplog.text.count("cannot be measured") == 1
