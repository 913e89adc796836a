"""The API: ``cloud.call(f, 3)`` runs a function as a durable job in a container.

The names are PiCloud's. ``help(cloud.call)`` and docs/guide.md say what each does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from picloud_jupyter import __version__
from picloud_jupyter.cloud import joblib_hook, secret, shell, wait_for
from picloud_jupyter.cloud.asynchronous import aresult
from picloud_jupyter.cloud.calls import call
from picloud_jupyter.cloud.handles import Jid, Jids
from picloud_jupyter.cloud.information import info
from picloud_jupyter.cloud.job_table import jobs
from picloud_jupyter.cloud.maps import map  # noqa: A004  # PiCloud's name
from picloud_jupyter.cloud.results import delete, iresult, join, kill, result, status
from picloud_jupyter.cloud.session import (
    close,
    connection_info,
    getconfigpath,
    is_simulated,
    running_on_cloud,
    set_dependency_whitelist,
    setkey,
)
from picloud_jupyter.cloud.settings import config
from picloud_jupyter.cloud.stories import why
from picloud_jupyter.cloud.written_files import files_of
from picloud_jupyter.protocol.errors import (
    CloudException,
    CloudTimeoutError,
    JobError,
    JobFailed,
    JobKilled,
    JobStalled,
    PlatformError,
    RequestError,
)

if TYPE_CHECKING:
    from picloud_jupyter.cloud import mp as mp
    from picloud_jupyter.cloud import pool_interface as pool_interface
    from picloud_jupyter.cloud.executor import Executor
    from picloud_jupyter.cloud.private_service import start_simulator

c1, c2, f2, m1, s1 = "c1", "c2", "f2", "m1", "s1"
finished_statuses = ["done", "stalled", "error", "killed"]

__all__ = [
    "CloudException",
    "CloudTimeoutError",
    "Executor",
    "Jid",
    "Jids",
    "JobError",
    "JobFailed",
    "JobKilled",
    "JobStalled",
    "PlatformError",
    "RequestError",
    "__version__",
    "aresult",
    "c1",
    "c2",
    "call",
    "close",
    "config",
    "connection_info",
    "delete",
    "f2",
    "files_of",
    "finished_statuses",
    "getconfigpath",
    "info",
    "iresult",
    "is_simulated",
    "jobs",
    "join",
    "kill",
    "m1",
    "map",
    "mp",
    "pool_interface",
    "result",
    "running_on_cloud",
    "s1",
    "secret",
    "set_dependency_whitelist",
    "setkey",
    "shell",
    "start_simulator",
    "status",
    "wait_for",
    "why",
]

_PICLOUD_HAD = frozenset(
    (
        *("account", "bucket", "cron", "environment", "files", "queue"),
        *("realtime", "rest", "shortcuts", "volume"),
    )
)
_LAZY = {  # loaded when they are first used: (module, name in it; "" = the module itself)
    "Executor": ("executor", "Executor"),
    "mp": ("mp", ""),
    "pool_interface": ("pool_interface", ""),
    "start_simulator": ("private_service", "start_simulator"),
}
joblib_hook.install()


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _LAZY:
        module, inner = _LAZY[name]
        found = importlib.import_module(f"{__name__}.{module}")
        globals()[name] = found = getattr(found, inner) if inner else found
        return found
    if name in _PICLOUD_HAD:
        raise AttributeError(f"cloud.{name} of PiCloud does not exist in this version")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
