"""What every kind of container does, whoever makes it: the contract of `Container`."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from picloud_services.agent import cgroup, syscalls
from picloud_services.agent.container import ContainerError
from tests.tools.container_harness import Lab, kinds_here, open_labs
from tests.tools.platforms_page import skip_as_the_page_says

pytestmark = pytest.mark.isolation


@pytest.fixture(scope="module")
def all_labs() -> Iterator[dict[str, Lab]]:
    with open_labs("containers-") as found:
        yield found
        # the plain kind did: this process goes on to other tests
        syscalls.adopt_orphans(wanted=False)


@pytest.fixture(params=[kind.value for kind in kinds_here()])
def lab(request: pytest.FixtureRequest, all_labs: dict[str, Lab]) -> Lab:
    return all_labs[request.param]


@pytest.fixture
def folder(lab: Lab) -> Path:
    place = lab.folder / f"files-{time.monotonic_ns()}"
    (place / "sub").mkdir(parents=True)
    (place / "data.csv").write_text("1,2")
    (place / "sub" / "more.csv").write_text("3,4")
    for path in (place, *place.rglob("*")):
        os.chown(path, lab.uid, lab.uid if lab.uid != os.geteuid() else -1)
    return place


def test_start_when_given_code_then_paths_of_config_hold(lab: Lab) -> None:
    code = """if True:
        import json, os, sys
        inside = json.loads(sys.argv[1])
        for name in ("home", "out_dir"):
            with open(inside[name] + "/file", "w") as file:
                file.write(name)
        print(json.dumps({
            "bundle": open(inside["bundle"] + "/main.py").read(),
            "code": open(inside["code"]).read(),
            "home": os.environ["HOME"] == inside["home"] == os.path.expanduser("~"),
            "cwd": os.getcwd() == inside["home"],
            "run_dir": sorted(os.listdir(inside["run_dir"])),
            "mode": os.stat(inside["home"]).st_mode & 0o777,
            "tmp": os.access(os.environ["TMPDIR"], os.W_OK),
        }))"""

    def work():
        inside = lab.container().inside_paths(lab.request(1, 2))
        if not lab.isolated:  # its paths are those of one request
            return None
        return inside

    inside = lab.do(work)
    if inside is None:
        pytest.skip("the plain kind's paths are the host's: see the next test")
    found = lab.run(code, arguments=(json.dumps(inside),)).words
    assert found["bundle"] == "print('bundle')"
    assert found["code"] == "zip"
    assert found["home"]
    assert found["cwd"]
    assert {"bundle", "code.zip", "out"} <= set(found["run_dir"])
    assert found["mode"] == 0o700
    assert found["tmp"]


def test_start_when_it_writes_to_out_then_the_host_finds_it(lab: Lab) -> None:
    def during(container, running, request):
        end_at = time.monotonic() + 20
        while not os.path.exists(f"{request.out_dir}/done"):
            assert time.monotonic() < end_at
            time.sleep(0.005)
        return Path(request.out_dir, "file").read_text()

    code = """if True:
        import os
        out = os.environ["PICLOUD_RUN_DIR"] + "/out" if os.path.isdir("/run/picloud/out") else os.environ["OUT"]
        open(out + "/file", "w").write("result")
        os.mkdir(out + "/done")
        """
    # the plain kind has no fixed path: it is told where
    out = lab.folder / f"out-{time.monotonic_ns()}"
    out.mkdir()
    os.chown(out, lab.uid, -1)
    request = {"out_dir": str(out), "variables": {"OUT": str(out)}}
    assert lab.run(code, during=during, request=request).during == "result"


def test_start_when_there_is_a_folder_then_it_reads_through_and_writes_stay_inside(
    lab: Lab, folder: Path
) -> None:
    code = """if True:
        import json, os
        before = open("data.csv").read() + open("sub/more.csv").read()
        open("data.csv", "a").write(",changed")
        open("sub/new.csv", "w").write("new")
        os.unlink("sub/more.csv")
        print(json.dumps([before, os.getcwd(), open("data.csv").read(), os.listdir("sub")]))"""
    before, cwd, after, names = lab.run(code, folder=str(folder)).words
    assert before == "1,23,4"
    assert cwd == str(folder)
    assert after == "1,2,changed"
    assert names == ["new.csv"]
    if lab.isolated:
        assert (folder / "data.csv").read_text() == "1,2"
        assert [path.name for path in (folder / "sub").iterdir()] == ["more.csv"]


def test_start_when_descriptors_are_passed_then_exactly_those_are_open(lab: Lab) -> None:
    code = """if True:
        import json, os
        number = int(os.environ["NUMBER"])
        os.write(number, b"hello")
        print(json.dumps(sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n))))"""

    def work():
        read, write = os.pipe()
        secret = os.memfd_create("secret", 0)  # inheritable, and none of a job's business
        ended = lab._run(
            code, None, (), {"pass_fds": (write,), "variables": {"NUMBER": str(write)}}, {}
        )
        os.close(write)
        os.close(secret)
        with open(read, "rb") as file:
            return [write, ended.words, file.read().decode()]

    number, found, said = lab.do(work)
    assert said == "hello"
    assert found == [0, 1, 2, number]


@pytest.mark.parametrize(
    ("code", "signalled", "number"),
    [
        ("import os; os._exit(0)", False, 0),
        ("import os; os._exit(7)", False, 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", True, signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", True, signal.SIGTERM),
        ("import ctypes; ctypes.string_at(0)", True, signal.SIGSEGV),
    ],
)
def test_wait_status_when_it_ends_then_code_and_signal_are_told_apart(
    lab: Lab, code: str, signalled: bool, number: int
) -> None:
    status = lab.run(code).status
    assert os.WIFSIGNALED(status) is signalled
    assert (os.WTERMSIG(status) if signalled else os.WEXITSTATUS(status)) == number


def test_start_then_nothing_of_the_service_environment_is_seen(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_SECRET", "canary")
    monkeypatch.setenv("TZ", "Europe/Vienna")
    code = """if True:
        import glob, json, os
        seen = b""
        for path in ("/proc/self/environ", "/proc/1/environ"):
            try:
                seen += open(path, "rb").read()
            except OSError:
                pass
        print(json.dumps([dict(os.environ), "canary" in seen.decode("utf-8", "replace")]))"""
    spec: dict[str, Any] = {"variables": (("A", "spec"), ("B", "spec")), "cpu_cores": 2.0}
    found, leaked = lab.run(code, request={"variables": {"B": "request"}}, **spec).words
    assert not leaked
    assert "SERVICE_SECRET" not in found
    assert (found["A"], found["B"]) == ("spec", "request")
    assert found["OMP_NUM_THREADS"] == found["PYTHON_CPU_COUNT"] == "2"
    assert found["TZ"] == "Europe/Vienna"
    assert found["PATH"].endswith(
        ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    )


_SETTLE = """
import os, subprocess, sys, time
mark = sys.argv[1]
def away():
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(300)
        os._exit(0)
    os.wait()
