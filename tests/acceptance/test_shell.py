"""Sheet 9: `cloud.shell` against the real service."""

import os
import time
from typing import Any

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.protocol.errors import PayloadTooLarge
from picloud_jupyter.protocol.shell import CommandFailed
from tests.tools.service_under_test import eventually

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]

NUMBERS: dict[str, Any] = {"a": 1}  # no strings


def field(jid, name):
    return cloud.info(jid, [name])[jid][name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to submit from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stdout_is_the_result_as_bytes_and_output_as_well():
    jid = cloud.shell.execute("echo {greeting}; echo err >&2", {"greeting": "hello you"})
    assert cloud.result(jid) == b"hello you\n"
    assert field(jid, "stdout") == "hello you\n"
    assert field(jid, "stderr") == "err\n"
    assert field(jid, "function") == "echo {greeting}; echo err >&2"
    assert field(jid, "args") == ({"greeting": "hello you"},)


def test_what_belongs_to_the_shell_is_left_to_it():
    jid = cloud.shell.execute(r"x=5; echo ${x} {1..3} {} \{x\} | tr '[:lower:]' '[:upper:]'")
    assert cloud.result(jid) == b"5 1 2 3 {} {X}\n"


def test_an_exit_code_is_an_error_that_tells_code_and_stderr():
    jid = cloud.shell.execute("echo out; echo the reason >&2; exit 7")
    with pytest.raises(cloud.JobFailed, match=r"exit code 7[^\0]*the reason") as caught:
        cloud.result(jid)
    assert caught.value.reason == "exit_code"
    cause = caught.value.__cause__
    assert isinstance(cause, CommandFailed)
    assert (cause.exit_code, cause.stderr) == (7, b"the reason\n")
    assert cloud.status(jid) == "error"
    assert field(jid, "reason") == "exit_code"
    assert "exit code 7" in field(jid, "exception")
    assert field(jid, "stdout") == "out\n"


def test_a_missing_program_is_told():
    with pytest.raises(cloud.JobFailed, match=r"127 \(command not found\)"):
        cloud.result(cloud.shell.execute("no_such_program --now"))


def test_exit_codes_can_be_ignored():
    jid = cloud.shell.execute("echo some; exit 3", ignore_exit_status=True)
    assert cloud.result(jid) == b"some\n"
    assert "exit code 3" in field(jid, "stderr")


def test_the_result_may_be_a_file(folder):
    jid = cloud.shell.execute(
        "echo shown; echo kept > {name}", {"name": "out"}, return_file="out"
    )
    assert cloud.result(jid) == b"kept\n"
    assert field(jid, "stdout") == "shown\n"
    with pytest.raises(cloud.JobFailed, match="no return file") as caught:
        cloud.result(cloud.shell.execute("true", return_file="nothing_made_this"))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_folder_to_run_in(folder):
    (folder / "sub").mkdir()
    assert (
        cloud.result(cloud.shell.execute("pwd", cwd="sub")).decode().strip() == f"{folder}/sub"
    )
    assert cloud.result(cloud.shell.execute("pwd", cwd="/usr")) == b"/usr\n"
    with pytest.raises(cloud.JobFailed, match="no such folder"):
        cloud.result(cloud.shell.execute("pwd", cwd="missing"))


def test_pythonpath_has_the_home_folder():
    path, home = cloud.result(cloud.shell.execute("echo $PYTHONPATH; echo $HOME")).split()
    assert path.endswith(home)


def test_files_travel_with_the_command(folder):
    (folder / "elsewhere").mkdir()
    script = folder / "elsewhere" / "go.sh"
    script.write_text("#!/bin/sh\nwc -c < $1\n")
    data = folder / "elsewhere" / "large.bin"
    data.write_bytes(os.urandom(3_000_000))
    jid = cloud.shell.execute(
        "./{script} {data}; echo {data}; stat -c %a {data}",
        {"script": f"@{script}", "data": f"@{data}"},
    )
    assert cloud.result(jid).split() == [b"3000000", b"large.bin", b"777"]
    assert sorted(os.listdir(folder)) == ["elsewhere"]


def test_a_file_of_the_same_name_is_left_alone(folder):
    (folder / "data.txt").write_text("x")
    jid = cloud.shell.execute("cat {f}; echo {f}", {"f": "@data.txt"})
    content, _, name = cloud.result(jid).decode().strip().partition("data-")
    assert content == "x"
    assert name.endswith(".txt")
    assert os.listdir(folder) == ["data.txt"]


def test_a_text_may_begin_with_the_sign_of_files():
    assert cloud.result(cloud.shell.execute("echo {who}", {"who": r"\@bob"})) == b"@bob\n"


def test_a_thousand_files_in_one_job_and_in_a_map(folder):
    for number in range(1000):
        (folder / f"part{number}").write_text(f"{number}\n")
    values = {f"f{i}": f"@{folder}/part{i}" for i in range(1000)}
    (folder / "run").mkdir()
    command = "cat {" + "} {".join(values) + "} | sort -n | tail -1"
    begun = time.monotonic()
    assert cloud.result(cloud.shell.execute(command, values, cwd="run")) == b"999\n"
    assert time.monotonic() - begun < 15
    jids = cloud.shell.execute_map("cat {f}", {}, {"f": list(values.values())}, cwd="run")
    assert time.monotonic() - begun < 30
    assert cloud.result(jids[-3:]) == [b"997\n", b"998\n", b"999\n"]
    cloud.kill(jids)


def test_a_map_has_a_job_for_each_value(folder):
    (folder / "common.txt").write_text("c")
    (folder / "sub").mkdir()
    jids = cloud.shell.execute_map(
        "echo {a} {b} {same}; cat {file}",
        {"same": "s", "file": "@common.txt"},
        {"a": ["1", "2"], "b": ["x", "y"]},
        cwd="sub",
        _label="a map",
    )
    assert cloud.result(jids) == [b"1 x s\nc", b"2 y s\nc"]
    assert field(jids[1], "label") == "a map"
    ended = cloud.shell.execute_map("exit {code}", {}, {"code": ["0", "5"]})
    cloud.join(ended, ignore_errors=True)
    assert cloud.status(ended) == ["done", "error"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cloud.shell.execute("echo {a}"), ValueError, r"needs a value for \{a\}"),
        (lambda: cloud.shell.execute("echo", {"a": "1"}), ValueError, "does not use 'a'"),
        (lambda: cloud.shell.execute("echo {a}", NUMBERS), TypeError, "must be a string"),
        (lambda: cloud.shell.execute(""), ValueError, "empty"),
        (lambda: cloud.shell.execute(5), TypeError, "must be a string"),
        (lambda: cloud.shell.execute("true", label="x"), ValueError, "reserved keywords"),
        (lambda: cloud.shell.execute("true", _lable="x"), TypeError, "_label"),
        (lambda: cloud.shell.execute("true", _profile=True), ValueError, "_profile"),
        (lambda: cloud.shell.execute("true", cwd=""), ValueError, "cwd is empty"),
        (
            lambda: cloud.shell.execute("{a}", {"a": "@/missing"}),
            OSError,
            "no such file to send",
        ),
        (lambda: cloud.shell.execute("{a}", {"a": "@/tmp"}), ValueError, "regular file"),
        (
            lambda: cloud.shell.execute("{a}", {"a": "x" * 140_000}),
            ValueError,
            "131,071 of Linux",
        ),
        (lambda: cloud.shell.execute_map("{a}", {}, {"a": []}), ValueError, "no values"),
        (
            lambda: cloud.shell.execute_map("{a}", {}, {"a": "text"}),
            TypeError,
            "list of values",
        ),
        (lambda: cloud.shell.execute_map("x", {}, {}), ValueError, "at least one"),
        (
            lambda: cloud.shell.execute_map("{a}{b}", {}, {"a": ["1"], "b": ["1", "2"]}),
            ValueError,
            "same number",
        ),
        (
            lambda: cloud.shell.execute_map("{a}", {"a": "1"}, {"a": ["1"]}),
            ValueError,
            "common value and a list",
        ),
        (
            lambda: cloud.shell.execute_map("{a}", {}, {"a": ["1", "@/missing"]}),
            OSError,
            "no such file",
        ),
        (
            lambda: cloud.shell.execute_map("{a}", {}, {"a": ["1"]}, _callback=print),
            ValueError,
            "_callback",
        ),
        (lambda: cloud.shell.rest_publish, AttributeError, "does not exist in this version"),
        (lambda: cloud.shell.cron_register, AttributeError, "does not exist in this version"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(call, error, words):
    before = int(cloud.shell.execute("true"))
    with pytest.raises(error, match=words):
        call()
    assert int(cloud.shell.execute("true")) == before + 1


def test_files_count_for_the_guard(folder, monkeypatch):
    (folder / "a").write_bytes(bytes(600_000))
    monkeypatch.setattr(cloud.config, "max_transmit_data", 1_000_000)
    with pytest.raises(PayloadTooLarge, match="arguments are 1,200"):
        cloud.shell.execute("{a}{b}", {"a": "@a", "b": "@a"})
    with pytest.raises(PayloadTooLarge, match="command and its files"):
        cloud.shell.execute_map("{a}{b}{c}", {"a": "@a", "b": "@a"}, {"c": ["1"]})
    (folder / "a").write_bytes(bytes(1_000_001))
    with pytest.raises(PayloadTooLarge, match="a has 1,000,001 bytes"):
        cloud.shell.execute("{a}", {"a": "@a"})


def test_bytes_that_are_no_text(service):
    value = os.fsdecode(b"\xff\xfe")
    jid = cloud.shell.execute(os.fsdecode(b"printf '\xe9{x}\\x00'"), {"x": value})
    assert cloud.result(jid) == b"\xe9\xff\xfe\x00"
    assert field(jid, "function") == r"printf '\xe9{x}\x00'"
    assert str(int(jid)) in service.cli("list", "-n", "1").stdout


def test_large_output_is_the_result_in_full():
    size = 100_000_000
    jid = cloud.shell.execute(f"head -c {size} /dev/zero")
    assert cloud.result(jid) == bytes(size)


def test_output_is_seen_while_it_runs_and_a_kill_takes_all(service):
    mark = f"4{os.getpid()}"
    text = f"echo first; trap '' TERM INT; (setsid sleep {mark} &) ; sleep {mark} & wait; sleep {mark}"
    jid = cloud.shell.execute(text)
    eventually(lambda: field(jid, "stdout") == "first\n")
    eventually(lambda: _running(mark))
    cloud.kill(jid)
    eventually(lambda: not _running(mark))
    assert cloud.status(jid) == "killed"


def _running(mark):
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                found += [pid] if file.read() == b"sleep\0%s\0" % mark.encode() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_what_stays_in_the_background_ends_with_the_command():
    mark = f"5{os.getpid()}"
    begun = time.monotonic()
    jid = cloud.shell.execute(f"sleep {mark} & (setsid sleep {mark} &); echo started")
    assert cloud.result(jid) == b"started\n"
    assert time.monotonic() - begun < 20
    assert not _running(mark)


def test_stdin_is_empty():
    assert cloud.result(cloud.shell.execute("cat; read x || echo end")) == b"end\n"


def test_keywords_of_jobs_work_for_commands():
    slow = cloud.shell.execute("sleep 600", _max_runtime=0.02)
    variables = cloud.shell.execute("echo $COLOUR", _os_env_vars={"COLOUR": "red"})
    after = cloud.shell.execute("echo after", _depends_on=variables, _priority=1)
    assert cloud.result([variables, after]) == [b"red\n", b"after\n"]
    called: list[int] = []
    cloud.shell.execute("true", _callback=called.append)
    eventually(lambda: called)
    with pytest.raises(cloud.JobError):
        cloud.result(slow)
    assert field(slow, "reason") == "timeout"


def test_a_command_is_tried_again_for_its_exit_code():
    jid = cloud.shell.execute(
        "echo try $PICLOUD_ATTEMPT; test $PICLOUD_ATTEMPT -ge 3",
        _retries={"count": 3, "reasons": ["exit_code"]},
    )
    assert cloud.result(jid) == b"try 3\n"
    other = cloud.shell.execute("false", _retries={"count": 3, "reasons": ["oom"]})
    cloud.join(other, ignore_errors=True)
    assert field(other, "attempt") == 1


def test_the_same_command_can_be_answered_from_the_cache():
    text = f"echo {os.urandom(8).hex()}"
    first = cloud.shell.execute(text, _cache=True)
    cloud.join(first)
    again = cloud.shell.execute(text, _cache=True)
    assert cloud.result(again) == cloud.result(first)
    assert field(again, "cached_from") == int(first)


@pytest.mark.timeout(200)  # other services of this machine may hold its cores meanwhile
def test_a_command_can_submit_jobs_itself():
    """And gives them its core while it follows them: the other cores are taken here."""
    others = (os.cpu_count() or 1) - 1
    blockers = (
        cloud.shell.execute_map("sleep {n}", {}, {"n": ["600"] * others}) if others else []
    )
    try:
        jid = cloud.shell.execute("picloud exec -f echo from inside", _priority=1)
        assert cloud.result(jid, timeout=180) == b"from inside\n"
    finally:
        cloud.kill(blockers)


def test_commands_share_a_warm_container():
    cloud.result(cloud.shell.execute("true"))
    begun = time.monotonic()
    for _ in range(5):
        cloud.result(cloud.shell.execute("true"))
    assert time.monotonic() - begun < 2.5


def test_a_command_that_needs_too_much_memory_says_so():
    memory = 3 << 30
    text = f"python -c 'x = bytearray({memory}); x[::4096] = bytes(len(x[::4096])); print(1)'; exit $?"
    jid = cloud.shell.execute(text, _restartable=False)
    with pytest.raises(cloud.JobFailed, match="out of memory") as caught:
        cloud.result(jid)
    assert caught.value.reason == "oom"
    killed = cloud.shell.execute("kill -9 $$")
    cloud.join(killed, ignore_errors=True)
    assert field(killed, "reason") == "exit_code"
    assert "exit code 137" in field(killed, "pilog")
