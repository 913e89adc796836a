"""Where a service keeps its state and its sockets: the embedded one of a user, or the system's."""

import hashlib
import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from picloud_jupyter.protocol.errors import InvalidRequest

SYSTEM_HOME = "/var/lib/picloud"
SYSTEM_FOLDER = "/run/picloud"
STATE_FOLDERS = ("blobs", "code", "logs", "bundle", "layers", "secrets")  # in ``home``


@dataclass(frozen=True, slots=True)
class ServicePaths:
    """Folders of one service: ``home`` keeps state, ``run`` holds sockets; both are its user's alone.

    ``run`` is short on purpose: the path of a unix socket has at most 107 bytes. ``public`` is set
    for the service of the whole system: everybody may enter it, and it holds the API's socket.
    """

    home: Path
    run: Path
    public: Path | None = None

    @property
    def api_socket(self) -> Path:
        """The control API."""
        return (self.public or self.run) / "api.sock"

    @property
    def jobs_socket(self) -> Path:
        """Requests of code inside containers, forwarded by the agent; a job key is mandatory."""
        return self.run / "jobs.sock"

    @property
    def agent_socket(self) -> Path:
        """The agent's link to the control plane."""
        return self.run / "agent.sock"

    @property
    def record(self) -> Path:
        """JSON of the running service: host id, boot id, pid, start time, version."""
        return self.run / "record.json"

    @property
    def agent_record(self) -> Path:
        """JSON of the running agent: pid, start time."""
        return self.run / "agent.json"

    @property
    def lock(self) -> Path:
        """Locked by the running service."""
        return self.home / "lock"

    @property
    def was_held(self) -> bool:
        """Whether a service ever held ``home``: what is called like its state there is its own."""
        return self.lock.exists() or (self.home / "store.db").exists()

    @property
    def restoring(self) -> Path:
        """Holds a backup that is being restored; it is no state yet."""
        return self.home / "restoring"

    @property
    def whereabouts(self) -> Path:
        """Holds the ``run`` of the service that has the lock of ``home``."""
        return self.home / "service.run"

    @property
    def intent(self) -> Path:
        """Exists while the user wants the service down; both processes respect it."""
        return self.run / "intent"


def default_home() -> Path:
    """Return $PICLOUD_HOME, else the folder of this user's service in the XDG data directory.

    Raises:
        InvalidRequest: no variable names a folder, and this user has no home.
    """
    chosen = os.environ.get("PICLOUD_HOME")
    if not chosen:
        chosen = os.path.join(os.environ.get("XDG_DATA_HOME") or "~/.local/share", "picloud")
    try:
        return Path(chosen).expanduser()
    except RuntimeError as exc:
        raise InvalidRequest(
            f"there is no home folder to keep jobs in: HOME is not set, and uid {os.getuid()} has no account here",
            hint="set HOME or PICLOUD_HOME to a folder that you may write to",
        ) from exc


def checked(path: str) -> str:
    """Return ``path``, which is to be sent to a service or to be its home.

    Raises:
        InvalidRequest: its bytes are no UTF-8, or this Python was told to read them as something else.
    """
    try:
        path.encode()
    except UnicodeEncodeError as exc:
        encoding = sys.getfilesystemencoding()
        hint = (
            f"this Python reads names of files as {encoding}: set PYTHONUTF8=1 or LANG=C.UTF-8"
        )
        raise InvalidRequest(
            f"{os.fsencode(path)!r} is a path that cannot be written as UTF-8",
            hint="rename it" if encoding == "utf-8" else hint,
        ) from exc
    return path


def service_paths(home: str | os.PathLike[str] | None = None) -> ServicePaths:
    """Return the folders for ``home`` (default: $PICLOUD_HOME, else the XDG data directory).

    Where a process with another $XDG_RUNTIME_DIR (of cron, su ...) runs the service, ``run`` is there.
    """
    path = Path(checked(os.path.realpath(Path(home).expanduser() if home else default_home())))
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    run = Path("/tmp") / f"picloud-{os.getuid()}-{digest}"  # noqa: S108  # made 0700 and checked
    if runtime and len(runtime) <= 60 and _is_ours(Path(runtime)):
        run = Path(runtime) / f"picloud-{digest}"
    return _where_it_listens(ServicePaths(path, run))


def system_paths() -> ServicePaths:
    """Return the folders of the service that serves every user of this machine.

    $PICLOUD_SYSTEM_HOME and $PICLOUD_SYSTEM_RUN name others than /var/lib/picloud and /run/picloud.
    """
    home = os.environ.get("PICLOUD_SYSTEM_HOME") or SYSTEM_HOME
    public = Path(os.path.realpath(os.environ.get("PICLOUD_SYSTEM_RUN") or SYSTEM_FOLDER))
    return ServicePaths(Path(os.path.realpath(home)), public / "private", public)


def is_set_up(paths: ServicePaths) -> bool:
    """Say whether root set up a system service in ``paths``: from `up --system` to `down --system`.

    It may be starting, or have crashed. Nobody else can make such a folder.
    """
    if paths.public is None:
        return False
    try:
        found, private = paths.public.lstat(), paths.run.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and stat.S_ISDIR(private.st_mode)
        and found.st_uid == private.st_uid == 0
        and not found.st_mode & 0o022
    )


def _where_it_listens(paths: ServicePaths) -> ServicePaths:
    if _is_ours(paths.run) and paths.api_socket.exists():
        return paths
    try:
        run = Path(os.fsdecode(paths.whereabouts.read_bytes()))
    except OSError:
        return paths
    there = ServicePaths(paths.home, run)
    return there if _is_ours(run) and there.api_socket.exists() and _serves(there) else paths


def _serves(paths: ServicePaths) -> bool:
    """Whether the service in ``paths.run`` is that of this home: a copy of a home names the original's."""
    try:
        return bool(json.loads(paths.record.read_bytes())["home"] == str(paths.home))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make_run(paths: ServicePaths) -> None:
    """Make the folders that hold the sockets of ``paths``, or check them.

    Raises:
        PermissionError: one is somebody else's, a link, or others may write to it.
    """
    public = paths.public
    if public is not None:
        public.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = public.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(f"{public} is not a folder of this user; remove it")
        public.chmod(0o755)  # whatever the umask, and whoever could write to it
    make_private(paths.run)


def make_private(folder: Path) -> None:
    """Make ``folder`` with mode 0700, or check that it is a folder of ours that nobody else enters.

    Raises:
        PermissionError: it is somebody else's, a link, or open to others.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(folder):
        raise PermissionError(
            f"{folder} is not a private folder of this user; remove it, or set XDG_RUNTIME_DIR to another place"
        )


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except (OSError, ValueError):  # ValueError: a damaged file named it
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & 0o077
    )
