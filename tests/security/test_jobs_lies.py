"""Negative test 40: jobs that lie to their supervisor, and leave traps where they write."""

import contextlib
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.frames import pack_raw
from picloud_jupyter.protocol.jobs import EndReason
from tests.security.conftest import Attacked
from tests.tools.on_a_terminal import on_a_terminal

pytestmark = pytest.mark.isolation
CLOSED_LIST = {reason.value for reason in EndReason}


def result_frame(*, body: bytes = b"", **changes: Any) -> bytes:
    """Return what a runner would send for element 0, changed."""
    header = {"t": "result", "p": 0, "r": "done", "at": 1.0, "s": 0.0, "u": 0.0, "y": 0.0}
    return pack_raw(json.dumps({**header, **changes}).encode(), body)


LIES = {
    "noise": bytes(range(256)) * 8,
    "nothing but zeros": bytes(64),
    "another's element": result_frame(p=5),
    "an element below zero": result_frame(p=-1),
    "twice": result_frame() + result_frame(),
    "a reason of ours": result_frame(r="killed"),
    "a reason of nobody": result_frame(r="x" * 100_000),
    "no time": result_frame(s=float("nan")),
    "time for ever": result_frame(s=1e300),
    "time before": result_frame(s=-5.0, u=-5.0),
    "a file above": result_frame(file="../../secret", size=5, digest=""),
    "a file elsewhere": result_frame(file="/etc/hostname", size=5, digest=""),
    "a file that is none": result_frame(file="missing", size=5, digest=""),
    "a link": result_frame(file="link", size=5, digest=""),
    "a link to a folder": result_frame(file="folder", size=5, digest=""),
    "a pipe": result_frame(file="pipe", size=5, digest=""),
    "a socket": result_frame(file="socket", size=5, digest=""),
    "a file of another size": result_frame(file="short", size=1 << 40, digest=""),
    "a sparse file": result_frame(file="sparse", size=1 << 43, digest=""),
    "written files above": result_frame(
        files={"file": "../x", "size": 1, "count": 1, "left": 0}
    ),
    "written files in a link": result_frame(
        files={"file": "link", "size": 1, "count": 1, "left": 0}
    ),
    "written files of noise": result_frame(
        files={"file": "short", "size": 5, "count": 1, "left": 0}
    ),
    "a huge header": (1 << 31).to_bytes(4, "big") + bytes(60),
    "a huge body": (2).to_bytes(4, "big") + (1 << 40).to_bytes(8, "big") + b"{}",
    "another's end": pack_raw(
        b'{"t":"end","lease":"0000000000000000","rss_bytes":0,"threads":0,"children":0}', b""
    ),
    "an early end": pack_raw(
        b'{"t":"end","lease":"%s","rss_bytes":0,"threads":0,"children":0}', b""
    ),
    "a hello from the future": pack_raw(
        b'{"t":"hello","wire":999,"oldest":999,"pid":1,"rss_bytes":0}', b""
    ),
    "a chunk": pack_raw(b'{"t":"chunk","lease":"0000000000000000"}', b""),
    "a million levels": pack_raw(b'{"t":' + b"[" * 10**6 + b"]" * 10**6 + b"}", b""),
}


# All others end the container: "lost_worker", with the words of what its runner did.
NOT_BELIEVED = {
    "twice": "done",  # the first time, as it says itself
    **dict.fromkeys(
        ("a file that is none", "a link", "a link to a folder", "a pipe", "a socket"),
        "result_unserializable",
    ),
    "a file of another size": "result_unserializable",
    **dict.fromkeys(("written files in a link", "written files of noise"), "done"),
    "a sparse file": "result_unserializable",  # no disk of a test could hold what it says
}


