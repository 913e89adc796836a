"""What fits where, and the words where it fits nowhere."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import (
    CORE_TYPES,
    GIB,
    ContainerKind,
    HostPython,
    JobSpec,
    NetworkPolicy,
    Resources,
)
from picloud_services.dispatch.fairness import FairShare
from picloud_services.dispatch.placement import (
    add,
    choose_node,
    fits,
    need,
    never_fits,
    subtract,
)
from picloud_services.dispatch.sandbox import build_sandbox, check_spec, parse_volume

TWO = Resources(2, 16 * GIB)


def test_memory_per_core_is_cut_to_what_the_machine_has():
    assert need("m1", 1, TWO).memory_bytes == 8 * GIB
    assert need("m1", 1, Resources(2, 4 * GIB)).memory_bytes == 2 * GIB
    assert need("c2", 2, TWO) == Resources(2.0, 4 * GIB)


def test_five_shared_cores_are_one():
    free = Resources(1, 16 * GIB)
    wanted = need("s1", 1, free)
    for _ in range(5):
        assert fits(wanted, free)
        free = subtract(free, wanted)
    assert not fits(wanted, free)
    assert add(free, wanted).cores == pytest.approx(0.2)


def test_what_never_fits_is_named_with_what_does():
    assert never_fits("c1", 1, [TWO]) == ""
    assert never_fits("c1", 1, []) == ""  # nobody knows yet
    words = never_fits("f2", 16, [TWO])
    assert "16 cores" in words
    assert "2 cores" in words
    assert "_cores=2 of this type fits" in words


def test_the_fullest_node_that_fits_is_chosen():
    nodes = {
        "big": (Resources(8, 64 * GIB), Resources(8, 64 * GIB)),
        "small": (TWO, Resources(1, 8 * GIB)),
        "full": (TWO, Resources(0, 8 * GIB)),
    }
    assert choose_node("c1", 1, nodes) == "small"
    assert choose_node("c2", 4, nodes) == "big"
    assert choose_node("f2", 16, nodes) is None


@given(st.sampled_from(list(CORE_TYPES)), st.floats(0.5, 64), st.integers(GIB, 512 * GIB))
def test_one_job_of_one_core_always_fits_an_empty_node(core_type, cores, memory):
    capacity = Resources(max(cores, 1), memory)
    assert fits(need(core_type, 1, capacity), capacity)
    assert never_fits(core_type, 1, [capacity]) == ""


def test_least_used_user_comes_first_and_use_is_forgotten():
    fair = FairShare()
    fair.charge(1, 100.0, now=0.0)
    assert fair.order({1: 0.0, 2: 0.0}, 0.0) == [2, 1]
    assert fair.used(1, 600.0) == pytest.approx(50.0)
    fair.charge(2, 60.0, now=600.0)
    assert fair.order({1: 0.0, 2: 0.0}, 600.0) == [1, 2]
    assert fair.order({1: 20.0, 2: 0.0}, 600.0) == [2, 1]


SPEC = JobSpec("f", HostPython("/p", "/", "/", "3.11"))


def test_volumes_are_paths_of_this_machine():
    assert parse_volume("/a/b:/data") == ("/a/b", "/data", "ro")
    assert parse_volume("/a/../b:/data:rw") == ("/b", "/data", "rw")
    for text in ("datasets", "a:/b", "/a:b", "/a:/b:w"):
        with pytest.raises(InvalidRequest, match="volume"):
            parse_volume(text)


@pytest.mark.parametrize(
    "inside",
    ["/", "//", "/tmp", "/home/picloud", "//proc/1/root/x", "/dev/shm/x", "/run/picloud"],
)
def test_a_volume_at_a_place_of_the_container_s_own_is_refused(inside):
    with pytest.raises(InvalidRequest, match="the container's own"):
        check_spec(replace(SPEC, volumes=(f"/a:{inside}",)), {ContainerKind.ROOT})


@pytest.mark.parametrize("inside", ["/tmp/x", "/home/picloud/x", "/process", "/run/x"])
def test_a_volume_beside_them_is_not(inside):
    check_spec(replace(SPEC, volumes=(f"/a:{inside}",)), {ContainerKind.ROOT})


@pytest.mark.parametrize(
    "variable", [("A", "x\0--share-net"), ("A\0", "x"), ("", "x"), ("A=", "")]
)
def test_what_cannot_be_a_variable_is_refused(variable):
    with pytest.raises(InvalidRequest, match="cannot be an environment variable"):
        check_spec(replace(SPEC, variables=(variable,)), {ContainerKind.ROOT})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"environment": "precise"}, "environment"),
        ({"volumes": ("/a:/b",)}, "volume"),
        ({"network": NetworkPolicy.NONE}, "network"),
    ],
)
def test_what_a_plain_process_cannot_give_is_refused(fields, word):
    spec = JobSpec("f", SPEC.host_python, **fields)
    with pytest.raises(InvalidRequest, match=word):
        check_spec(spec, {ContainerKind.PLAIN})
    if word != "environment":
        check_spec(spec, {ContainerKind.ROOT})


def test_sandboxes_differ_by_what_containers_differ_by():
    wanted = need("c1", 1, TWO)
    _, digest = build_sandbox(SPEC, 1, wanted, "e1")
    assert digest == build_sandbox(SPEC, 1, wanted, "e1")[1]
    others = [
        build_sandbox(SPEC, 2, wanted, "e1")[1],
        build_sandbox(SPEC, 1, wanted, "e2")[1],
        build_sandbox(JobSpec("f", SPEC.host_python, folder="/x"), 1, wanted, "e1")[1],
    ]
    assert len({digest, *others}) == 4
    same = JobSpec("g", SPEC.host_python, label="l", priority=1)
    assert build_sandbox(same, 1, wanted, "e1")[1] == digest


def test_gpus_are_a_dimension_like_the_others():
    node = Resources(8, 64 * GIB, gpus=2)
    assert need("c1", 1, node, 1).gpus == 1
    assert not fits(need("c1", 1, node, 3), node)
    left = subtract(node, need("c1", 1, node, 2))
    assert left.gpus == 0
    assert fits(need("c1", 1, node), left)


def test_a_job_without_gpus_leaves_them_to_others_if_there_is_room():
    with_gpu = Resources(2, 16 * GIB, gpus=1)
    plain = Resources(16, 64 * GIB)
    nodes = {"gpu": (with_gpu, with_gpu), "plain": (plain, plain)}
    assert choose_node("c1", 1, nodes) == "plain"
    assert choose_node("c1", 1, nodes, 1) == "gpu"
    assert choose_node("c1", 1, nodes, 2) is None
    assert choose_node("c1", 1, {"gpu": nodes["gpu"]}) == "gpu"


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ([0], "_gpu=2 asks for a GPU, and no machine here has one"),
        ([1, 0], "has 1 GPU; _gpu=1 fits"),
        ([1, 2], ""),
    ],
)
def test_gpus_that_are_not_there_are_refused_in_words(gpus, words):
    found = never_fits("c1", 1, [Resources(2, 16 * GIB, n) for n in gpus], 2)
    assert words in found
    assert bool(found) is bool(words)


def test_too_many_cores_are_named_before_gpus():
    assert "_cores=16" in never_fits("f2", 16, [TWO], 1)
