"""One control plane for one home: a lock held for life, and a record that says who holds it."""

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from picloud_jupyter.protocol.codec import from_wire
from picloud_jupyter.protocol.errors import Conflict
from picloud_jupyter.protocol.frames import WIRE_VERSION, decode_header
from picloud_jupyter.protocol.version import __version__
from picloud_services.base.filesystem import write_atomically


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """Who runs the service. ``process_start_ticks`` is field 22 of /proc/PID/stat.

    Pid and start ticks together name a process: pids are used again.
    """

    host_id: str
    boot_id: str
    pid: int
    process_start_ticks: int
    version: str
    wire: int
    started_at: float
    agent_pid: int = 0
    home: str = ""

    def write(self, path: Path) -> None:
        """Replace the record at ``path``."""
        write_atomically(path, json.dumps(asdict(self)).encode())


def our_record(home: Path) -> ServiceRecord:
    """Return the record of this process as the service of ``home``."""
    return ServiceRecord(
        host_id=host_id(),
        boot_id=boot_id(),
        pid=os.getpid(),
        process_start_ticks=process_start_ticks(os.getpid()),
        version=__version__,
        wire=WIRE_VERSION,
        started_at=time.time(),
        home=str(home),
    )


def read_record(path: Path) -> ServiceRecord | None:
    """Return the record at ``path``; None if there is none, or a damaged one."""
    try:
        return from_wire(ServiceRecord, decode_header(path.read_bytes()))
    except (OSError, ValueError):
        return None


def is_alive(record: ServiceRecord) -> bool:
    """Return whether the very process of ``record`` still runs on this machine."""
    return (
        record.host_id == host_id()
        and record.boot_id == boot_id()
        and process_start_ticks(record.pid) == record.process_start_ticks
    )


class InstanceLock:
    """The lock of one home. The kernel drops it with the process, so it can never be stale."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def acquire(self, record_path: Path) -> None:
        """Hold the lock from now until this process ends or `release` is called.

        Raises:
            Conflict: another process holds it; the message names it as its record does.
        """
        file = open(self._path, "ab")  # noqa: SIM115  # held for life
        os.chmod(self._path, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            file.close()
            raise Conflict(_describe_holder(self._path, read_record(record_path))) from exc
        self._file = file

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _describe_holder(path: Path, record: ServiceRecord | None) -> str:
    who = f"process {record.pid} (version {record.version})" if record else "another process"
    return (
        f"{who} already runs the service of {path.parent}; use it, "
        "end it with `picloud down`, or set PICLOUD_HOME to another folder"
    )


def host_id() -> str:
    """Return what tells this machine from others: its machine id, else its name."""
    try:
        return Path("/etc/machine-id").read_text().strip() or os.uname().nodename
    except OSError:
        return os.uname().nodename


def boot_id() -> str:
    """Return what tells this boot of the machine from earlier ones."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_start_ticks(pid: int) -> int:
    """Return when ``pid`` started, in clock ticks since boot, or 0 if there is no such process.

    Source: proc(5), /proc/PID/stat field 22; the command in field 2 may hold any bytes.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(text.rpartition(b")")[2].split()[19])