for _ in range(3):
    away()
"""
_BOMB = """
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.001)
"""


def _kill_when_it_runs(container, running, request):
    end_at = time.monotonic() + 20
    while len(_with_mark(request.container)) < 4:
        assert time.monotonic() < end_at, "the processes did not start"
        time.sleep(0.01)
    began = time.monotonic()
    container.kill(running)
    taken = time.monotonic() - began
    return [taken, len(_with_mark(request.container))]


def _with_mark(mark: str) -> list[int]:
    """Our processes that have ``mark`` as an argument and are not dead."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if mark.encode() in words[2:]:
                found.append(int(name))
    return found


@pytest.mark.parametrize("rest", ["time.sleep(300)", _BOMB], ids=["sleeping", "fork_bomb"])
def test_kill_when_it_made_itself_independent_then_nothing_is_left_in_a_second(
    lab: Lab, rest: str
) -> None:
    def work():
        out, out_fd = os.pipe()
        request = lab.request(out_fd, out_fd, spec={"pids": 200})
        tail = ("-S", "-E", "-s", "-c", _SETTLE + rest, request.container)
        container = lab.container()
        request = dataclasses.replace(request, command_tail=tail)
        running = container.start(request)
        os.close(out_fd)
        try:
            return _kill_when_it_runs(container, running, request)
        finally:
            os.waitpid(running.pid, 0)
            container.clean(request, running)
            container.clean(request, running)
            container.clean(request, None)
            os.close(out)

    taken, left = lab.do(work)
    assert left == 0
    assert taken < 1.0


def test_clean_when_the_supervisor_crashed_then_the_container_ends_and_nothing_is_left(
    lab: Lab,
) -> None:
    def work():
        _out, out_fd = os.pipe()
        request = lab.request(out_fd, out_fd)
        tail = ("-S", "-E", "-s", "-c", _SETTLE + "time.sleep(300)", request.container)
        request = dataclasses.replace(request, command_tail=tail)
        supervisor = os.fork()
        if supervisor == 0:
            lab.container().start(request)
            signal.pause()
        end_at = time.monotonic() + 20
        while len(_with_mark(request.container)) < 4:
            assert time.monotonic() < end_at
            time.sleep(0.01)
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)
        container = lab.container()
        container.clean(request, None)
        end_at = time.monotonic() + 2
        while _with_mark(request.container) and time.monotonic() < end_at:
            time.sleep(0.005)  # the kernel ends them when their supervisor's death is told
        container.clean(request, None)
        tree = cgroup.detect()
        groups = [
            g for g in (tree.group(request.container) if tree else ()) if os.path.exists(g)
        ]
        return [len(_with_mark(request.container)), os.path.exists(request.layer_dir), groups]

    assert lab.do(work) == [0, False, []]


