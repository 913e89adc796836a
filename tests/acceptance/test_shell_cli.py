"""Sheet 11: `picloud exec` and `picloud mapexec` against the real service."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from picloud_jupyter import cloud

pytestmark = pytest.mark.isolation


def field(jid, name):
    return cloud.info(jid, [name])[jid][name]


def jid_of(done):
    return int(done.stdout)


def jids_of(done):
    first, last = done.stdout.split("-")
    return range(int(first), int(last) + 1)


def test_exec_prints_the_jid(service, tmp_path):
    (tmp_path / "in.txt").write_text("abc")
    jid = jid_of(service.cli("exec", "echo", "-n", "a", "b;", "pwd", cwd=tmp_path))
    assert cloud.result(jid) == f"a b{tmp_path}\n".encode()
    words = (
        "-d",
        "n=2",
        "-d",
        f"f=@{tmp_path}/in.txt",
        "--data",
        "x=a=b",
        "cat {f}; echo {n} {x}",
    )
    jid = jid_of(service.cli("exec", *words))
    assert cloud.result(jid) == b"abc2 a=b\n"
    assert json.loads(service.cli("-o", "json", "exec", "true").stdout) == jid + 1


def test_every_option_of_a_job(service, tmp_path):
    (tmp_path / "vol").mkdir(mode=0o755)
    (tmp_path / "vol" / "file").write_text("from the volume")
    first = jid_of(service.cli("exec", "sleep 1"))
    options = ["-t", "c2", "-c", "1", "-l", "the label", "-m", "5", "-x", str(first)]
    options += ["--depends-on-errors", "ignore", "--not-restartable", "--priority", "3"]
    options += ["-r", "made", "-w", "/tmp", "-i"]
    command = "echo in the file > made; pwd; exit 3"
    jid = jid_of(service.cli("exec", *options, command))
    assert cloud.result(jid) == b"in the file\n"
    found = cloud.info(jid, "all")[jid]
    assert found["stdout"] == "/tmp\n"
    assert found["label"] == "the label"
    assert found["core_type"] == "c2"
    assert found["started"] >= cloud.info(first, ["finished"])[first]["finished"]
    if service.kind != "plain":
        volume = f"{tmp_path}/vol:/data"
        assert cloud.result(jid_of(service.cli("exec", "-v", volume, "cat /data/file"))) == (
            b"from the volume"
        )
    refused = service.cli("exec", "-e", "no_such_environment", "true", check=False)
    assert refused.returncode == 3
    assert "no_such_environment" in refused.stderr


def test_options_of_newer_keywords(service):
    cloud.secret.set("SHELL_TOKEN", value="open sesame")
    words = ("--secret", "SHELL_TOKEN", "--secret", "OTHER=SHELL_TOKEN", "--retries", "1")
    command = 'test $PICLOUD_ATTEMPT = 2 && echo "$SHELL_TOKEN, $OTHER"'
    assert cloud.result(jid_of(service.cli("exec", *words, command))) == (
        b"open sesame, open sesame\n"
    )
    refused = service.cli("exec", "--secret", "NONE_SUCH", "true", check=False)
    assert refused.returncode == 3
    assert "NONE_SUCH" in refused.stderr
    many = service.cli("exec", "--gpu", "64", "true", check=False)
    assert many.returncode == 3
    assert "GPU" in many.stderr
    if service.kind != "plain":
        words = ("--network", "none", "tail -n +3 /proc/net/dev | cut -d: -f1")
        assert cloud.result(jid_of(service.cli("exec", *words))).split() == [b"lo"]


def test_a_runtime_in_minutes(service):
    jid = jid_of(service.cli("exec", "-m", "0.01", "sleep 600"))
    cloud.join(jid, ignore_errors=True)
    assert field(jid, "reason") == "timeout"


def test_exec_follows_what_a_job_writes(service, tmp_path):
    done = service.cli("exec", "-f", "echo out; echo err >&2; printf '\\303\\274'")
    assert done.stdout == "out\nü"
    assert done.stderr.splitlines()[0].startswith("picloud: job ")
    assert "err\n" in done.stderr
    done = service.cli("exec", "-f", "-r", "x", "echo shown; printf kept > x", cwd=tmp_path)
    assert done.stdout == "kept"
    assert "shown\n" in done.stderr
    done = service.cli("-o", "json", "exec", "-f", "echo a")
    assert json.loads(done.stdout)["result"] == "a\n"


def test_a_failed_command_ends_exec_with_3(service):
    done = service.cli("exec", "-f", "echo why >&2; exit 9", check=False)
    assert done.returncode == 3
    assert done.stderr.count("why") == 2  # once as its stderr, once in the command
    assert "exit code 9" in done.stderr
    done = service.cli("-o", "json", "exec", "-f", "exit 9", check=False)
    assert done.returncode == 3
    assert json.loads(done.stderr.splitlines()[-1])["error"]["reason"] == "exit_code"


def test_output_is_live_and_the_job_outlives_the_watcher(service):
    words = [sys.executable, "-m", "picloud_jupyter.cli", "exec", "-f", "echo first; sleep 30"]
    with subprocess.Popen(
        words,
        env={**os.environ, **service.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watcher:
        begun = time.monotonic()
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "first\n"
        assert time.monotonic() - begun < 15
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    jid = int(errors.split()[2])
    assert f"picloud kill {jid}" in errors
    assert cloud.status(jid) == "processing"
    cloud.kill(jid)


def test_mapexec_makes_a_job_for_each_value(service, tmp_path):
    done = service.cli("mapexec", "-n", r"a=1,2\,5,3", "-d", "b=x", "echo {a} {b}")
    assert cloud.result(jids_of(done)) == [b"1 x\n", b"2,5 x\n", b"3 x\n"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one").write_text("1")
    (tmp_path / "sub" / "two").write_text("2")
    (tmp_path / "sub" / "files").write_text("@one\n\n@two\n")
    done = service.cli("mapexec", "-N", f"f={tmp_path}/sub/files", "cat {f}")
    assert cloud.result(jids_of(done)) == [b"1", b"2"]
    done = service.cli("mapexec", "-n", "a=1,2", "-n", "b=3,4", "-k", "2", "echo {a}{b}")
    assert cloud.result(jids_of(done)) == [b"13\n", b"24\n", b"13\n", b"24\n"]
    done = service.cli("mapexec", "-k", "3", "-l", "copies", "echo same")
    jids = jids_of(done)
    assert cloud.result(jids) == [b"same\n"] * 3
    assert field(jids[2], "label") == "copies"
    done = service.cli("-o", "json", "mapexec", "-n", "a=1", "echo {a}")
    assert json.loads(done.stdout) == f"{jids[-1] + 1}-{jids[-1] + 1}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["exec"], "required"),
        (["exec", "-d", "x", "true"], "NAME=VALUE"),
        (["exec", "echo {a}"], "needs a value for {a}"),
        (["exec", "-d", "a=1", "echo"], "does not use 'a'"),
        (["exec", "-d", "a=1", "-d", "a=2", "echo {a}"], "twice"),
        (["exec", "-d", "a=@/missing", "cat {a}"], "/missing: there is no such file"),
        (["exec", "-t", "m9", "true"], "invalid choice"),
        (["exec", "-t", "c1", "-c", "8", "true"], "_cores=8"),
        (["exec", "-l", "grüße", "true"], "ASCII"),
        (["mapexec", "echo"], "-n or -N"),
        (["mapexec", "-n", "a=1,2", "-n", "b=1", "echo {a}{b}"], "same number"),
        (["mapexec", "-N", "a=/missing", "echo {a}"], "/missing: No such file"),
        (["mapexec", "-k", "0", "echo"], "at least 1"),
        (["mapexec", "-d", "a=1", "-n", "a=1", "echo {a}"], "common value and a list"),
    ],
)
def test_wrong_words_exit_with_2_and_make_no_job(service, words, told):
    before = int(cloud.shell.execute("true"))
    done = service.cli(*words, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert int(cloud.shell.execute("true")) == before + 1


def test_bytes_of_the_command_line_that_are_no_text(service):
    value = os.fsdecode(b"v=\xff")
    jid = jid_of(service.cli("exec", "-d", value, os.fsdecode(b"printf '\xfe{v}'")))
    assert cloud.result(jid) == b"\xfe\xff"


@pytest.mark.parametrize("word", ["exec", "mapexec"])
def test_help_has_examples_and_completion_knows_the_options(service, word):
    assert f"picloud {word} " in service.cli(word, "--help").stdout.split("xample", 1)[1]
    completion = service.cli("completion", "bash").stdout
    line = next(line for line in completion.splitlines() if line.strip().startswith(f"{word})"))
    assert "--ignore-exit-status" in line
    assert "--max-runtime" in line


def test_the_simulator_waits_and_prints_results(service):
    """-s: a service of the command's own, gone when it ends."""
    before = int(cloud.shell.execute("true"))
    assert service.cli("-s", "exec", "-d", "a=x", "echo {a}").stdout == "x\n"
    assert service.cli("-s", "exec", "-f", "echo {1..2}").stdout == "1 2\n"
    done = service.cli("-s", "mapexec", "-n", "a=x,y", "echo {a}")
    assert done.stdout == "Result for jid 1:\nx\n\n\nResult for jid 2:\ny\n\n"
    failed = service.cli("-s", "exec", "exit 3", check=False)
    assert failed.returncode == 3
    assert "exit code 3" in failed.stderr
    both = service.cli("-s", "-u", "https://example.org", "exec", "true", check=False)
    assert both.returncode == 2
    assert int(cloud.shell.execute("true")) == before + 1
