"""What code in a container cannot do, in the isolated kinds."""

import ast
import ctypes
import errno
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from picloud_jupyter.protocol.jobs import ContainerKind
from tests.tools.container_harness import Lab, isolated_kinds, open_labs, python_of_tests

pytestmark = [pytest.mark.isolation, pytest.mark.root]


@pytest.fixture(scope="module")
def all_labs() -> Iterator[dict[str, Lab]]:
    with open_labs("isolation-") as found:
        yield found


@pytest.fixture(params=isolated_kinds())
def lab(request: pytest.FixtureRequest, all_labs: dict[str, Lab]) -> Lab:
    return all_labs[request.param]


_TRY = """
import json, os, socket
def attempt(function, *arguments):
    try:
        return ["done", repr(function(*arguments))[:200]]
    except OSError as exc:
        return ["refused", exc.errno]
"""


def test_secrets_of_the_machine_are_denied(lab: Lab) -> None:
    code = (
        _TRY
        + """
def read(path):
    with open(path, "rb") as file:
        return file.read(100)
paths = ["/etc/shadow", "/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/sda", "/dev/vda"]
folders = ["/root", "/run", "/srv", "/var/log", "/var/tmp", "/tmp", "/sys/fs/cgroup", "/sys/kernel"]
print(json.dumps([{p: attempt(read, p)[0] for p in paths},
                  {p: attempt(os.listdir, p) for p in folders}, os.listdir("/home")]))"""
    )
    files, folders, homes = lab.run(code).words
    assert set(files.values()) == {"refused"}
    for path in ("/srv", "/var/log", "/var/tmp", "/tmp"):
        assert folders[path][0] == "done", path
        assert set(ast.literal_eval(folders[path][1])) <= on_the_way_to_python(path), path
    assert folders["/run"] == ["done", "['picloud']"]
    assert folders["/sys/fs/cgroup"][0] == folders["/sys/kernel"][0] == "refused"
    assert {"picloud"} <= set(homes) <= {"picloud"} | on_the_way_to_python("/home")


def on_the_way_to_python(folder: str) -> set[str]:
    """Return what of ``folder`` may be there, since the tests' own Python lies below it."""
    below = [Path(p) for p in python_of_tests().paths if Path(p).is_relative_to(folder)]
    return {path.relative_to(folder).parts[0] for path in below}


def test_processes_of_the_machine_are_invisible_and_proc_1_is_bwrap(lab: Lab) -> None:
    code = (
        _TRY
        + """
pids = [n for n in os.listdir("/proc") if n.isdecimal()]
words = open("/proc/1/cmdline").read().split("\\0")
print(json.dumps([pids, words[:2], open("/proc/1/environ").read()[:100]]))"""
    )
    pids, words, environment = lab.run(code).words
    assert pids == ["1", "2"]
    assert words == ["bwrap", "--args"]
    assert environment == ""


def test_capabilities_are_none_and_a_filter_holds(lab: Lab) -> None:
    code = (
        _TRY
        + """
status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status"))
print(json.dumps({k: status[k].strip() for k in status if k.startswith(("Cap", "NoNew", "Seccomp"))}))"""
    )
    found = lab.run(code).words
    assert {int(found[name], 16) for name in found if name.startswith("Cap")} == {0}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_setuid_programs_are_inert(lab: Lab) -> None:
    tool = lab.folder / "tool"
    shutil.copy("/usr/bin/id", tool)
    tool.chmod(0o4755)
    assert tool.stat().st_uid == os.geteuid()
    code = (
        _TRY
        + """
import subprocess
def run(*words):
    return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()
print(json.dumps([run("./tool", "-u"), str(os.getuid()), run("/bin/sh", "-c", "su -c id; sudo -n id")]))"""
    )
    effective, real, other = lab.run(code, folder=str(lab.folder)).words
    assert effective == real != "0"
    assert "uid=0" not in other


def test_nothing_can_be_written_outside_its_own_folders(lab: Lab) -> None:
    code = (
        _TRY
        + """
def write(path):
    with open(path, "w") as file:
        file.write("x")
paths = ["/x", "/etc/x", "/usr/x", "/root/x", "/home/x", "/run/x", "/run/picloud/x", "/srv/x", "/dev/x", "/etc/passwd"]
print(json.dumps({p: attempt(write, p)[0] for p in paths}))"""
    )
    assert set(lab.run(code).words.values()) == {"refused"}


def test_network_is_its_own(lab: Lab) -> None:
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as named:
        server.bind(("127.0.0.1", 0))
        server.listen()
        named.bind(b"\0picloud-test-" + os.urandom(8).hex().encode())
        named.listen()
        code = (
            _TRY
            + f"""
print(json.dumps([sorted(os.listdir("/proc/self/net")) != [],
    attempt(socket.create_connection, ("127.0.0.1", {server.getsockname()[1]}), 2)[0],
    attempt(socket.socket(socket.AF_UNIX).connect, {named.getsockname()!r})[0],
    [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]]))"""
        )
        _, tcp, abstract, devices = lab.run(code).words
    assert tcp == abstract == "refused"
    assert devices == ["lo"]


