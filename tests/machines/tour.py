"""What must work on every kind of machine: ``python tour.py`` tries it there and prints what came.

A program of its own: it runs with the product's Python of that machine, in its own home. The answer
is one line of JSON: what `picloud doctor` says, what a job sees, and the words of each check that
failed. Its job functions are sent by value.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from picloud_jupyter import cloud

SECONDS = 60.0


def cli(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "picloud_jupyter.cli", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=SECONDS,
    )


def until(wanted: str, jid: int) -> None:
    """Return when the job has the status ``wanted``."""
    deadline = time.monotonic() + SECONDS
    while cloud.status(jid) != wanted:
        assert time.monotonic() < deadline, f"job {jid} is {cloud.status(jid)}, not {wanted}"
        time.sleep(0.02)


# ---------------------------------------------------------------------------------- the checks
def start() -> None:
    """A function is called, with a module of the machine's Python and a word beyond ASCII."""
    jid = cloud.call(lambda word: word * 2, "ä→")
    assert cloud.result(jid, timeout=SECONDS) == "ä→ä→"


def a_map() -> None:
    jids = cloud.map(lambda number: number * number, range(40))
    assert cloud.result(jids, timeout=SECONDS) == [n * n for n in range(40)]


def output() -> None:
    def speak() -> None:
        print("höre")
        os.system("echo from a child >&2")

    jid = cloud.call(speak)
    cloud.join(jid, timeout=SECONDS)
    found = cloud.info(jid, ["stdout", "stderr"])[jid]
    assert (found["stdout"], found["stderr"]) == ("höre\n", "from a child\n"), found


def failure() -> None:
    jid, said = cloud.call(lambda: 1 // 0), ""
    try:
        cloud.result(jid, timeout=SECONDS)
    except cloud.CloudException as error:
        said = str(error)
    assert "ZeroDivisionError" in said, said
    assert cloud.status(jid) == "error"


def files() -> None:
    """A job reads the folder it was submitted from, and what it writes is brought back."""

    def work() -> str:
        text = Path("given.txt").read_text(encoding="utf-8")
        Path("made.txt").write_text(text.upper(), encoding="utf-8")
        Path(os.environ["HOME"], "own").write_text("x", encoding="utf-8")
        Path(os.environ["TMPDIR"], "own").write_text("x", encoding="utf-8")
        return text

    Path("given.txt").write_text("words", encoding="utf-8")
    assert cloud.result(cloud.call(work), timeout=SECONDS) == "words"


def kill() -> None:
    jid = cloud.call(time.sleep, 300)
    until("processing", jid)
    cloud.kill(jid)
    until("killed", jid)


def memory() -> None:
    """A job that takes ever more memory ends with the reason oom."""

    def grow(most_bytes: int) -> int:
        taken: list[bytes] = []
        while len(taken) << 25 < most_bytes:
            taken.append(b"x" * (1 << 25))
            time.sleep(0.005)  # not faster than a watcher looks
        return len(taken)

    jid = cloud.call(grow, 3 << 30, _type="s1")
    cloud.join(jid, timeout=SECONDS, ignore_errors=True)
    reason = cloud.info(jid, ["reason"])[jid]["reason"]
    assert reason == "oom", f"{cloud.status(jid)}, {reason}"


def inside() -> None:
    """Code in a job starts jobs of its own."""

    def parent() -> int:
        from picloud_jupyter import cloud

        return int(cloud.result(cloud.call(lambda: 5)))

    assert cloud.result(cloud.call(parent), timeout=SECONDS) == 5


def agent_kill() -> None:
    """What runs goes on when the agent is killed, and later jobs run."""

    def last() -> str:
        time.sleep(1.0)
        return "went on"

    jid = cloud.call(last)
    until("processing", jid)
    service = json.loads(cli("-o", "json", "status").stdout)
    os.kill(service["agent_pid"], signal.SIGKILL)
    assert cloud.result(jid, timeout=SECONDS) == "went on"
    assert cloud.info(jid, ["attempt"])[jid]["attempt"] == 1
    assert cloud.result(cloud.call(abs, -1), timeout=SECONDS) == 1


CHECKS = {
    "call": start,
    "map": a_map,
    "output": output,
    "failure": failure,
    "files": files,
    "kill": kill,
    "memory limit": memory,
    "jobs in jobs": inside,
    "agent killed": agent_kill,
}


# ---------------------------------------------------------------------------------- the truth
def look(port: int) -> dict[str, Any]:
    """What a job sees of the machine, to be held against what doctor says."""
    status = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    )
    with socket.socket() as connection:
        connection.settimeout(5)
        reached = connection.connect_ex(("127.0.0.1", port)) == 0
    return {
        "uid": os.getuid(),
        "filtered": status["Seccomp"].strip() == "2",
        "capabilities": int(status["CapBnd"], 16),
        "alone": Path("/proc/1/cmdline").read_bytes().startswith(b"bwrap"),
        "reaches_loopback": reached,
        "proxy": os.environ.get("http_proxy", ""),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
    }


def seen() -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        jid = cloud.call(look, server.getsockname()[1])
        return dict(cloud.result(jid, timeout=SECONDS))


def left_behind() -> list[str]:
    """What is there after the service went: this machine has no processes but ours."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        others = {
            pid: _command(pid) for pid in pids if pid not in (os.getpid(), os.getppid(), 1)
        }
        found = [
            f"process {pid}: {words}" for pid, words in others.items() if "picloud" in words
        ]
        if not found:
            break
        time.sleep(0.05)
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    return ""


def main() -> None:
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    answer: dict[str, Any] = {"failed": failed, "seconds": seconds}
    answer["before"] = cli("doctor").stdout  # nothing runs yet
    up = cli("up")
    answer["up"] = up.stdout + up.stderr
    said = cli("-o", "json", "doctor")
    answer["doctor"] = json.loads(said.stdout) if said.stdout else {"error": said.stderr}
    answer["text"] = cli("doctor").stdout
    for name, check in CHECKS.items():
        began = time.monotonic()
        try:
            check()
        except Exception:
            failed[name] = traceback.format_exc()
        seconds[name] = round(time.monotonic() - began, 2)
    try:
        answer["seen"] = seen()
    except Exception:
        failed["look"] = traceback.format_exc()
    cloud.close()
    down = cli("down", "--purge")
    answer["left"] = left_behind() + ([down.stderr] if down.returncode else [])
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
