"""A control plane of this machine: found, started, stopped. Linux only; other systems are clients."""

import contextlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.codec import from_wire
from picloud_jupyter.protocol.errors import (
    CloudException,
    Conflict,
    Unreachable,
    error_from_wire,
)
from picloud_jupyter.protocol.frames import decode_header
from picloud_jupyter.transport.client import Client
from picloud_jupyter.transport.connection import Connection
from picloud_jupyter.transport.endpoint import Endpoint
from picloud_jupyter.transport.paths import (
    STATE_FOLDERS,
    ServicePaths,
    make_run,
    service_paths,
)
from picloud_jupyter.transport.retry import RetryLimits

START_SECONDS = 30.0
STOP_SECONDS = 20.0
_LEAVING_SECONDS = 0.2
_FIRST_LOG = ("service.log", "service.log.*")  # there before a service holds its home
_STATE = (
    *("store.db", "store.db-*", "store.db.*", "metrics.db", "metrics.db-*", "metrics.db.*"),
    *("agent.lock", "service.run", "secret", "ballast", "restoring", *STATE_FOLDERS),
    *("agent.log", "agent.log.*", *_FIRST_LOG),
    "lock",  # the last: it says that the others are ours
)


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """A process of a service; ``start_ticks`` tell it from a later one that got its pid."""

    pid: int
    start_ticks: int

    @property
    def is_alive(self) -> bool:
        """Whether it runs still."""
        return _start_ticks(self.pid) == self.start_ticks


def endpoint_of(paths: ServicePaths) -> Endpoint:
    """Return the endpoint of the embedded service in ``paths``."""
    return Endpoint(socket_path=str(paths.api_socket), embedded=paths)


def embedded_client(paths: ServicePaths, *, start: bool) -> Client:
    """Return a client of the embedded service, which starts it when needed if ``start``."""
    if start:
        return Client(endpoint_of(paths), revive=lambda: ensure_running(paths))
    return Client(endpoint_of(paths), limits=RetryLimits(attempts=0))


def listens(paths: ServicePaths) -> bool:
    """Return whether a control plane accepts connections in ``paths``."""
    try:
        Connection.open(endpoint_of(paths)).close()
    except OSError:
        return False
    return True


def ensure_running(
    paths: ServicePaths | None = None, variables: Mapping[str, str] | None = None
) -> bool:
    """Return when the embedded control plane accepts connections; True if it was started here.

    Clients that come at once start one service: the others wait for it. ``variables`` are settings of
    a service that is started.

    Raises:
        Unreachable: this system cannot run one, or it did not come up in time.
        CloudException: it refused to start; the words are its own.
    """
    paths = paths or service_paths()
    if listens(paths):
        return False
    _check_installed()
    try:
        make_run(paths)
    except OSError as exc:
        raise Unreachable(f"the folder of the service's sockets cannot be used: {exc}") from exc
    deadline_at = time.monotonic() + START_SECONDS
    with _start_lock(paths, deadline_at) as mine:
        if not mine or listens(paths):
            return False
        paths.intent.unlink(missing_ok=True)
        _startup_error(paths).unlink(missing_ok=True)
        _wait_for_start(paths, variables or {}, deadline_at)
    return True


def stop(paths: ServicePaths, *, kill_jobs: bool, purge: bool = False) -> bool:
    """Stop the service and wait until its processes have gone; return whether it ran.

    With ``kill_jobs`` running jobs end (a restartable one runs again after the next start); without
    it they go on in their containers and the next control plane takes them over.

    Raises:
        Unreachable: its processes did not leave within 20 seconds.
        CloudException: an agent runs alone, and the control plane that could end it does not start.
    """
    if kill_jobs and not control_process(paths):
        if agent_process(paths):
            ensure_running(paths)  # what it has is recorded, and only this one can end it
        elif any((paths.run / "c").glob("*")):  # containers that lost their agent, too
            with contextlib.suppress(CloudException):  # only a service can end them
                ensure_running(paths)
    processes: set[ServiceProcess] = set()
    asked = False
    deadline_at = time.monotonic() + STOP_SECONDS
    for pause in _growing_pauses():
        if not asked:  # it may be about to listen
            found = (control_process(paths), agent_process(paths) if kill_jobs else None)
            processes.update(process for process in found if process is not None)
            asked = _ask_to_stop(paths, kill_jobs=kill_jobs, purge=purge)
        left = [process.pid for process in processes if process.is_alive]
        if not left and not listens(paths):
            break
        if time.monotonic() > deadline_at:
            raise Unreachable(
                f"the service's processes {left} did not leave within {STOP_SECONDS:.0f} seconds",
                hint=f"see {paths.home / 'service.log'}",
            )
        time.sleep(pause)
    if purge:
        _remove_state(paths)
    return asked or bool(processes)


