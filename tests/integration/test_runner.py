"""The runner as a process: what each element may do, how it ends, and what the next one finds."""

import errno
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import cloudpickle
import numpy as np
import pytest

from picloud_jupyter.protocol.frames import pack_frame
from picloud_jupyter.serialize.payload import digest, dump_call, dump_function, load
from picloud_jupyter.transport.inside import job_key
from picloud_kernels.runner import calls
from picloud_services.agent import runner_frames
from tests.tools.runner_harness import LEASE, LEASE_KEY, RunnerHarness


@pytest.fixture
def runner(tmp_path):
    """A runner of the test's own, which has said hello."""
    with RunnerHarness(tmp_path) as made:
        made.hello()
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A runner for tests that leave it as they found it."""
    with RunnerHarness(tmp_path_factory.mktemp("runner")) as made:
        made.hello()
        yield made


def test_hello_says_who_it_is(tmp_path):
    with RunnerHarness(tmp_path) as made:
        hello = made.hello()
        assert hello["python_version"] == ".".join(map(str, sys.version_info[:3]))
        assert hello["rss_bytes"] > 0


def test_call_gives_value_figures_and_output(shared):
    def work(x):
        print("out", x)
        print("err", file=sys.stderr)
        return x * 2

    element = shared.call(work, 21)
    assert element.value == 42
    assert (element.out, element.err) == (b"out 21\n", b"err\n")
    assert abs(element.frame["at"] - time.time()) < 30
    assert 0 <= element.frame["s"] < 5
    assert element.frame["u"] >= 0


def test_cpu_of_the_element_and_of_its_children_is_counted(shared):
    def burn(where):
        code = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
        if where == "here":
            exec(code)
        else:
            subprocess.run([sys.executable, "-S", "-c", code], check=True)

    for where in ("here", "child"):
        frame = shared.call(burn, where).frame
        assert frame["u"] + frame["y"] > 0.15


def test_map_gives_each_element_its_own_output_and_outcome(shared):
    def work(x):
        print(x)
        if x == 2:
            raise ValueError(x)
        return x

    elements = shared.map(work, *((x,) for x in range(4)))
    assert [e.reason for e in elements] == ["done", "done", "error", "done"]
    assert [e.out for e in elements] == [b"0\n", b"1\n", b"2\n", b"3\n"]
    assert [e.frame["p"] for e in elements] == [0, 1, 2, 3]


def test_function_is_loaded_once_per_digest(shared):
    calls = []

    def remember():
        calls.append(1)
        return len(calls)

    payload = dump_function(remember)
    assert [e.value for e in shared.map(payload, (), ())] == [1, 2]
    assert shared.call(payload).value == 3  # the body is left out the second time


# ---------------------------------------------------------------------- failures


def test_exception_shows_source_lines_and_none_of_our_frames(shared):
    def inner():
        raise KeyError("gone")  # here

    def outer():
        try:
            inner()
        except KeyError as exc:
            raise ValueError("bad") from exc

    element = shared.call(outer)
    text = element.failure.traceback
    assert element.reason == "error"
    assert "# here" in text
    assert "direct cause" in text
    assert "picloud_kernels" not in text
    assert isinstance(element.failure.exception.__cause__, KeyError)


def test_exception_of_a_notebook_cell_shows_its_code(shared):
    source = "def cell_function():\n    marker = 1\n    raise RuntimeError(marker)\n"
    import linecache

    name = "/tmp/ipykernel_1/12345.py"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), namespace)
    text = shared.call(namespace["cell_function"]).failure.traceback
    assert "raise RuntimeError(marker)" in text
    assert name in text


def test_exception_classes_by_value_are_the_clients_own(shared):
    class MyError(Exception):
        pass

    def fail():
        raise MyError("mine")

    assert isinstance(shared.call(fail).failure.exception, MyError)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: sys.exit(3), "sys.exit(3)"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), "SIGINT"),
        (lambda: (_ for _ in ()).throw(MemoryError), "memory"),
    ],
)
def test_exits_end_the_element_and_not_the_runner(shared, function, words):
    element = shared.call(function)
    assert element.reason == "error"
    assert words in element.failure.message
    assert shared.call(int).value == 0


def test_deep_recursion_is_an_error_of_the_element(shared):
    def deep(n):
        return deep(n + 1)

    element = shared.call(deep, 0)
    assert element.reason == "error"
    assert element.failure.type_name == "RecursionError"
    assert shared.call(int).value == 0


def test_unpicklable_exception_still_has_its_words(shared):
    class Odd(Exception):
        def __init__(self):
            super().__init__("odd words")
            self.lock = threading.Lock()

    def fail():
        raise Odd

    failure = shared.call(fail).failure
    assert failure.exception is None
    assert failure.message == "odd words"


def test_unpicklable_result_is_named_by_path(shared):
    element = shared.call(lambda: {"a": [threading.Lock()]})
    assert element.reason == "result_unserializable"
    assert "result['a'][0]" in element.failure.message


def test_result_above_the_limit_says_both_sizes(shared):
    element = shared.call(lambda: b"x" * 5000, max_result_bytes=1000)
    assert element.reason == "result_too_large"
    assert "1,000" in element.failure.message


def test_arguments_that_do_not_load_say_both_versions(shared):
    class Trap:
        def __reduce__(self):
            return (divmod, (1, 0))

    element = shared.call(lambda x: x, Trap())
    assert element.reason == "input_undeserializable"
    assert "ZeroDivisionError" in element.failure.traceback
    assert "Made with Python" in element.failure.message


def test_arguments_whose_failure_has_no_text_are_told_all_the_same(shared):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def refuse():
        raise Mute

    class Trap:
        def __reduce__(self):
            return refuse, ()

    element = shared.call(lambda x: x, Trap())
    assert element.reason == "input_undeserializable"
    assert "Mute" in element.failure.message
    assert shared.call(lambda: 5).value == 5


def test_function_whose_file_cannot_be_mapped_fails_its_elements_alone(shared, tmp_path):
    path = tmp_path / "empty"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    records = [b"".join(dump_call((), {}))] * 2
    shared.start_chunk(
        b"", records, files=[[-1, "", 0, ""]], descriptors=[descriptor], function="e" * 64
    )
    elements, _ = shared.finish_chunk()
    os.close(descriptor)
    assert [e.reason for e in elements] == ["input_undeserializable"] * 2
    assert "empty file" in elements[0].failure.message
    assert shared.call(lambda: 5).value == 5


def test_missing_module_is_named(shared, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def f(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    element = shared.call(only_here.f)
    assert element.reason == "input_undeserializable"
    assert "only_here" in element.failure.message
    assert isinstance(element.failure.exception, ModuleNotFoundError)


def test_out_of_space_has_its_own_reason(shared):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    assert shared.call(fail).reason == "disk_full"


@pytest.mark.parametrize("how", [lambda: os._exit(7), lambda: os.kill(os.getpid(), 9)])
def test_end_of_the_interpreter_is_seen_by_the_supervisor(runner, how):
    runner.start_chunk(dump_function(how), [b"".join(dump_call((), {}))])
    assert runner.receive() is None
    assert runner.process.wait(10) in (7, -signal.SIGKILL)


# ---------------------------------------------------------------------- large payloads


def test_large_result_goes_to_a_file_with_size_and_digest(shared):
    element = shared.call(np.arange, 200_000)
    path = shared.out_dir / element.frame["file"]
    data = path.read_bytes()
    assert element.body == b""
    assert (len(data), digest([data])) == (element.frame["size"], element.frame["digest"])
    assert (load(data) == np.arange(200_000)).all()


def test_large_arguments_and_function_come_as_files_and_stay_untouched(shared, tmp_path):
    table = np.arange(50_000.0)

    def double_in_place(array):
        array *= 2
        return float(array[-1] + table[-1])

    function = dump_function(double_in_place)
    record = b"".join(dump_call((np.arange(100_000.0),), {}))
    descriptors, files = [], []
    for position, data in ((-1, function), (1, record)):
        path = tmp_path / f"payload{position}"
        path.write_bytes(data)
        descriptors.append(os.open(path, os.O_RDONLY))
        files.append([position, "", len(data), digest([data])])
    small = b"".join(dump_call((np.ones(3),), {}))
    shared.start_chunk(
        b"", [small, b""], files=files, descriptors=descriptors, function=digest([function])
    )
    elements, _ = shared.finish_chunk()
    for fd in descriptors:
        os.close(fd)
    assert [e.value for e in elements] == [2 + 49_999, 199_998 + 49_999]
    assert (tmp_path / "payload1").read_bytes() == record


# ---------------------------------------------------------------------- tokens


def test_elements_without_a_token_are_not_started(shared):
    payload = dump_function(lambda x: x)
    records = [b"".join(dump_call((x,), {})) for x in range(5)]
    shared.start_chunk(payload, records, tokens=3)
    elements, end = shared.finish_chunk()
    assert [e.value for e in elements] == [0, 1, 2]
    assert end["lease"] == LEASE
    assert shared.call(int).value == 0


# ---------------------------------------------------------------------- what the next one finds


def test_surroundings_are_brought_back(shared):
    def disturb():
        os.chdir("/")
        os.environ["LEFT_OVER"] = "1"
        os.environ["PATH"] = "/nowhere"
        del os.environ["HOME"]
        sys.path.insert(0, "/left/over")
        os.umask(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        signal.alarm(1)
        sys.setrecursionlimit(5000)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os.dup2(sys.stdout.fileno(), 1)
        os.environ = {}  # type: ignore[assignment]  # noqa: B003

    def look():
        print("seen")
        return {
            "cwd": os.getcwd(),
            "environment": {
                k: v for k, v in sorted(os.environ.items()) if not k.startswith("PICLOUD_")
            },
            "path": sys.path,
            "umask": os.umask(0o022),
            "term": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
            "usr1": signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL,
            "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "alarm": signal.alarm(0),
            "limit": sys.getrecursionlimit(),
        }

    before = shared.call(look)
    assert shared.call(disturb).value is None
    after = shared.call(look)
    assert after.value == before.value
    assert after.out == b"seen\n"


def test_removed_working_directory_is_survived(runner):
    def vanish():
        import tempfile

        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)

    here = runner.call(os.getcwd).value
    assert runner.call(vanish).value is None
    assert runner.call(os.getcwd).value == here


def test_result_comes_when_its_element_took_the_folder_away_and_no_other_follows(runner):
    home = str(runner.home)

    def take_away(x):
        os.chdir("/")
        os.rename(home, home + "2")
        return x

    record = b"".join(dump_call((7,), {}))
    runner.start_chunk(dump_function(take_away), [record, record])
    elements, end = runner.finish_chunk()
    assert [e.value for e in elements] == [7]
    assert end["spent"] == 1


def test_streams_that_do_not_wait_wait_again_for_the_next_element(shared):
    def hurry():
        os.set_blocking(1, False)
        os.set_blocking(2, False)

    assert shared.call(hurry).value is None
    assert shared.call(lambda: (os.get_blocking(1), os.get_blocking(2))).value == (True, True)


def test_closed_streams_and_descriptors_are_opened_again(shared):
    def close():
        sys.stdout.close()
        os.close(2)

    assert shared.call(close).value is None
    element = shared.call(lambda: (print("a"), print("b", file=sys.stderr)))
    assert (element.out, element.err) == (b"a\n", b"b\n")


def test_output_of_c_and_of_children_is_in_order(shared):
    def work():
        import ctypes

        print("python")
        ctypes.CDLL(None).printf(b"c %d\n", ctypes.c_int(5))
        subprocess.run(["/bin/echo", "child"], check=True)
        os.write(1, b"\xff\n")
        print("\udcff")

    assert shared.call(work).out == b"python\nc 5\nchild\n\xff\n\\udcff\n"


def test_unfinished_line_belongs_to_the_element_that_wrote_it(shared):
    first, second = shared.map(lambda x: print(x, end=""), (1,), (2,))
    assert (first.out, second.out) == (b"1", b"2")


def test_leftover_threads_and_children_are_counted(runner):
    def leave():
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        subprocess.Popen(["/bin/sleep", "60"])

    runner.start_chunk(dump_function(leave), [b"".join(dump_call((), {}))])
    _, end = runner.finish_chunk()
    assert (end["threads"], end["children"]) == (1, 1)
    assert end["rss_bytes"] > 1_000_000
    runner.call(lambda: subprocess.run(["/usr/bin/pkill", "-P", str(os.getpid())], check=False))


def test_forked_child_that_returns_does_not_become_a_second_runner(shared):
    def fork():
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "once"

    assert [e.value for e in shared.map(fork, (), ())] == ["once", "once"]


def test_eight_runners_draw_eight_numbers_and_one_goes_on_with_its_stream(tmp_path):
    def draw():
        return random.random(), float(np.random.random())

    seen = []
    for n in range(4):
        (tmp_path / str(n)).mkdir()
        with RunnerHarness(tmp_path / str(n)) as made:
            made.hello()
            seen += [e.value for e in made.map(draw, (), ())]
    assert len({a for a, _ in seen}) == len({b for _, b in seen}) == 8


# ---------------------------------------------------------------------- what an element sees


def test_job_knows_itself_and_so_do_its_children(shared):
    def look():
        from picloud_jupyter.transport.inside import current_job

        code = (
            "from picloud_jupyter.transport.inside import current_job as c; j = c(); "
            "print(j.jid, j.key, j.api_socket)"
        )
        environment = {**os.environ, "PYTHONPATH": sys.path[-1]}
        child = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        job = current_job()
        assert job is not None
        return job.jid, job.key, job.api_socket, child.stdout.split(), child.stderr

    jid, key, api_socket, child, errors = shared.call(look, first_jid=77).value
    assert jid == 77
    assert key == job_key(1000, 77, 1, LEASE, LEASE_KEY)
    assert child == ["77", key, api_socket], errors
    assert api_socket.endswith("/api.sock")


def test_values_of_classes_made_here_are_instances_here(shared):
    import dataclasses

    @dataclasses.dataclass
    class Point:
        x: int

    point = shared.call(lambda p: Point(p.x + 1), Point(1)).value
    assert isinstance(point, Point)


def test_main_is_empty_and_not_the_runner(shared):
    def look():
        import __main__

        return sorted(vars(__main__)), sys.argv, sys.prefix

    names, arguments, prefix = shared.call(look).value
    assert "hello_frame" not in names
    assert arguments == [""]
    assert prefix == sys.prefix


def test_profile_fits_a_header_whatever_its_names_are():
    assert len(json.dumps("\u2603")) - 2 == 6  # bytes for a character
    assert 6 * calls.MAX_PROFILE_CHARACTERS + 64 * 1024 < runner_frames.MAX_HEADER_BYTES


def test_profile_comes_back_as_text(shared):
    element = shared.call(lambda: sorted(range(10)), profile=True)
    assert "cumulative" in element.frame["profile"]
    assert "sorted" in element.frame["profile"]


def test_partials_methods_and_builtins_run(shared):
    assert shared.call(functools.partial(pow, 2), 5).value == 32
    assert shared.call("abc".upper).value == "ABC"
    assert shared.call(sorted, [2, 1]).value == [1, 2]


def test_folder_is_the_working_directory_and_first_on_the_path(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "beside.py").write_text("x = 5\n")

    def work():
        import beside  # type: ignore[import-not-found]

        return os.getcwd(), beside.x, sys.path[0]

    with RunnerHarness(tmp_path, submitting_folder=str(folder)) as made:
        made.hello()
        assert made.call(work).value == (str(folder), 5, str(folder))


def test_stop_and_a_closed_link_end_the_runner(tmp_path):
    for name in ("stop", "closed"):
        (tmp_path / name).mkdir()
        with RunnerHarness(tmp_path / name) as made:
            made.hello()
            made.call(lambda: threading.Thread(target=time.sleep, args=(60,)).start())
            if name == "stop":
                made.send({"t": "stop"})
            else:
                made.socket.shutdown(1)
            assert made.process.wait(10) == 0


def test_newer_peer_is_refused_in_words(tmp_path):
    with RunnerHarness(tmp_path) as made:
        made.hello()
        made.socket.sendall(pack_frame({"t": "hello", "wire": 99, "oldest": 99, "role": "s"}))
        received = made.receive()
        assert received is not None
        assert received[0]["t"] == "refused"
        assert made.process.wait(10) != 0


def test_cloudpickle_of_the_bundle_is_the_one_that_runs(shared):
    assert shared.call(lambda: __import__("cloudpickle").__version__).value == (
        cloudpickle.__version__
    )
