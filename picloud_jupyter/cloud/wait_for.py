"""`cloud.wait_for`: waiting for more than the end of a job."""

from typing import Any

from picloud_jupyter.cloud.jid_ranges import is_single_jid, read_jids
from picloud_jupyter.cloud.session import session
from picloud_jupyter.cloud.waiting import Deadline
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, Status

# What may still come after each status that is not final; a retried job goes back to queued.
_STILL_POSSIBLE = {
    Status.WAITING: frozenset(Status),
    Status.QUEUED: frozenset(Status) - {Status.WAITING},
    Status.PROCESSING: frozenset(Status) - {Status.WAITING},
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # there is none
    if name == "port":
        raise AttributeError("cloud.wait_for.port of PiCloud does not exist in this version")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def status(jid: Any, test_status: str, timeout: float | None = None) -> str:  # noqa: ANN401
    """Return ``test_status`` as soon as the job has it.

    Raises:
        TypeError: ``jid`` is not one job id.
        ValueError: there is no such status.
        CloudException: the job can never have that status any more.
        CloudTimeoutError: ``timeout`` seconds passed.
    """
    if not is_single_jid(jid):
        raise TypeError(f"a job id must be an int, got {jid!r}")
    if test_status not in set(Status):
        raise ValueError(f"a status is one of {', '.join(Status)}; got {test_status!r}")
    deadline = Deadline(timeout)
    pair = read_jids(jid)
    client = session().client
    while True:
        now = client.post(routes.STATUS, {"jids": pair})["statuses"][0][2]
        if now == test_status:
            return str(now)
        if now in FINISHED_STATUSES or test_status not in _STILL_POSSIBLE[Status(now)]:
            raise CloudException(f"it is {now} and will never be {test_status}", pair[0][0])
        if deadline.over:
            raise deadline.error(pair)
        seconds = deadline.slice_seconds()
        request = {
            "jids": pair,
            "timeout_seconds": seconds,
            "until": "change",
            "counts_seen": {now: 1},
        }
        client.post(routes.WAIT, request, wait_seconds=seconds)