def _ask_to_stop(paths: ServicePaths, *, kill_jobs: bool, purge: bool) -> bool:
    """Tell the control plane to stop if it listens; return whether it does."""
    if not listens(paths):
        return False
    if kill_jobs:
        _write_intent(paths)
    client = embedded_client(paths, start=False)
    try:
        client.post(routes.STOP, {"kill_jobs": kill_jobs, "purge": purge})
    finally:
        client.close()
    return True


def control_process(paths: ServicePaths) -> ServiceProcess | None:
    """Return the control plane's process if it runs, as its record tells."""
    return _recorded(paths.record, "process_start_ticks")


def agent_process(paths: ServicePaths) -> ServiceProcess | None:
    """Return the agent's process if it runs, as its record tells."""
    return _recorded(paths.agent_record, "start_time")


def _recorded(path: Path, start_field: str) -> ServiceProcess | None:
    try:
        found = decode_header(path.read_bytes())
        fields = {"pid": found.get("pid"), "start_ticks": found.get(start_field)}
        process = from_wire(ServiceProcess, fields)
    except (OSError, ValueError):
        return None  # none ran here, or the file is damaged
    return process if process.start_ticks and process.is_alive else None


def _check_installed() -> None:
    hint = "set PICLOUD_URL and PICLOUD_API_KEY to those of a control plane on a Linux machine"
    if not sys.platform.startswith("linux"):
        raise Unreachable(
            "jobs run on Linux only, and no other control plane is named", hint=hint
        )
    if importlib.util.find_spec("picloud_services") is None:
        raise Unreachable(
            "the control plane is not installed in this Python (module picloud_services)",
            hint=f"install picloud-jupyter for {sys.executable}, or set PICLOUD_URL and PICLOUD_API_KEY",
        )


@contextlib.contextmanager
def _start_lock(paths: ServicePaths, deadline_at: float) -> Iterator[bool]:
    """Give True to the one that may start; False as soon as somebody else's service listens."""
    import fcntl  # absent where jobs cannot run anyway

    with (paths.run / "start.lock").open("wb") as lock:
        for pause in _growing_pauses():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if listens(paths):
                    yield False
                    return
                if time.monotonic() > deadline_at:
                    raise _too_slow(paths) from None
                time.sleep(pause)
            else:
                break
        yield True


def _start(paths: ServicePaths, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    with _open_log(paths) as log:
        process = subprocess.Popen(
            start_command(paths),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**service_environment(), **variables},
            start_new_session=True,
        )
    threading.Thread(target=process.wait, name="picloud-reaper", daemon=True).start()
    return process


def _open_log(paths: ServicePaths) -> IO[bytes]:
    try:
        paths.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (paths.home / "service.log").open("ab")
    except OSError as exc:
        raise Unreachable(
            f"the folder of the service's state, {paths.home}, cannot be used: {exc.strerror}",
            hint="set PICLOUD_HOME to a folder that you may write to",
            retry=False,
        ) from exc


def start_command(paths: ServicePaths, word: str = "control") -> list[str]:
    """Return the command that runs the control plane of ``paths``, or another ``word``, in the foreground."""
    command = [sys.executable, "-P", "-m", "picloud_services", word]
    command += ["--home", str(paths.home), "--run", str(paths.run)]
    return [*command, "--public", str(paths.public)] if paths.public else command


