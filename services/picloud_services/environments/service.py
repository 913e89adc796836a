"""Whether this machine has the Python, the folder and the volumes that a job asks for."""

import os
from collections.abc import Sequence

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import EndReason, HostPython
from picloud_services.base.clock import Clock
from picloud_services.environments.identity import environment_id
from picloud_services.environments.readable import Looks, Wanted

CHECK_SECONDS = 5.0  # a burst of submits asks the disk once
KNOWN_COUNT = 256
Volume = tuple[str, str, str]
_Asked = tuple[int, HostPython, str, tuple[Volume, ...]]  # of which user


class EnvironmentService:
    """Names the environments that submitters bring, and refuses those that are not on this machine.

    What a job pins is the id alone; it is computed from the submit, so nothing needs to be stored.
    ``everybody``: users besides our own are served; files are then looked at with their rights.
    """

    def __init__(self, clock: Clock, *, everybody: bool = False) -> None:
        self._clock = clock
        self._looks = Looks(everybody=everybody)
        self._checked: dict[_Asked, tuple[str, float]] = {}

    async def check(
        self,
        user_id: int,
        host_python: HostPython,
        folder: str = "",
        volumes: Sequence[Volume] = (),
    ) -> str:
        """Return the id of the environment whose Python is ``host_python``.

        Containers look again, at what they then show; this is for early words.

        Raises:
            InvalidRequest: (``reason`` env_missing) a path of it, ``folder`` or a volume is not here
                or may not be read by the user ``user_id``; the message names the path.
            Unavailable: the disk of one of them does not answer.
        """
        key = user_id, host_python, folder, tuple(volumes)
        known = self._checked.get(key)
        now = self._clock.steady_seconds()
        if known is not None and now - known[1] < CHECK_SECONDS:
            return known[0]
        places = [Wanted(folder, "the submitting folder")] if folder else []
        places += [
            Wanted(source, "a volume", writable=mode == "rw") for source, _, mode in volumes
        ]
        paths = (host_python.executable, *host_python.paths)
        places += [Wanted(path, "a path of the submitter's Python") for path in paths]
        await self._require(user_id, places)
        identity = known[0] if known else environment_id(host_python)
        if len(self._checked) >= KNOWN_COUNT:
            self._checked.clear()
        self._checked[key] = identity, now
        return identity

    async def _require(self, user_id: int, places: Sequence[Wanted]) -> None:
        for place in places:
            if not os.path.isabs(place.path):
                raise InvalidRequest(
                    f"{place.what} must be an absolute path, got {place.path[:200]!r}"
                )
            if "\0" in place.path:
                raise InvalidRequest(
                    f"{place.what} must be a path without NUL characters, got {place.path[:200]!r}"
                )
        refused = await self._looks.first_refused(user_id, places)
        if refused is not None:
            place, problem = refused
            raise InvalidRequest(
                f"{place.path}, {place.what}, {problem}",
                hint="Submit from a Python and a folder that exist where the jobs run, and that you may read.",
                reason=EndReason.ENV_MISSING.value,
            )
