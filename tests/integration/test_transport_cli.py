"""The `picloud` command against a server that plays the control API."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.cli import main
from picloud_jupyter.transport import inside
from picloud_jupyter.transport.paths import service_paths
from tests.tools.play_gateway import played_service


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with played_service(tmp_path, monkeypatch) as played:
        yield played


@pytest.fixture
def picloud(gateway, capfdbinary):
    def call(*words):
        code = main(list(words))
        done = capfdbinary.readouterr()
        return code, done.out.decode("utf-8", "surrogateescape"), done.err.decode()

    return call


def test_status_of_the_service_says_kind_limits_and_disk(picloud):
    code, text, _ = picloud("status")
    assert code == 0
    for word in (
        "pid 4711",
        "agent pid 4712",
        "NOT ISOLATED",
        "watched",
        "1.0 MiB used",
        "1 min 3",
    ):
        assert word in text
    found = json.loads(picloud("-o", "json", "status")[1])
    assert (found["pid"], found["agent_pid"]) == (4711, 4712)


def test_status_join_and_result_of_jobs(picloud):
    jids = cloud.map(lambda x: x if x != 2 else b"\x00\xffraw", [1, 2])
    assert picloud("status", "1-2")[1] == "jid    status\n1      done\n2      done\n"
    assert picloud("-o", "no-header", "status", "1")[1] == "1    done\n"
    assert picloud("join", "1-2") == (0, "", "")
    assert picloud("result", "1") == (0, "1\n", "")
    assert picloud("result", "2")[1].encode("utf-8", "surrogateescape") == b"\x00\xffraw"
    assert "Result for jid 1:\n1\n" in picloud("result", "1-2")[1]
    assert json.loads(picloud("-o", "json", "result", "1")[1]) == {"1": 1}
    assert len(jids) == 2


def test_failed_jobs_exit_with_3_and_words_on_stderr(picloud):
    cloud.call(lambda: 1 / 0)
    code, text, error = picloud("result", "1")
    assert (code, text) == (3, "")
    assert "ZeroDivisionError" in error
    code, _, error = picloud("-o", "json", "result", "1")
    assert code == 3
    assert json.loads(error)["error"]["jid"] == 1
    code, text, _ = picloud("result", "-i", "1")
    assert code == 0
    assert "ZeroDivisionError" in text


def test_results_without_a_text_form_are_refused(picloud):
    cloud.call(lambda: complex)
    code, _, error = picloud("result", "1")
    assert code == 3
    assert "cloud.result" in error


def test_unknown_jobs_exit_with_3(picloud):
    code, _, error = picloud("status", "999")
    assert code == 3
    assert "999" in error


def test_info_prints_fields(picloud):
    cloud.call(lambda: 1)
    text = picloud("info", "1")[1]
    assert text.startswith("Info for jid 1\n")
    assert "stdout:\nout\n" in text
    assert json.loads(picloud("-o", "json", "info", "1", "-o", "status")[1]) == {
        "1": {"status": "done"}
    }
    assert "args" in json.loads(picloud("-o", "json", "info", "1", "-o", "args")[1])["1"]


def test_kill_and_delete_print_nothing(picloud, gateway):
    gateway.hold = True
    cloud.map(abs, [1, 2])
    assert picloud("kill", "1") == (0, "", "")
    assert gateway.jobs[1]["status"] == "killed"
    assert picloud("kill", "--all")[0] == 0
    assert gateway.jobs[2]["status"] == "killed"
    assert picloud("delete", "1-2") == (0, "", "")
    assert gateway.jobs == {}


def test_logs_are_printed_exactly_and_followed(picloud):
    cloud.call(lambda: 1)
    assert picloud("logs", "1") == (0, "line one\nline two\n", "")
    assert picloud("logs", "-f", "1")[1] == "line one\nline two\n"
    assert picloud("logs", "--stderr", "1")[1] == ""


def test_list_and_top_show_jobs(picloud):
    cloud.map(abs, [1, 2])
    text = picloud("list")[1]
    assert text.splitlines()[0].split()[:2] == ["jid", "status"]
    assert "builtins.abs" in text
    assert picloud("ls", "-n", "1")[0] == 0
    top = picloud("top", "--once")[1]
    assert "jid" in top
    assert "50 %" in top
    assert json.loads(picloud("-o", "json", "top")[1])["jobs"]


def test_doctor_says_why_a_kind_was_refused(picloud):
    code, text, _ = picloud("doctor")
    assert code == 0
    assert "because: not root" in text
    assert json.loads(picloud("-o", "json", "doctor")[1])["container_kind"] == "plain"


def test_up_says_that_it_runs_already(picloud):
    code, text, _ = picloud("up")
    assert code == 0
    assert "runs already: pid 4711" in text


def test_service_cannot_be_stopped_from_inside_a_job(picloud, gateway):
    socket = str(service_paths().api_socket)
    inside.set_current_job(inside.CurrentJob(1, 1, "l" * 16, 0, "00", socket))
    try:
        for word in ("down", "up"):
            code, _, error = picloud(word)
            assert code == 3
            assert "inside a job" in error
    finally:
        inside.set_current_job(None)
    assert gateway.requests == []


def test_reader_that_has_enough_ends_the_command_quietly(gateway):
    cloud.call(lambda: "x" * 5_000_000)
    done = subprocess.run(
        f"{sys.executable} -m picloud_jupyter.cli result 1 | head -c 10",
        shell=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.stdout == "x" * 10
    assert "Traceback" not in done.stderr


def test_wrong_usage_exits_with_2_and_nothing_at_all_with_1(picloud, gateway):
    for words in (["status", "abc"], ["nonsense"], ["result"], ["kill"], ["logs"]):
        code, _, error = picloud(*words)
        assert code == 2, words
        assert "usage:" in error
    assert picloud()[0] == 1
    code, text, _ = picloud("--version")
    assert (code, text.split()[0]) == (0, "picloud")
    assert gateway.requests == []