def test_start_when_the_python_is_missing_then_the_error_says_so_and_nothing_is_left(
    lab: Lab,
) -> None:
    def work():
        request = lab.request(1, 2)
        python = dataclasses.replace(
            request.spec.host_python, executable="/nowhere/bin/python", prefix="/nowhere"
        )
        spec = dataclasses.replace(request.spec, host_python=python)
        try:
            lab.container().start(dataclasses.replace(request, spec=spec))
        except ContainerError as exc:
            return [exc.reason, str(exc), os.path.exists(request.layer_dir)]

    reason, text, left = lab.do(work)
    assert reason == "env_missing"
    assert "/nowhere" in text
    assert not left


def test_clean_when_the_job_left_closed_and_very_deep_folders_then_all_is_removed(
    lab: Lab,
) -> None:
    code = """if True:
        import os
        os.makedirs("closed/inner")
        open("closed/inner/file", "w").write("x")
        os.chmod("closed/inner", 0)
        os.chmod("closed", 0)
        for _ in range(3000):
            os.mkdir("deep")
            os.chdir("deep")
        os.symlink("/etc", "link")
        """
    assert lab.run(code).status == 0  # the harness asserts that the layer is gone
    assert os.path.exists("/etc/passwd")


def test_start_then_processes_threads_and_pools_work(lab: Lab) -> None:
    code = """if True:
        import json, multiprocessing, subprocess, sys, threading
        if __name__ == "__main__":
            thread = threading.Thread(target=print)
            thread.start(); thread.join()
            context = multiprocessing.get_context("fork")
            with context.Pool(2) as pool:
                found = pool.map(abs, [-1, -2])
            lock = context.Lock()
            with lock:
                said = subprocess.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout
            print(json.dumps([found, said]))"""
    assert lab.run(code).words == [[1, 2], "hi\n"]


def test_limits_when_memory_is_over_then_it_is_killed_and_counted(lab: Lab) -> None:
    if not lab.do(lambda: cgroup.detect() is not None):
        skip_as_the_page_says("memory is read five times a second")
    ended = lab.run("x = bytearray(200 << 20); print(len(x))", memory_bytes=100 << 20)
    assert os.WIFSIGNALED(ended.status)
    assert os.WTERMSIG(ended.status) == signal.SIGKILL
    assert ended.oom_count >= 1


def test_limits_when_there_are_too_many_processes_then_fork_fails(lab: Lab) -> None:
    if os.geteuid() == 0 and not lab.do(lambda: cgroup.detect() is not None) and lab.uid == 0:
        pytest.skip("root is not counted without control groups")
    code = """if True:
        import json, os, time
        made = 0
        try:
            while made < 2000:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                made += 1
        except OSError as exc:
            print(json.dumps([made, exc.errno]), flush=True)
        import signal
        os.kill(os.getpid(), signal.SIGKILL)"""

    def during(container, running, request):
        end_at = time.monotonic() + 20
        while os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            assert time.monotonic() < end_at
            time.sleep(0.005)
        container.kill(running)

    made, number = lab.run(code, during=during, pids=40).words
    assert number == errno.EAGAIN
    assert made < 1000


def test_limits_when_the_cpu_quota_is_a_fifth_then_time_is_stretched(lab: Lab) -> None:
    if not lab.do(lambda: cgroup.detect() is not None):
        skip_as_the_page_says("cores are not limited")
    code = """if True:
        import json, time
        began = time.monotonic()
        while time.process_time() < 0.3:
            pass
        print(json.dumps(time.monotonic() - began))"""
    assert lab.run(code, cpu_cores=0.2).words > 0.8


def test_counters_when_it_works_then_they_grow(lab: Lab) -> None:
    if not lab.do(lambda: cgroup.detect() is not None):
        skip_as_the_page_says("figures are read from /proc")

    def during(container, running, request):
        reader = cgroup.CgroupReader(running.cgroups)
        end_at = time.monotonic() + 20
        while reader.read().memory_bytes < 60 << 20:
            assert time.monotonic() < end_at
            time.sleep(0.005)
        found = reader.read()
        reader.close()
        return [found.cpu_seconds, found.memory_peak_bytes, found.processes]

    cpu, peak, processes = lab.run(
        "import time; x = bytearray(b'x' * (64 << 20)); time.sleep(0.5)", during=during
    ).during
    assert 0 < cpu < 10
    assert peak >= 60 << 20
    assert processes >= 1
