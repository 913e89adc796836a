"""The `picloud` command against the real service."""

import json
import re
import time

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = pytest.mark.isolation


def test_status_of_the_service(service):
    status = service.status()
    assert status["pid"] > 1
    assert status["agent_pid"] > 1
    assert status["container_kind"] == service.kind
    text = service.cli("status").stdout
    assert service.kind in text
    assert "MiB" in text or "GiB" in text
    if service.kind == "plain":
        assert "not isolated" in text.lower()


def test_jobs_by_the_command_line(service):
    jid = cloud.call(lambda: "value")
    bad = cloud.call(lambda: 1 / 0)
    cloud.join([jid, bad], ignore_errors=True)
    assert re.search(rf"{jid}\s+done", service.cli("status", f"{jid},{bad}").stdout)
    assert service.cli("join", str(jid)).stdout == ""
    assert service.cli("result", str(jid)).stdout == "value"
    assert json.loads(service.cli("-o", "json", "result", str(jid)).stdout) == {
        str(int(jid)): "value"
    }
    assert "runtime" in service.cli("info", str(jid)).stdout
    failed = service.cli("result", str(bad), check=False)
    assert failed.returncode == 3
    assert "ZeroDivisionError" in failed.stderr


def test_kill_delete_and_logs(service):
    def talk():
        for i in range(3):
            print("line", i, flush=True)
        time.sleep(60)

    jid = cloud.call(talk)
    eventually(lambda: "line 2" in service.cli("logs", str(jid)).stdout)
    service.cli("kill", str(jid))
    eventually(lambda: cloud.status(jid) == "killed")
    followed = service.cli("logs", "-f", str(jid))
    assert followed.stdout == "line 0\nline 1\nline 2\n"
    service.cli("delete", str(jid))
    assert service.cli("status", str(jid), check=False).returncode == 3


def test_top_doctor_and_completion(service):
    assert "jid" in service.cli("top", "--once").stdout.lower()
    doctor = service.cli("doctor").stdout
    assert "root" in doctor
    assert "rootless" in doctor
    assert "plain" in doctor
    assert "complete" in service.cli("completion", "bash").stdout


@pytest.mark.parametrize(
    "word",
    [
        "up",
        "down",
        "status",
        "doctor",
        "join",
        "result",
        "info",
        "kill",
        "delete",
        "logs",
        "top",
    ],
)
def test_every_subcommand_has_help_with_an_example(service, word):
    text = service.cli(word, "--help").stdout
    assert f"picloud {word}" in text.split("xample", 1)[1]


@pytest.mark.parametrize("words", [["status", "abc"], ["nonsense"], ["result"]])
def test_wrong_usage_exits_with_2(service, words):
    assert service.cli(*words, check=False).returncode == 2


def test_unknown_job_exits_with_3(service):
    done = service.cli("status", "1999999999", check=False)
    assert done.returncode == 3
    assert done.stderr.count("1999999999") == 1
