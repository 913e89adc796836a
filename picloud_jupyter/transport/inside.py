"""Which job this process runs in: set by the runner, inherited by child processes."""

import os
from typing import NamedTuple

SOCKET_NAME = "api.sock"
ELEMENT_VARIABLES = ("PICLOUD_JID", "PICLOUD_JOB_KEY")  # differ between the elements of a chunk
CHUNK_VARIABLES = ("PICLOUD_ATTEMPT", "PICLOUD_LEASE", "PICLOUD_USER_ID")


class CurrentJob(NamedTuple):
    """The job that this process runs in, and how it reaches the control plane."""

    jid: int
    attempt: int
    lease: str
    user_id: int
    key: str
    api_socket: str


_current: CurrentJob | None = None


def set_current_job(job: CurrentJob | None) -> None:
    """Remember the job that this interpreter runs from now on; called by the runner only."""
    global _current  # noqa: PLW0603  # one job at a time runs in an interpreter
    _current = job


def current_job() -> CurrentJob | None:
    """Return the job that this process runs in, or None outside of jobs."""
    return _current if _current is not None else _from_environment()


def _from_environment() -> CurrentJob | None:
    variables = os.environ
    key = variables.get("PICLOUD_JOB_KEY")
    run_dir = variables.get("PICLOUD_RUN_DIR")
    if not key or not run_dir:
        return None
    try:
        return CurrentJob(
            jid=int(variables["PICLOUD_JID"]),
            attempt=int(variables["PICLOUD_ATTEMPT"]),
            lease=variables["PICLOUD_LEASE"],
            user_id=int(variables["PICLOUD_USER_ID"]),
            key=key,
            api_socket=os.path.join(run_dir, SOCKET_NAME),
        )
    except (KeyError, ValueError):  # somebody else's variables: not a job of ours
        return None
