"""Commands in a real runner: what they get, what comes back, and what stays behind."""

import contextlib
import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from picloud_jupyter.cloud.shell_templates import parse_template
from picloud_jupyter.protocol.shell import CommandFailed, ShellCommand, UploadedFile
from picloud_jupyter.serialize.payload import load
from picloud_kernels.runner.descendants import Descendants
from picloud_kernels.runner.pump import Pump
from picloud_kernels.runner.result_file import Collector, take_copy, use_folder
from tests.tools.runner_harness import RunnerHarness
from tests.tools.service_under_test import eventually


def command(text, **fields):
    return ShellCommand(text, parse_template(text), **fields)


@pytest.fixture
def runner(tmp_path):
    with RunnerHarness(tmp_path) as started:
        started.hello()
        yield started


def run(runner, text, values=None, **fields):
    return runner.call(command(text, **fields), values or {})


def result_of(runner, element):
    """The result, also where it lies in a file."""
    if "file" not in element.frame:
        return element.value
    path = runner.out_dir / element.frame["file"]
    data = path.read_bytes()
    assert len(data) == element.frame["size"]
    path.unlink()
    return load(data)


def is_running(word):
    """Whether a command line of this machine has ``word`` in it."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if word.encode() in path.read_bytes():
                return True
    return False


def test_stdout_is_the_result_and_output_as_well(runner):
    element = run(runner, "echo hi; echo err >&2; echo {a}{b}", {"a": "1", "b": "2"})
    assert element.value == b"hi\n12\n"
    assert element.out == b"hi\n12\n"
    assert element.err == b"err\n"


def test_bytes_that_are_no_text_come_and_go_unchanged(runner):
    value = os.fsdecode(b"\xff\xe9")
    assert run(runner, r"printf '\xfe\x00'; printf '{x}'", {"x": value}).value == (
        b"\xfe\x00\xff\xe9"
    )


def test_values_of_the_map_join_the_common_ones(runner):
    made = command("echo {a} {b}", common=(("a", "same"),))
    assert [e.value for e in runner.map(made, ({"b": "1"},), ({"b": "2"},))] == [
        b"same 1\n",
        b"same 2\n",
    ]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("exit 3", 3, "exit code 3: exit 3"),
        ("echo why >&2; false", 1, "why"),
        ("no_such_program", 127, "command not found"),
        ("/etc/passwd", 126, "not executable"),
        ("kill -TERM $$", 143, "SIGTERM"),
        ("kill -9 $$", 137, "SIGKILL"),
        ("if", 2, "syntax error"),
        ("exit 255", 255, "exit code 255"),
    ],
)
def test_an_exit_code_is_an_end_of_its_own(runner, text, code, words):
    element = run(runner, text)
    assert element.reason == "exit_code"
    assert element.frame["exit"] == code
    assert words in element.failure.message
    assert isinstance(element.failure.exception, CommandFailed)
    assert element.failure.exception.exit_code == code


def test_the_end_of_stderr_is_told_and_all_of_it_is_output(runner):
    element = run(runner, "seq 100000 >&2; printf '\\xff' >&2; exit 1")
    assert len(element.err) == len(b"".join(b"%d\n" % i for i in range(1, 100001))) + 1
    assert "100000\n\\xff" in element.failure.message
    assert element.failure.exception.stderr.endswith(b"100000\n\xff")


def test_an_ignored_exit_code_is_noted_on_stderr(runner):
    element = run(runner, "echo out; exit 4", ignore_exit_status=True)
    assert element.value == b"out\n"
    assert b"exit code 4, which is ignored" in element.err


def test_the_result_may_be_a_file(runner):
    element = run(runner, "echo said; printf '\\x00\\xff' > out.bin", return_file="out.bin")
    assert element.value == b"\x00\xff"
    assert element.out == b"said\n"
    (runner.home / "sub").mkdir()
    element = run(runner, "echo x > y", return_file="y", cwd="sub")
    assert element.value == b"x\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing", "there is no return file"), (".", "regular file"), ("/dev/null", "regular")],
)
def test_a_return_file_that_is_none_is_an_error(runner, name, words):
    element = run(runner, "true", return_file=name)
    assert element.reason == "error"
    assert words in element.failure.message


def test_a_missing_folder_is_an_error_and_nothing_runs(runner):
    element = run(runner, "echo ran", cwd="/no/such/folder")
    assert element.reason == "error"
    assert "/no/such/folder" in element.failure.message
    assert element.out == b""


@pytest.mark.parametrize("size", [60_000, 65_536, 65_537, 5_000_000])
def test_large_results_lie_in_a_file(runner, size):
    made = run(runner, f"head -c {size} /dev/zero")
    assert ("file" in made.frame) is (size > 60_000)
    assert result_of(runner, made) == bytes(size)
    made = run(runner, f"head -c {size} /dev/zero > z", return_file="z")
    assert result_of(runner, made) == bytes(size)
    assert os.listdir(runner.out_dir) == []


def test_a_result_above_the_limit_is_refused_and_removed(runner):
    made = runner.call(command("head -c 1000000 /dev/zero"), {}, max_result_bytes=900_000)
    assert made.reason == "result_too_large"
    made = run(runner, "head -c 1000000 /dev/zero; false")
    assert made.reason == "exit_code"
    assert os.listdir(runner.out_dir) == []


def test_large_output_takes_no_memory_of_the_runner(runner):
    run(runner, "true")
    before = _peak_kilobytes(runner)
    run(runner, "head -c 300000000 /dev/zero")
    assert _peak_kilobytes(runner) < before + 20_000


def _peak_kilobytes(runner):
    status = Path(f"/proc/{runner.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


def test_files_lie_in_the_folder_while_it_runs(runner):
    data = os.urandom(100_000)
    element = run(
        runner,
        "stat -c %a {f}; cmp {f} <(cat {f}); pwd; wc -c < {f}; echo {f}",
        {"f": UploadedFile("prog.tar.gz", data)},
    )
    assert element.value.decode().split() == ["777", str(runner.home), "100000", "prog.tar.gz"]
    assert os.listdir(runner.home) == []


def test_a_script_that_was_sent_can_be_run(runner):
    script = UploadedFile("go.sh", b"#!/bin/sh\necho ran $1\n")
    assert run(runner, "./{script} 5", {"script": script}).value == b"ran 5\n"


def test_files_of_one_name_get_digits_before_the_suffix(runner):
    (runner.home / "data.csv").write_text("mine")
    files = {name: UploadedFile("data.csv", name.encode()) for name in ("a", "b")}
    element = run(runner, "echo {a} {b}; cat {a} {b}", files)
    first, second, content = element.value.decode().split()
    for name in (first, second):
        assert name.startswith("data-")
        assert name.endswith(".csv")
        assert name[5:-4].isdecimal()
    assert first != second
    assert content == "ab"
    assert os.listdir(runner.home) == ["data.csv"]
    assert (runner.home / "data.csv").read_text() == "mine"


def test_a_file_that_the_command_changed_stays(runner):
    run(
        runner,
        "echo more >> {f}; rm {g}",
        {"f": UploadedFile("f", b"x"), "g": UploadedFile("g", b"")},
    )
    assert os.listdir(runner.home) == ["f"]


def test_a_thousand_files_are_quick(runner):
    files = {f"f{i}": UploadedFile(f"part{i}", b"%d\n" % i) for i in range(1000)}
    names = " ".join(f"{{f{i}}}" for i in range(1000))
    begun = time.monotonic()
    element = run(runner, f"cat {names} | wc -l", files)
    assert element.value.strip() == b"1000"
    assert time.monotonic() - begun < 5


def test_the_surroundings_of_a_command(runner):
    text = "cat; echo $PYTHONPATH; echo $PICLOUD_JID; pwd; echo $0 $-"
    lines = run(runner, text).value.decode().splitlines()
    assert lines[:3] == [str(runner.home), "1", str(runner.home)]
    assert lines[3].startswith("/bin/bash")
    assert "i" not in lines[3].split()[1]
    assert run(runner, "env; cd /; export X=1; umask 0").reason == "done"
    assert os.readlink(f"/proc/{runner.process.pid}/cwd") == str(runner.home)


def test_python_programs_print_at_once(runner):
    text = f"{sys.executable} -c 'import time; print(1); time.sleep(60)'"
    runner.start_chunk(*_payload(command(text)))
    assert os.read(runner.out, 1) == b"1"  # comes before the program's end, or never


def _payload(made):
    from picloud_jupyter.serialize.payload import dump_call, dump_function

    return dump_function(made), [b"".join(dump_call(({},), {}))]


@pytest.mark.parametrize(
    "start",
    [
        "sleep {s} &",
        "nohup sleep {s} >/dev/null 2>&1 &",
        "setsid sleep {s} &",
        "(setsid sh -c 'trap \"\" TERM HUP; sleep {s}; true' &)",
        f"{sys.executable} -c 'import os, time; os.fork() or os.setsid() or os.fork() or time.sleep({{s}})'",
    ],
)
def test_nothing_of_a_command_outlives_it(runner, start):
    seconds = str(10_000 + os.getpid() * 10 + abs(hash(start)) % 10)
    begun = time.monotonic()
    element = run(runner, f"{start}\necho started", {"s": seconds})
    assert element.value == b"started\n"
    assert time.monotonic() - begun < 5
    assert not is_running(seconds)
    with subprocess.Popen(["sleep", seconds]) as other:
        try:
            eventually(lambda: is_running(seconds))
        finally:
            other.kill()
    assert run(runner, "echo next").value == b"next\n"


def test_a_script_that_kills_its_group_kills_itself_alone(runner):
    assert run(runner, "trap 'kill 0' EXIT; echo a").reason in ("done", "exit_code")
    assert run(runner, "kill -9 0").frame["exit"] == 137
    assert run(runner, "echo next").value == b"next\n"


def test_children_that_were_there_before_are_left_alone(runner):
    def start_sleep():
        import subprocess

        return subprocess.Popen(["sleep", "1000"]).pid

    pid = runner.call(start_sleep).value
    assert run(runner, "sleep 1000 & echo x").value == b"x\n"
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("after", [7_985, 7_990, 7_999, 8_000])
def test_a_secret_at_the_cut_of_stderr_leaves_no_part_of_it(runner, after):
    text = f"printf 'é%.0s' $(seq 5000) >&2; printf $TOKEN >&2; printf 'x%.0s' $(seq {after}) >&2; exit 3"
    element = runner.call(command(text), {}, secrets=[["TOKEN", "s3cret-väluë-0123"]])
    failure = element.failure
    assert isinstance(failure.exception, CommandFailed)
    kept = failure.exception.stderr.decode() + failure.message + failure.traceback
    assert "xxxx" in kept
    assert not [part for part in ("s3cr", "et-v", "0123") if part in kept]


def test_a_child_that_became_another_user_is_left_and_told(monkeypatch, capfd):
    def refuse(_pid, _number):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with Descendants() as descendants:
        process = subprocess.Popen(["sleep", "1000"])
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", refuse)
            descendants.end()
        assert process.poll() is None
    assert f"process {process.pid} runs as another user" in capfd.readouterr().err
    process.kill()
    process.wait()


def test_output_comes_while_it_runs(runner):
    runner.start_chunk(*_payload(command("echo first; echo second >&2; sleep 60")))
    out, err = bytearray(), bytearray()
    reader = threading.Thread(target=lambda: err.extend(os.read(runner.err, 100)), daemon=True)
    reader.start()
    out += os.read(runner.out, 100)
    reader.join(10)
    assert (bytes(out), bytes(err)) == (b"first\n", b"second\n")


def test_output_that_cannot_be_kept_ends_the_command_and_is_told():
    def full(_data):
        raise OSError(errno.ENOSPC, "No space left on device")

    process = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    with open(os.devnull, "wb") as nowhere:
        pump = Pump(process.stdout, nowhere.fileno(), full, process.kill)
        assert process.wait(20) == -signal.SIGKILL
        with pytest.raises(OSError, match="No space"):
            pump.finish()


def test_a_copy_that_does_not_fit_leaves_nothing(tmp_path):
    use_folder(str(tmp_path))

    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output"):
        take_copy(Broken(bytes(100_000)))
    collector = Collector()
    collector.write(bytes(100_000))
    assert len(os.listdir(tmp_path)) == 1
    collector.discard()
    assert os.listdir(tmp_path) == []
