"""What keeps two users apart on one machine, seen from inside their containers and from outside."""

import ctypes
import errno
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from picloud_services.agent import overlay, root_stage, syscalls
from picloud_services.agent.binds import Bind, Layer, Overlay
from picloud_services.agent.container import ContainerError
from picloud_services.base.user_rights import Rights, file_rights, may, may_open
from tests.tools.container_harness import as_user
from tests.tools.two_users import TwoUsers

pytestmark = [pytest.mark.isolation, pytest.mark.root]

ORDINARY = Rights(54_321, 54_321)

# Ann's job: leaves traces in each place that processes of one machine may share.
ANN = """
def work():
    import ctypes, socket, threading, time
    open('/dev/shm/of-ann', 'w').write('of ann')
    open('/tmp/of-ann', 'w').write('of ann')
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.shmget(0x414E4E, 4096, 0o1666) >= 0
    named = socket.socket(socket.AF_UNIX)
    named.bind(b'\\0of-ann')
    named.listen()
    server = socket.socket()
    server.bind(('127.0.0.1', 45_454))
    server.listen()
    print('ready', flush=True)
    time.sleep(55)
jid = cloud.call(work)
import time
for _ in range(400):
    if 'ready' in (cloud.info(jid, 'stdout')[jid]['stdout'] or ''):
        break
    time.sleep(0.05)
print(json.dumps(int(jid)))
"""

# What another job of the machine finds of it; `refused` is what each must be.
BOB = """
def look(pids):
    import ctypes, errno, signal, socket
    libc = ctypes.CDLL(None, use_errno=True)
    def attempt(function, *words):
        try:
            function(*words)
        except OSError as exc:
            return 'refused'
        return 'done'
    def connect(family, address):
        sock = socket.socket(family)
        sock.settimeout(3)
        sock.connect(address)
    return {
        'processes': [n for n in os.listdir('/proc') if n.isdecimal() and int(n) > 50],
        'signals': [attempt(os.kill, pid, signal.SIGKILL) for pid in pids],
        'shm': os.listdir('/dev/shm'),
        'tmp': [n for n in os.listdir('/tmp') if 'ann' in n],
        'sysv': libc.shmget(0x414E4E, 4096, 0o666),
        'abstract': attempt(connect, socket.AF_UNIX, b'\\0of-ann'),
        'loopback': attempt(connect, socket.AF_INET, ('127.0.0.1', 45_454)),
        'keyring': [libc.syscall(250, 0, -5, 0), ctypes.get_errno()],
        'api': os.path.exists(given[1]),
        'run': sorted(os.listdir('/run')),
    }
print(json.dumps(cloud.result(cloud.call(look, given[0]))))
"""


@pytest.fixture
def running(two_users: TwoUsers) -> Iterator[list[int]]:
    """The processes, on the host, of a job of Ann that runs."""
    jid = two_users.ann.run(ANN)
    pids = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdecimal() and _uid(folder) == two_users.ann.uid
    ]
    assert pids
    yield pids
    two_users.ann.run("cloud.kill(given[0])\nprint(1)", jid)


def _uid(folder: Path) -> int:
    try:
        return folder.stat().st_uid
    except FileNotFoundError:
        return -1


