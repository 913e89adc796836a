"""Which GPUs there are, what a job needs to use them, and who has which."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.nodes import Gpu
from picloud_services.agent.gpus import (
    GpuBook,
    device_files,
    find_gpus,
    parse_information,
    parse_libraries,
    variables,
)

INFORMATION = """\
Model: \t\t NVIDIA GeForce RTX 3090
IRQ:   \t\t 80
GPU UUID: \t GPU-4dd2c8a4-6d2b-7f3c
Video BIOS: \t 94.02.26.88.0a
Bus Location: \t 0000:0a:00.0
Device Minor: \t 1
"""
LDCONFIG = """\
1024 libs found in cache `/etc/ld.so.cache'
\tlibnvidia-ml.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libnvidia-ml.so.1
\tlibnvidia-ptxjitcompiler.so.535.54 (libc6,x86-64) => /opt/nv/libnvidia-ptxjitcompiler.so.535.54
\tlibcudart.so.12 (libc6,x86-64) => /usr/local/cuda/libcudart.so.12
\tlibcuda.so.1 (libc6,x86-64) => /run/driver/libcuda.so.1
\tlibc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6
"""
TWO = (Gpu(0, "/dev/nvidia0", "GPU-a", "X"), Gpu(1, "/dev/nvidia1", "GPU-b", "X"))
NAMELESS = (Gpu(0, "/dev/nvidia0"), Gpu(1, "/dev/nvidia1"))


def test_find_when_device_files_are_there_then_each_is_a_gpu_in_order(tmp_path):
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
        (tmp_path / name).touch()
    found = find_gpus(str(tmp_path))
    assert [(g.index, g.device) for g in found.gpus] == [
        (2, f"{tmp_path}/nvidia2"),
        (10, f"{tmp_path}/nvidia10"),
    ]
    assert found.shared == (f"{tmp_path}/nvidiactl", f"{tmp_path}/nvidia-uvm")
    assert found.note == ""


@pytest.mark.parametrize(
    ("folder", "words"), [("", "gpu_devices is empty"), ("/nowhere", "cannot be read")]
)
def test_find_when_there_are_none_then_it_says_why(folder, words):
    found = find_gpus(folder)
    assert found.gpus == ()
    assert words in found.note


def test_find_when_the_folder_has_no_gpu_then_it_says_so(tmp_path):
    assert f"{tmp_path}/nvidia0" in find_gpus(str(tmp_path)).note


def test_information_then_minor_uuid_and_model_are_read():
    assert parse_information(INFORMATION) == (
        1,
        "GPU-4dd2c8a4-6d2b-7f3c",
        "NVIDIA GeForce RTX 3090",
    )


def test_information_when_the_driver_does_not_know_the_uuid_yet_then_there_is_none():
    unknown = INFORMATION.replace("4dd2c8a4-6d2b-7f3c", "????????-????-????")
    assert parse_information(unknown)[1] == ""


@pytest.mark.parametrize("text", ["", "Model: X\n", "Device Minor: none\n"])
def test_information_when_it_names_no_device_then_value_error(text):
    with pytest.raises(ValueError):
        parse_information(text)


def test_libraries_then_those_of_the_driver_are_found_and_no_others():
    assert parse_libraries(LDCONFIG) == [
        "/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
        "/opt/nv/libnvidia-ptxjitcompiler.so.535.54",
        "/run/driver/libcuda.so.1",
    ]


@pytest.mark.parametrize(
    ("gpus", "isolated", "wanted"),
    [
        (TWO[1:], True, "GPU-b"),
        (TWO[1:], False, "GPU-b"),
        (NAMELESS[1:], True, "0"),  # in its container it is the only one
        (NAMELESS[1:], False, "1"),
        (NAMELESS, True, "0,1"),
        ((), True, ""),
    ],
)
def test_variables_then_cuda_sees_exactly_those(gpus, isolated, wanted):
    found = variables(gpus, any_here=True, isolated=isolated)
    assert found == {"CUDA_VISIBLE_DEVICES": wanted}


def test_variables_when_the_machine_has_no_gpu_then_nothing_is_set():
    assert variables((), any_here=False, isolated=True) == {}


def test_device_files_then_its_own_and_the_shared_ones_are_at_their_usual_places():
    fake = (Gpu(1, "/tmp/x/nvidia1"),)
    assert device_files(fake, ("/tmp/x/nvidiactl",)) == (
        ("/tmp/x/nvidia1", "/dev/nvidia1"),
        ("/tmp/x/nvidiactl", "/dev/nvidiactl"),
    )
    assert device_files((), ("/tmp/x/nvidiactl",)) == ()


def test_book_when_fewer_are_free_then_none_is_given():
    book = GpuBook(TWO)
    assert book.take("a", 1) == TWO[:1]
    assert book.take("b", 2) is None
    assert book.take("b", 1) == TWO[1:]
    assert book.give_back("a")
    assert not book.give_back("a")
    assert book.take("c", 1) == TWO[:1]


def test_book_when_an_earlier_agent_gave_one_then_nobody_else_gets_it():
    book = GpuBook(TWO)
    book.note("old", ["/dev/nvidia0", "/dev/nvidiactl"])
    assert book.take("new", 2) is None
    assert book.take("new", 1) == TWO[1:]
    book.give_back("old")
    assert book.of("new") == TWO[1:]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=30))
def test_book_then_no_device_has_two_owners(steps):
    book = GpuBook([Gpu(n, f"/dev/nvidia{n}") for n in range(4)])
    for container, count in steps:
        if count:
            book.take(container, count)
        else:
            book.give_back(container)
        owned = [gpu for name in "abcd" for gpu in book.of(name)]
        assert len(owned) == len(set(owned)) <= 4


def test_this_machine_can_be_asked():
    found = find_gpus()
    assert bool(found.gpus) is not bool(found.note)
    assert bool(found.gpus) is os.path.exists("/dev/nvidia0")
