"""Which job a process runs in."""

import pytest

from picloud_jupyter.transport.inside import CurrentJob, current_job, job_key, set_current_job

VARIABLES = {
    "PICLOUD_JID": "7",
    "PICLOUD_ATTEMPT": "2",
    "PICLOUD_LEASE": "ab",
    "PICLOUD_USER_ID": "1000",
    "PICLOUD_LEASE_KEY": "cd",
    "PICLOUD_RUN_DIR": "/run/picloud",
}


def test_current_job_when_outside_is_none():
    assert current_job() is None


def test_current_job_when_set_is_that_and_none_afterwards():
    job = CurrentJob(1, 1, "l", 5, "k", "/s")
    set_current_job(job)
    assert current_job() is job
    set_current_job(None)
    assert current_job() is None


def test_current_job_when_inherited_comes_from_the_environment(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    job = current_job()
    assert job == CurrentJob(7, 2, "ab", 1000, "cd", "/run/picloud/api.sock")
    assert job.key == job_key(1000, 7, 2, "ab", "cd")
    assert job.key.startswith("pcj_1000.7.2.ab.")


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_current_job_when_variables_are_incomplete_is_none(monkeypatch, name):
    for other, value in VARIABLES.items():
        monkeypatch.setenv(other, value if other != name else "")
    assert current_job() is None or name == "PICLOUD_LEASE"