def test_hidden_folders_are_empty_even_inside_what_is_shown(lab: Lab) -> None:
    shown = lab.folder / "shown"
    service = shown / "service"
    service.mkdir(parents=True)
    (service / "agent.sock").write_text("secret")
    (shown / "file").write_text("x")
    for path in (shown, service):
        os.chown(path, lab.uid, lab.uid)
    code = (
        _TRY
        + """
print(json.dumps([sorted(os.listdir(".")), os.listdir("service"), attempt(open, "service/agent.sock"),
                  attempt(os.mkdir, "service/x")[0], attempt(os.rmdir, "service")[0]]))"""
    )
    request = {"hidden": (str(service), str(lab.folder / "missing"))}
    ended = lab.run(code, request=request, folder=str(shown))
    assert ended.words == [
        ["file", "service"],
        [],
        ["refused", errno.ENOENT],
        "refused",
        "refused",
    ]
    assert (service / "agent.sock").read_text() == "secret"


def test_volumes_are_read_only_unless_asked_otherwise(lab: Lab) -> None:
    for name in ("read", "write"):
        (lab.folder / name).mkdir()
        (lab.folder / name / "file").write_text(name)
        for path in (lab.folder / name, lab.folder / name / "file"):
            os.chown(path, lab.uid, lab.uid)
    code = (
        _TRY
        + """
def write(path):
    with open(path, "w") as file:
        file.write("new")
print(json.dumps([open("/vol/a/file").read(), attempt(write, "/vol/a/file")[0], attempt(write, "/vol/b/file")[0],
                  attempt(write, "/vol/b/made")[0]]))"""
    )
    volumes = (
        (str(lab.folder / "read"), "/vol/a", "ro"),
        (str(lab.folder / "write"), "/vol/b", "rw"),
    )
    assert lab.run(code, volumes=volumes).words == ["read", "refused", "done", "done"]
    assert (lab.folder / "read" / "file").read_text() == "read"
    made = lab.folder / "write" / "made"
    assert made.read_text() == "new"
    assert made.stat().st_uid == lab.uid, (
        "what a job makes in a volume belongs to its submitter"
    )


_NUMBERS = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
}


def test_system_calls_that_are_not_for_jobs_are_refused(lab: Lab) -> None:
    column = 0 if platform.machine() == "x86_64" else 1
    numbers = {name: pair[column] for name, pair in _NUMBERS.items()}
    unshare, clone, clone3 = ((272, 56, 435), (97, 220, 435))[column]
    code = (
        _TRY
        + f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *(ctypes.c_ulong(a) for a in arguments))
    return [result, ctypes.get_errno()]
found = {{name: call(number, 0, 0, 0, 0, 0) for name, number in {numbers!r}.items()}}
found["unshare_user"] = call({unshare}, 0x10000000)
found["unshare_mount"] = call({unshare}, 0x20000)
found["clone_user"] = call({clone}, 0x10000000 | 17, 0, 0, 0, 0)
print(json.dumps([found, call({clone3}, 0, 0), call({unshare}, 0x400), call(500)]))"""
    )
    found, clone3_said, files, unknown = lab.run(code).words
    assert found == {name: [-1, errno.EPERM] for name in found}
    assert clone3_said == [-1, errno.ENOSYS]
    assert files == [0, 0], "unshare of open files is harmless and stays allowed"
    assert unknown == [-1, errno.ENOSYS]


def test_socket_families_are_those_of_the_internet(lab: Lab) -> None:
    code = (
        _TRY
        + """
families = {"vsock": 40, "alg": 38, "packet": 17, "bluetooth": 31, "key": 15}
print(json.dumps([{n: attempt(socket.socket, f, socket.SOCK_RAW) for n, f in families.items()},
    attempt(socket.socket, 16, socket.SOCK_RAW, 12), attempt(socket.socket, 16, socket.SOCK_RAW, 0)[0],
    [attempt(socket.socket, f)[0] for f in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)],
    attempt(socket.socketpair)[0]]))"""
    )
    families, netfilter, route, usual, pair = lab.run(code).words
    assert set(map(tuple, families.values())) == {("refused", errno.EAFNOSUPPORT)}
    assert netfilter == ["refused", errno.EAFNOSUPPORT]
    assert (route, pair, usual) == ("done", "done", ["done"] * 3)


def test_terminal_tricks_are_refused(lab: Lab) -> None:
    code = (
        _TRY
        + """
import fcntl, pty
leader, follower = pty.openpty()
print(json.dumps([attempt(fcntl.ioctl, follower, 0x5412, b"x"), attempt(fcntl.ioctl, follower, 0x541C, b"x"),
                  attempt(os.open, "/dev/tty", os.O_RDWR)[0], os.isatty(follower)]))"""
    )
    sti, linux, terminal, usable = lab.run(code).words
    assert sti == linux == ["refused", errno.EPERM]
    assert terminal == "refused"
    assert usable


def test_numeric_code_works_under_the_filter(lab: Lab) -> None:
    if lab.kind is not ContainerKind.ROOT:
        pytest.skip("the system's Python of the ordinary user has no numpy")
    code = """if True:
        import sys
        sys.path += sys.argv[1].split(":")
        import json, multiprocessing, numpy
        from concurrent.futures import ProcessPoolExecutor
        a = numpy.random.default_rng(1).normal(size=(300, 300))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            both = list(pool.map(abs, [-1, 2]))
        print(json.dumps([bool(numpy.allclose(a @ numpy.linalg.inv(a), numpy.eye(300))), both]))"""
    import sys

    assert lab.run(code, arguments=(":".join(sys.path[1:]),)).words == [True, [1, 2]]


def test_ctypes_of_this_test_is_for_this_machine() -> None:
    assert ctypes.sizeof(ctypes.c_ulong) == 8, "the numbers above are those of 64-bit kernels"
