"""Which job this process runs in: set by the runner, inherited by child processes.

A job's key is made from its lease's key when it is first asked for: most jobs never ask.
"""

import os
from dataclasses import dataclass

SOCKET_NAME = "api.sock"
JID_VARIABLE = "PICLOUD_JID"  # differs between the elements of a chunk
LEASE_VARIABLES = (
    "PICLOUD_ATTEMPT",
    "PICLOUD_LEASE",
    "PICLOUD_USER_ID",
    "PICLOUD_LEASE_KEY",
)
SECRETS_VARIABLE = "PICLOUD_SECRETS"  # the names of variables that hold secrets, with commas


@dataclass(frozen=True, slots=True)
class CurrentJob:
    """The job that this process runs in, and how it reaches the control plane."""

    jid: int
    attempt: int
    lease: str
    user_id: int
    lease_key: str
    api_socket: str

    @property
    def key(self) -> str:
        """The API key of this job; good while its lease is live."""
        return job_key(self.user_id, self.jid, self.attempt, self.lease, self.lease_key)


def job_key(user_id: int, jid: int, attempt: int, lease: str, lease_key: str) -> str:
    """Return the API key of one job; ``lease_key`` is the hex key of its lease (docs/internals.md 8)."""
    import hmac  # most jobs never need a key

    claims = f"{user_id}.{jid}.{attempt}.{lease}"
    mac = hmac.digest(lease_key.encode(), claims.encode(), "sha256").hex()[:32]
    return f"pcj_{claims}.{mac}"


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
    lease_key = variables.get("PICLOUD_LEASE_KEY")
    if not lease_key:
        return None
    run_dir = variables.get("PICLOUD_RUN_DIR")
    if not run_dir:
        return None
    try:
        return CurrentJob(
            jid=int(variables["PICLOUD_JID"]),
            attempt=int(variables["PICLOUD_ATTEMPT"]),
            lease=variables["PICLOUD_LEASE"],
            user_id=int(variables["PICLOUD_USER_ID"]),
            lease_key=lease_key,
            api_socket=os.path.join(run_dir, SOCKET_NAME),
        )
    except (KeyError, ValueError):  # somebody else's variables: not a job of ours
        return None
