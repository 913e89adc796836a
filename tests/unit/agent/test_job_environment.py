"""The variables of a job."""

from picloud_jupyter.protocol.jobs import HostPython, SandboxSpec
from picloud_services.agent.job_environment import job_environment

PLACES = {"home": "/home/picloud", "tmp": "/tmp", "run_dir": "/run/picloud"}
PYTHON = HostPython("/x/env/bin/python", "/x/env", "/usr", "3.11.2")


def test_environment_then_only_language_and_time_zone_come_from_the_service() -> None:
    host = {"LANG": "de_AT.UTF-8", "TZ": "Europe/Vienna", "AWS_SECRET": "x", "PATH": "/evil"}
    found = job_environment(SandboxSpec(0, PYTHON), {}, places=PLACES, host=host)
    assert found["LANG"] == "de_AT.UTF-8"
    assert found["TZ"] == "Europe/Vienna"
    assert "AWS_SECRET" not in found
    assert found["PATH"].startswith("/x/env/bin:/usr/local/sbin")
    assert found["VIRTUAL_ENV"] == "/x/env"


def test_environment_when_a_core_is_shared_then_there_is_one_thread() -> None:
    spec = SandboxSpec(0, PYTHON, cpu_cores=0.2)
    found = job_environment(spec, {}, places=PLACES, host={})
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "1"


def test_environment_when_a_name_is_set_twice_then_the_request_wins() -> None:
    spec = SandboxSpec(0, PYTHON, variables=(("OMP_NUM_THREADS", "7"), ("A", "spec")))
    found = job_environment(spec, {"A": "request"}, places=PLACES, host={})
    assert (found["OMP_NUM_THREADS"], found["A"]) == ("7", "request")
