"""From a command line to a running control plane, or to words that say why not."""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from picloud_jupyter.protocol.errors import (
    CloudException,
    Conflict,
    DiskFull,
    InvalidRequest,
    PlatformError,
    error_to_wire,
)
from picloud_jupyter.protocol.scrubbing import scrub
from picloud_jupyter.transport.paths import STATE_FOLDERS, ServicePaths, make_private, make_run
from picloud_services.agent.guardian import Guardian, the_agent
from picloud_services.base.ballast import ballast_of
from picloud_services.base.collector import without_collector
from picloud_services.base.filesystem import disk_space, network_file_system, write_atomically
from picloud_services.base.logs import LogFile, start_logging
from picloud_services.base.single_instance import (
    InstanceLock,
    ServiceRecord,
    is_alive,
    our_record,
    read_record,
)
from picloud_services.config import Settings, from_environment

LOCAL_STATE = Path("/var/tmp")  # noqa: S108  # the folder made there is private and checked
LEAST_BYTES = 16 * 1024 * 1024  # the store, its log and a few jobs
LEAST_AGAIN_BYTES = 3 * 1024 * 1024  # to answer, and to delete; less than the reserve
_CONFIG_FILES = ("picloud_config.py", "picloud_config.json")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the state of a service is. ``note`` says so where that is not the home asked for."""

    paths: ServicePaths
    note: str = ""


def run_control(paths: ServicePaths, options: Sequence[str] = ()) -> int:
    """Run the control plane until it is told to stop; return the process's exit code.

    A start that fails leaves its error in RUN/startup-error.json, for the client that waits.
    """
    lock = InstanceLock(paths.lock)
    try:
        make_run(paths)
        place = prepare(paths)
        lock = InstanceLock(place.paths.lock)
        lock.acquire(paths.record)
        _refuse_half_restored(place.paths)
        write_atomically(place.paths.whereabouts, os.fsencode(place.paths.run))
        settings = replace(load_settings(paths, options), paths=place.paths)
        log = start_logging(
            place.paths.home / "service.log",
            "control",
            level=settings.log_level,
            max_bytes=settings.log_bytes,
        )
        os.environ.update(settings.exported())
        record = our_record(settings.home)
        record.write(settings.paths.record)
        _serve(settings, record, place.note, log)
    except (CloudException, OSError, ValueError) as exc:
        report_failure(paths, as_startup_error(exc))
        return 1
    finally:
        lock.release()
    return 0


def _serve(settings: Settings, record: ServiceRecord, note: str, log: LogFile) -> None:
    starts = itertools.count()
    guardian = Guardian(
        the_agent(settings),
        wanted=lambda: settings.restart or next(starts) == 0,
        intent=settings.paths.intent,
    )
    guardian.look()  # the agent starts on another core while this process imports the rest
    with without_collector():
        import asyncio

        from picloud_services.app.control_plane import ControlPlane

    asyncio.run(ControlPlane(settings, record, guardian, log, note=note).run())


def prepare(paths: ServicePaths) -> Place:
    """Return where the state goes, the folder made and private.

    A store on a network file system can be damaged by another machine's writes, so there it goes
    to a folder of this user in /var/tmp, which outlives a reboot.

    Raises:
        PermissionError: the folder is not this user's, or cannot be made.
        DiskFull: there is no room for the store itself.
        InvalidRequest: the folder has others in it that are called like the service's own.
    """
    place = place_of(paths)
    paths = place.paths
    if place.note:
        make_private(paths.home)
    paths.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if paths.public is not None:
        paths.home.chmod(0o700)  # it holds what all users keep
        make_private(paths.home)
    if not os.access(paths.home, os.W_OK | os.X_OK):
        raise PermissionError(
            errno.EACCES, "it may not be written to by this user", str(paths.home)
        )
    if not paths.was_held:
        _refuse_what_is_not_ours(paths.home)
    _require_room(paths.home)
    return place


def place_of(paths: ServicePaths) -> Place:
    """Return where the state of the service in ``paths`` is, or goes; nothing is made."""
    kind = network_file_system(paths.home)
    if not kind:
        return Place(paths)
    digest = hashlib.sha256(os.fsencode(paths.home)).hexdigest()[:8]
    local = LOCAL_STATE / f"picloud-{os.getuid()}-{digest}"
    note = (
        f"{paths.home} is on a network file system ({kind}), where a database is not safe; "
        f"state is kept on this machine in {local}"
    )
    return Place(replace(paths, home=local), note)


def _refuse_half_restored(paths: ServicePaths) -> None:
    if paths.restoring.exists() and not (paths.home / "store.db").exists():
        raise InvalidRequest(
            f"a backup was being restored into {paths.home}, and that did not come to its end",
            hint="repeat `picloud restore`, or give it up with `picloud down --purge`",
        )


def _require_room(home: Path) -> None:
    """Raise if the service cannot start for want of space.

    One that was here before gives up its reserve for it: with the service up, old jobs can be deleted.
    """
    least_bytes = LEAST_BYTES
    store = home / "store.db"
    if store.exists():
        least_bytes = LEAST_AGAIN_BYTES
        if disk_space(home).free_bytes < least_bytes:
            ballast_of(store).unlink(missing_ok=True)
    free_bytes = disk_space(home).free_bytes
    if free_bytes < least_bytes:
        raise DiskFull(
            f"the disk that holds {home} has {free_bytes // 1024} KiB free; "
            f"the service needs at least {least_bytes // 1024**2} MiB to start",
            hint="Free some space, or move the home with PICLOUD_HOME.",
        )


def _refuse_what_is_not_ours(home: Path) -> None:
    """Raise if the first service of ``home`` would put its state among somebody's own folders."""
    found = [name for name in STATE_FOLDERS if (home / name).exists()]
    if found:
        raise InvalidRequest(
            f"{home} has {', '.join(found)} already, which no service made; its state would be among your own files, "
            "and be removed with them",
            hint="Name a new or an empty folder with PICLOUD_HOME.",
        )


