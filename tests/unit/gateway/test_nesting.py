"""What jobs may ask for their jobs."""

import dataclasses

import pytest

from picloud_jupyter.protocol.errors import NotAllowed
from picloud_jupyter.protocol.jobs import HostPython, JobSpec, NetworkPolicy
from picloud_services.gateway.nesting import check_child

PYTHON = HostPython("/usr/bin/python3", "/usr", "/usr", "3.11.2")
PARENT = JobSpec(
    "f",
    PYTHON,
    folder="/work",
    code_version="a" * 64,
    volumes=("/data:/data:rw", "/data/inner:/i", "/pub:/pub"),
    secrets=(("TOKEN", "TOKEN"), ("VARIABLE", "OTHER")),
)


def child(**fields: object) -> JobSpec:
    return dataclasses.replace(PARENT, **{"volumes": (), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "volumes",
    [(), ("/data:/other:rw",), ("/data:/x",), ("/pub:/x", "/data:/data"), ("/pub/:/pub:ro",)],
)
def test_check_when_the_volumes_are_its_own_then_they_are_allowed(volumes) -> None:
    check_child(child(volumes=volumes), PARENT)


@pytest.mark.parametrize(
    "secrets", [(), (("TOKEN", "TOKEN"),), (("ANYTHING", "OTHER"), ("TWICE", "OTHER"))]
)
def test_check_when_the_secrets_are_its_own_then_they_are_allowed(secrets) -> None:
    check_child(child(secrets=secrets), PARENT)


def test_check_when_a_secret_is_not_its_own_then_it_is_refused_by_name() -> None:
    with pytest.raises(NotAllowed, match="'VARIABLE'"):  # it has the variable, not the secret
        check_child(child(secrets=(("TOKEN", "TOKEN"), ("V", "VARIABLE"))), PARENT)


def test_check_when_the_job_has_no_network_then_its_jobs_have_none_either() -> None:
    alone = dataclasses.replace(PARENT, network=NetworkPolicy.NONE)
    check_child(child(network=NetworkPolicy.NONE), alone)
    check_child(child(network=NetworkPolicy.NONE), PARENT)
    with pytest.raises(NotAllowed, match="without a network") as caught:
        check_child(child(), alone)
    assert "_network='none'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "fields",
    [
        {"folder": "/etc"},
        {"folder": ""},
        {"code_version": "b" * 64},
        {"host_python": dataclasses.replace(PYTHON, paths=("/root",))},
        {"volumes": ("/etc:/x:rw",)},
        {"volumes": ("/:/x",)},
        {"volumes": ("/pub:/pub:rw",)},
        {"volumes": ("/pub/inner:/x",)},
        {"volumes": ("/data/link:/x",)},
        {"volumes": ("/data/inner:/x",)},  # it can be replaced by a link through /data
        {"volumes": ("/data/../etc:/x",)},
    ],
)
def test_check_when_it_is_more_than_its_own_then_it_is_refused_in_words(fields) -> None:
    with pytest.raises(NotAllowed, match="a job"):
        check_child(child(**fields), PARENT)