def service_environment() -> dict[str, str]:
    """Return the caller's variables with the folders our packages came from, without its remote."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PICLOUD_URL", "PICLOUD_API_KEY")}
    folders = [
        folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder
    ]
    for name in ("picloud_jupyter", "picloud_services", "picloud_kernels"):
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            folder = os.path.dirname(os.path.abspath(place))
            if folder not in folders and not folder.endswith(
                ("site-packages", "dist-packages")
            ):
                folders.append(folder)
    if folders:
        kept["PYTHONPATH"] = os.pathsep.join(folders)
    return kept


def _wait_for_start(
    paths: ServicePaths, variables: Mapping[str, str], deadline_at: float
) -> None:
    process = _start(paths, variables)
    failure: CloudException | None = None
    for pause in _growing_pauses():
        if listens(paths):
            return
        if time.monotonic() > deadline_at:
            raise failure or _too_slow(paths)
        if process.poll() is not None:
            failure = _start_failure(paths, process.returncode)
            if not isinstance(failure, Conflict) or _listens_elsewhere(paths):
                raise failure
            time.sleep(_LEAVING_SECONDS)  # the one before is just leaving, or about to listen
            if not listens(paths):
                process = _start(paths, variables)
        time.sleep(pause)


def _listens_elsewhere(paths: ServicePaths) -> bool:
    there = service_paths(paths.home)
    return there.run != paths.run and listens(there)


def _start_failure(paths: ServicePaths, code: int) -> CloudException:
    try:
        value = decode_header(_startup_error(paths).read_bytes())
        if isinstance(value.get("error"), dict):
            return error_from_wire(value)
    except (OSError, ValueError):
        pass  # it left no words: its log has them
    other = control_process(paths)
    if other is not None:  # of a healthy service nothing is left in writing: others start by it
        return Conflict(f"process {other.pid} already runs the service of {paths.home}")
    log = paths.home / "service.log"
    return Unreachable(
        f"the control plane ended with code {code} while it started:\n{_tail(log)}",
        hint=f"run `picloud doctor`; the whole log is {log}",
        retry=False,
    )


def _too_slow(paths: ServicePaths) -> CloudException:
    return Unreachable(
        f"the control plane did not listen on {paths.api_socket} within {START_SECONDS:.0f} seconds",
        hint=f"run `picloud doctor`; its log is {paths.home / 'service.log'}",
    )


def _tail(path: Path, lines: int = 12) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError as exc:
        return f"(no log: {exc})"
    return "\n".join(text.splitlines()[-lines:])


def _startup_error(paths: ServicePaths) -> Path:
    return paths.run / "startup-error.json"


def _write_intent(paths: ServicePaths) -> None:
    make_run(paths)
    paths.intent.write_text("down\n", encoding="ascii")


def _start_ticks(process_id: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is none. Source: proc(5)."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def _growing_pauses() -> Iterator[float]:
    pause = 0.002
    while True:
        yield pause
        pause = min(0.02, pause * 1.3)


def _remove_state(paths: ServicePaths) -> None:
    """Remove what the service made, by name: the folder may be one that the user chose."""
    for pattern in _STATE if paths.was_held else _FIRST_LOG:
        for path in paths.home.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        paths.home.rmdir()  # unless it holds something of the user's
    remove_run(paths)


def remove_run(paths: ServicePaths) -> None:
    """Remove the folders of the sockets: of a system service that means that there is none."""
    shutil.rmtree(paths.run, ignore_errors=True)
    if paths.public is not None:
        shutil.rmtree(paths.public, ignore_errors=True)


def _remove_tree(top: Path) -> None:
    """Remove a folder that may hold read-only ones: bundles, and what jobs left in their layers.

    Those may be deeper than any path may be long: inner folders are moved up into ``top``.
    """
    unused = (f"{top}/{os.urandom(8).hex()}" for _ in itertools.count())
    folders = [str(top)]
    while folders:
        folder = folders.pop()
        os.chmod(folder, 0o700)  # the owner's alone
        with os.scandir(folder) as entries:
            inner = list(entries)
        for entry in inner:
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)  # a folder that moves gets a new ".."
                folders.append(next(unused))
                os.rename(entry.path, folders[-1])
            else:
                os.unlink(entry.path)
        if folder != str(top):
            os.rmdir(folder)
    top.rmdir()