def load_settings(paths: ServicePaths, options: Sequence[str]) -> Settings:
    """Return the settings; traitlets is imported only where a file or options need it.

    Raises:
        InvalidRequest: one of them is wrong; the message names it.
    """
    try:
        if options or any((paths.home / name).exists() for name in _CONFIG_FILES):
            from picloud_services.config.load import load

            return load(paths, options)
        return from_environment(paths)
    except ValueError as exc:
        raise InvalidRequest(f"a setting of the service is wrong: {exc}") from exc


def as_startup_error(error: CloudException | OSError | ValueError) -> CloudException:
    """Return ``error`` as one that a client can raise."""
    if isinstance(error, CloudException):
        return error
    if isinstance(error, ValueError):  # a file of the home is damaged: the words name it
        return PlatformError(f"the service cannot start: {error}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"the disk is full ({error.filename or 'the home folder'})",
            hint="Free some space there, or move it: PICLOUD_HOME names the home, XDG_RUNTIME_DIR the folder of sockets.",
        )
    return PlatformError(
        f"the service cannot start: {error.strerror or error}: {error.filename or ''}".rstrip(
            ": "
        )
    )


def report_failure(paths: ServicePaths, error: CloudException) -> None:
    """Leave ``error`` where the client looks, and on standard error.

    Nothing is left where the socket's own service is well: its clients need no bad news.
    """
    sys.stderr.write(
        f"{time.strftime('%F %T')} the control plane did not start: {scrub(str(error))}\n"
    )
    record = read_record(paths.record)
    if isinstance(error, Conflict) and record is not None and is_alive(record):
        return
    content = json.dumps(error_to_wire(error)).encode()
    # The words are on standard error in any case; this folder may be what is wrong.
    with contextlib.suppress(OSError):
        write_atomically(paths.run / "startup-error.json", content)
