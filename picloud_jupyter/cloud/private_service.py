"""A service of this program's own: plain processes, a temporary home, gone when the program ends.

Behind `cloud.mp` and `cloud.start_simulator`. Within a job it is the service of that job: what a job
submits runs where the job itself runs.
"""

import atexit
import contextlib
import os
import tempfile
import threading
from pathlib import Path

from picloud_jupyter.cloud.session import Service, simulate
from picloud_jupyter.transport.endpoint import Endpoint, find_endpoint
from picloud_jupyter.transport.inside import current_job
from picloud_jupyter.transport.paths import ServicePaths, service_paths

_lock = threading.Lock()
_paths: ServicePaths | None = None


def _find() -> Endpoint:
    if current_job() is not None:
        return find_endpoint()
    from picloud_jupyter.transport.embedded import endpoint_of

    return endpoint_of(_home())


def _home() -> ServicePaths:
    """The folders of the service, made once; a forked child shares those of its parent."""
    global _paths  # noqa: PLW0603  # one for the program
    with _lock:
        if _paths is None:
            _paths = service_paths(Path(tempfile.mkdtemp(prefix="picloud-private-")))
            atexit.register(_remove_unused, _paths.home, os.getpid())
        return _paths


def _remove_unused(home: Path, process_id: int) -> None:
    """Remove the home of a service that was never started; one that was removes its own."""
    if os.getpid() == process_id:
        with contextlib.suppress(OSError):
            home.rmdir()


def _start(paths: ServicePaths) -> bool:
    from picloud_jupyter.transport.embedded import ensure_running

    variables = {
        "PICLOUD_CONTAINER_KIND": "plain",
        "PICLOUD_OWNER_PROCESS": _this_process(),
    }
    return ensure_running(paths, variables)


def _this_process() -> str:
    """The process whose end is the end of the service: pid and start time."""
    text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
    return f"{os.getpid()}:{text.rpartition(')')[2].split()[19]}"


PRIVATE = Service(_find, _start)
PRIVATE.private = True


def start_simulator() -> None:
    """Run all further jobs of `cloud` in a service of this program's own: local processes, not isolated.

    Everything else is as always: statuses, keywords, limits, output, errors of pickling. Jobs and results
    are gone when the program ends. `is_simulated` tells; a second call changes nothing, `setkey` goes back.
    """
    simulate(PRIVATE)