def _effective_uids(pid: int) -> set[str]:
    """Return those of a process; none of one that has ended meanwhile, as idle networks do."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return set()
    return set(next(line for line in lines if line[:4] == "Uid:").split()[1:])


def test_a_job_finds_nothing_of_another_user_s(two_users: TwoUsers, running: list[int]) -> None:
    found = two_users.bob.run(BOB, running, str(two_users.socket))
    assert found == {
        "processes": [],
        "signals": ["refused"] * len(running),
        "shm": [],
        "tmp": [],
        "sysv": -1,
        "abstract": "refused",
        "loopback": "refused",
        "keyring": [-1, errno.EPERM],
        "api": False,
        "run": ["picloud"],
    }


def test_outside_containers_a_user_cannot_touch_another_user_s_job(
    two_users: TwoUsers, running: list[int]
) -> None:
    code = """
    import ctypes, signal
    libc = ctypes.CDLL(None, use_errno=True)
    done = []
    for pid in given[0]:
        for name in ('environ', 'mem', 'maps', 'fd', 'root/', 'cwd/', 'ns/net'):
            path = f'/proc/{pid}/{name}'
            try:
                if os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1):
                    done.append(path)
            except OSError:
                pass
        try:
            os.kill(pid, 0)
            done.append(f'kill {pid}')
        except (PermissionError, ProcessLookupError):
            pass
        if libc.ptrace(0x4206, pid, 0, 0) == 0:  # PTRACE_SEIZE
            done.append(f'ptrace {pid}')
    print(json.dumps(done))"""
    assert two_users.bob.run(code, running) == []


def test_the_processes_of_a_job_are_its_user_s_and_root_s_are_not_reached(
    two_users: TwoUsers, running: list[int]
) -> None:
    found = set().union(*(_effective_uids(pid) for pid in running))
    assert found == {str(two_users.ann.uid)}
    with pytest.raises(AssertionError):  # the service's own sockets are root's alone
        two_users.bob.run(
            "import socket\nsocket.socket(socket.AF_UNIX).connect(given[0])",
            str(two_users.place / "run" / "private" / "agent.sock"),
        )


def test_a_user_who_uses_up_everything_ends_their_own_job_only(two_users: TwoUsers) -> None:
    ann, bob = two_users.ann, two_users.bob
    jid = ann.run(
        """
        def work():
            import time
            time.sleep(6)
            return 'undisturbed'
        jid = cloud.call(work, _type='s1', _restartable=False)
        cloud.wait_for.status(jid, 'processing')
        print(json.dumps(int(jid)))"""
    )
    reasons = bob.run(
        """
        def memory():
            data = []
            while True:
                data.append(bytearray(50_000_000))
        def processes():
            import time
            count = 0
            try:
                while count < 5000:
                    if os.fork() == 0:
                        time.sleep(30)
                        os._exit(0)
                    count += 1
            except OSError:
                pass
            return count
        jids = [cloud.call(memory, _type='s1'), cloud.call(processes, _type='s1')]
        cloud.join(jids, ignore_errors=True)
        print(json.dumps([cloud.info(jids[0], 'reason')[jids[0]]['reason'], cloud.result(jids[1])]))"""
    )
    assert reasons[0] == "oom"
    assert 0 < reasons[1] < 5000
    assert ann.run("print(json.dumps(cloud.result(given[0])))", jid) == "undisturbed"


# ------------------------------------------------------------------- looking with a user's rights
@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that all may read, in one that root alone may enter."""
    base = Path(tempfile.mkdtemp(prefix="rights-", dir="/var/tmp"))
    (base / "closed").mkdir(mode=0o700)
    (base / "closed" / "open").mkdir(mode=0o755)
    (base / "closed" / "open" / "file").write_text("readable by all")
    base.chmod(0o755)
    yield base
    overlay.remove_tree(str(base))


def test_file_rights_are_those_of_the_user_and_root_s_again_afterwards(closed: Path) -> None:
    path = str(closed / "closed" / "open")
    groups = os.getgroups()
    with file_rights(Rights(54_321, 54_321, (54_322,))):
        assert not may(path, os.R_OK)
        assert may(str(closed), os.R_OK | os.X_OK)
        assert not may(str(closed), os.W_OK)
        assert os.getgroups() == [54_322]
        assert os.geteuid() == 0  # the user cannot signal this process
    assert may(path, os.R_OK | os.W_OK)
    assert os.getgroups() == groups


def test_file_rights_of_an_ordinary_process_are_refused() -> None:
    def attempt() -> str:
        try:
            with file_rights(Rights(1, 1)):
                return "done"
        except (PermissionError, ProcessLookupError):
            return "refused"

    assert as_user(54_321, attempt) == "refused"


@pytest.mark.parametrize("step", [Bind, Overlay])
def test_a_source_is_what_the_submitter_could_open_when_it_was_opened(
    closed: Path, step: Any
) -> None:
    """A folder that became a link between the plan and the mount leads nowhere."""
    place = closed / "place"
    place.mkdir()
    words = ("x", "y") if step is Overlay else ()
    planned = step("/x", str(place), *words, asked=True)
    with root_stage._source(planned, ORDINARY) as source:
        kept = os.stat(source)
        place.rename(closed / "away")
        place.symlink_to(closed / "closed" / "open")
        assert os.stat(source).st_ino == kept.st_ino
        assert stat.S_ISDIR(kept.st_mode)
    with pytest.raises(ContainerError, match="you may not use it yourself"):
        with root_stage._source(planned, ORDINARY):
            pass
    with root_stage._source(planned, None) as source:  # what root asks for is root's to see
        assert source == str(place)