def to_supervisor() -> int:
    """Return the runner's own descriptor, which it has moved out of the way of accidents."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    sockets = {fd for fd in found if stat.S_ISSOCK(_mode(fd))}
    assert len(sockets) == 1, sockets
    return sockets.pop()


def _mode(fd: int) -> int:
    with contextlib.suppress(OSError):  # that of the folder that was listed
        return os.fstat(fd).st_mode
    return 0


def tell(frame: bytes, secret: str) -> int:
    """Lie to the supervisor; runs in the job."""
    out = Path(os.environ["PICLOUD_RUN_DIR"], "out")
    with contextlib.suppress(FileExistsError):
        (out / "link").symlink_to(secret)
        (out / "folder").symlink_to("/etc")
        (out / "short").write_bytes(b"short")
        os.mkfifo(out / "pipe")
        socket.socket(socket.AF_UNIX).bind(str(out / "socket"))
        with (out / "sparse").open("wb") as file:
            file.truncate(1 << 43)
    lease = os.environ["PICLOUD_LEASE"].encode()
    socket.socket(fileno=to_supervisor()).sendall(frame.replace(b"%s", lease))
    return 1


@pytest.fixture(scope="module")
def liars(attacked: Attacked) -> dict[str, cloud.Jid]:
    """The jobs that told each of the lies, ended."""
    process = attacked.process()
    free, memory = attacked.free_bytes(), process.memory_info().rss
    secret = str(attacked.service.home / "secret")
    jids = {
        name: cloud.call(tell, lie, secret, _kill_process=True, _restartable=False)
        for name, lie in LIES.items()
    }
    cloud.join(list(jids.values()), ignore_errors=True, timeout=50)
    assert attacked.process().pid == process.pid
    assert process.memory_info().rss - memory < 64 << 20
    assert free - attacked.free_bytes() < 256 << 20
    return jids


@pytest.mark.parametrize("name", LIES)
def test_40_a_job_that_lies_hurts_itself_alone(
    attacked: Attacked, liars: dict[str, cloud.Jid], name: str
) -> None:
    jid = liars[name]
    info = cloud.info(jid, ["status", "reason", "exception"])[jid]
    assert info["reason"] == NOT_BELIEVED.get(name, "lost_worker")
    if info["reason"] == "lost_worker":
        assert "the runner broke the protocol: it " in info["exception"]
    secret = (attacked.service.home / "secret").read_bytes()
    for read in (_raw_result, _raw_files):
        with contextlib.suppress(CloudException):
            data = read(jid)
            assert secret not in data
            assert Path("/etc/hostname").read_bytes() not in data
    assert cloud.result(cloud.call(lambda: 7)) == 7


def test_40_a_job_that_lies_each_time_is_run_three_times_and_takes_nobody_along(
    attacked: Attacked,
) -> None:
    def lie_at(number: int) -> int:
        return tell(LIES["noise"], "/nowhere") if number == 20 else number

    jids = cloud.map(lie_at, range(40))
    cloud.join(jids, ignore_errors=True, timeout=50)
    info = cloud.info(jids, ["reason", "attempt", "exception"])
    liar = info.pop(jids[20])
    assert (liar["reason"], liar["attempt"]) == ("poison", 3)
    assert "the runner broke the protocol: it " in liar["exception"]
    assert {told["reason"] for told in info.values()} == {"done"}


def _raw_result(jid: cloud.Jid) -> bytes:
    return bytes(session().client.exchange("GET", routes.RESULT.format(jid=jid)).answer().body)


def _raw_files(jid: cloud.Jid) -> bytes:
    return b"".join(file.read() for file in cloud.files_of(jid))


def test_40_a_lie_about_output_mixes_up_nobody_elses(attacked: Attacked) -> None:
    """The mark that ends an element's output is known to its runner, and so to the job."""

    def forge(number: int) -> int:
        marker = bytes.fromhex(
            json.loads(Path("/proc/self/cmdline").read_bytes().split(b"\0")[-2])["marker"]
        )
        os.write(1, b"mine" + marker * (number + 1) + b"more")
        return number

    before = cloud.call(lambda: print("before"))
    jids = cloud.map(forge, range(4))
    cloud.join(jids, ignore_errors=True, timeout=50)
    after = cloud.call(lambda: print("after"))
    cloud.join([before, after])
    assert cloud.info(before, "stdout")[before]["stdout"] == "before\n"
    assert cloud.info(after, "stdout")[after]["stdout"] == "after\n"
    assert {info["reason"] for info in cloud.info(jids, "reason").values()} <= CLOSED_LIST


def write_traps(secret: str) -> None:
    """Leave in the folder what a careless reader would stumble over; runs in the job."""
    Path("link").symlink_to(secret)
    Path("up").symlink_to("../../../../../../etc/passwd")
    Path("folder").symlink_to("/etc")
    os.mkfifo("pipe")
    socket.socket(socket.AF_UNIX).bind("socket")
    with Path("terabyte").open("wb") as file:
        file.truncate(1 << 40)
    Path("two\nlines\x1b[2J").write_text("x")
    Path(os.fsdecode(b"not-utf-8-\xff")).write_text("x")
    Path("good").write_text("good")
    with contextlib.suppress(OSError):
        os.mknod("disk", 0o600 | 0o060000, os.makedev(254, 0))
    with contextlib.suppress(OSError):
        os.link("good", "hard")


def test_40_traps_in_the_written_folder_are_named_and_not_stepped_into(
    attacked: Attacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    free = attacked.free_bytes()
    jid = cloud.call(write_traps, str(attacked.service.home / "secret"))
    cloud.result(jid)
    files = cloud.files_of(jid)
    kept = {file.path for file in files}
    assert kept == {"good", "hard", "two\nlines\x1b[2J"}
    left = {path for path, _ in files.left}
    assert {"link", "up", "folder", "pipe", "socket", "terabyte"} <= left
    assert "root:" not in repr(files)
    assert free - attacked.free_bytes() < 64 << 20
    fetched = tmp_path / "fetched"
    files.fetch(fetched)
    assert sorted(p.name for p in fetched.iterdir()) == sorted(kept)
    assert all(path.is_file() and not path.is_symlink() for path in fetched.iterdir())
    shown = on_a_terminal(attacked.service, "files", str(jid))
    assert "\x1b" not in shown
