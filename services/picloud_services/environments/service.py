"""Whether this machine has the Python that a job asks for."""

import os

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import EndReason, HostPython
from picloud_services.base.clock import Clock
from picloud_services.environments.identity import environment_id

CHECK_SECONDS = 5.0  # a burst of submits asks the disk once
KNOWN_COUNT = 256


class EnvironmentService:
    """Names the environments that submitters bring, and refuses those that are not on this machine.

    What a job pins is the id alone; it is computed from the submit, so nothing needs to be stored.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._checked: dict[HostPython, tuple[str, float]] = {}

    def check(self, host_python: HostPython, folder: str = "") -> str:
        """Return the id of the environment whose Python is ``host_python``.

        Raises:
            InvalidRequest: (``reason`` env_missing) a path of it, or ``folder``, is not here or
                may not be read; the message names the path.
        """
        if folder:
            _require_readable(folder, "the submitting folder")
        known = self._checked.get(host_python)
        now = self._clock.steady_seconds()
        if known is not None and now - known[1] < CHECK_SECONDS:
            return known[0]
        for path in (host_python.executable, *host_python.paths):
            _require_readable(path, "a path of the submitter's Python")
        identity = known[0] if known else environment_id(host_python)
        if len(self._checked) >= KNOWN_COUNT:
            self._checked.clear()
        self._checked[host_python] = identity, now
        return identity


def _require_readable(path: str, what: str) -> None:
    if not os.path.isabs(path):
        raise InvalidRequest(f"{what} must be an absolute path, got {path[:200]!r}")
    if not os.access(path, os.R_OK):
        problem = (
            "may not be read by the service"
            if os.path.exists(path)
            else "is not on this machine"
        )
        raise InvalidRequest(
            f"{path}, {what}, {problem}",
            hint="Submit from a Python and a folder that exist where the jobs run.",
            reason=EndReason.ENV_MISSING.value,
        )