def test_a_source_that_may_be_entered_and_not_read_is_refused(closed: Path) -> None:
    place = closed / "place"
    place.mkdir(mode=0o711)
    place.chmod(0o711)
    with pytest.raises(ContainerError, match="closed"):
        with root_stage._source(Bind("/x", str(place), asked=True), ORDINARY):
            pass
    place.chmod(0o755)
    with pytest.raises(ContainerError, match="may not be written to"):
        with root_stage._source(Bind("/x", str(place), writable=True, asked=True), ORDINARY):
            pass
    descriptor = os.open(place, os.O_PATH)
    try:
        assert may_open(descriptor, os.R_OK | os.W_OK)  # for root
    finally:
        os.close(descriptor)


_libc = ctypes.CDLL(None, use_errno=True)
_CAPGET, _CAPSET = {"x86_64": (125, 126), "aarch64": (90, 91)}[os.uname().machine]
_DAC = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def without_override() -> None:
    """Make this process a root that closed folders are closed to, as they are on NFS."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert _libc.syscall(_CAPGET, header, data) == 0
    for index in range(3):  # effective, permitted, inheritable of the first 32
        data[index] &= ~_DAC
    assert _libc.syscall(_CAPSET, header, data) == 0, os.strerror(ctypes.get_errno())


def test_a_folder_that_the_user_reads_and_root_does_not_is_shown_read_only(
    two_users: TwoUsers,
) -> None:
    user = two_users.ann
    folder = user.write("squashed/data.txt", "of ann").parent
    folder.chmod(0o700)
    place = two_users.place / "squashed"
    place.mkdir()
    step = Overlay("/x", str(folder), "", "", asked=True)

    def look() -> list[str]:
        try:
            (place / "more").write_text("x")
        except OSError as exc:
            return [(place / "data.txt").read_text(), errno.errorcode[exc.errno or 0]]
        return ["written"]

    def work() -> Any:
        without_override()
        with pytest.raises(PermissionError):
            os.listdir(folder)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount_at("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
        rights = Rights(user.uid, user.gid)
        tree = root_stage._open(step, Layer("/nowhere"), user.uid, None, rights)
        assert tree is not None
        syscalls.attach_mount(tree, str(place))
        return as_user(user.uid, look)

    assert as_user(0, work) == ["of ann", "EROFS"]


def test_the_socket_of_users_takes_their_word_for_nothing(two_users: TwoUsers) -> None:
    """The uid comes from the kernel; who connects and hands the socket on stays who it was."""
    assert stat.S_IMODE(two_users.socket.stat().st_mode) == 0o666
    assert two_users.socket.parent.stat().st_mode & 0o777 == 0o755
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(two_users.socket))
        sock.sendall(
            b"GET /v1/service HTTP/1.1\r\nHost: x\r\nX-User: 1\r\nConnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["user_id"] == 0


def test_a_user_who_opens_connections_without_end_keeps_nobody_else_out(
    two_users: TwoUsers,
) -> None:
    code = """
    import socket, time
    kept, closed = [], 0
    for _ in range(300):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(given[0])
        kept.append(sock)
    end = time.monotonic() + 20
    while closed < 44 and time.monotonic() < end:
        closed = 0
        for sock in kept:
            sock.setblocking(False)
            try:
                closed += sock.recv(1) == b''
            except BlockingIOError:
                pass
        time.sleep(0.05)
    print(json.dumps([closed, cloud.connection_info()['connection_type']]))"""
    assert two_users.bob.run(code, str(two_users.socket)) == [44, "UNIX"]
    assert two_users.ann.run("print(json.dumps(cloud.result(cloud.call(lambda: 1))))") == 1


def test_users_cannot_remove_or_replace_the_socket(two_users: TwoUsers) -> None:
    for words in (
        ("rm", "-f", str(two_users.socket)),
        ("mv", str(two_users.socket), str(two_users.bob.home)),
        ("mkdir", str(two_users.socket.parent / "x")),
    ):
        assert two_users.bob.command(*words).returncode != 0
    assert two_users.socket.is_socket()
    record = json.loads((two_users.place / "run" / "private" / "record.json").read_text())
    assert two_users.bob.command("sh", "-c", f"kill -9 {record['pid']}").returncode != 0
