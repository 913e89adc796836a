"""The API of jobs: one method per request of docs/internals.md 8.

Every method acts for ``user_id`` (the peer uid); what is not that user's raises `NotFound`, as if
it did not exist. All may raise `DiskFull`, `Corrupt` and `Unavailable` of the store. Async; nothing
here blocks the loop.
"""

from collections.abc import Sequence
from typing import Any

from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import JobSpec
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs.words import (
    CallReceipt,
    Function,
    JobLine,
    MapReceipt,
    OutputPlace,
    PartReceipt,
    Payload,
    Ranges,
    ResultItem,
    ResultsAnswer,
    WaitAnswer,
)


class JobService:
    """Submits, watches, ends and removes jobs."""

    # ------------------------------------------------------------------------------- submitting
    async def submit_call(
        self, user_id: int, spec: JobSpec, key: str, function: Function, arguments: Payload
    ) -> CallReceipt:
        """Return the receipt of a job that is committed.

        Raises:
            InvalidRequest: a value is out of range, or nothing here can ever hold it
                (``reason`` never_scheduled).
            NotFound: a dependency or the code version is unknown.
            QuotaExceeded: the user's cap is reached.
        """

    async def create_map(
        self, user_id: int, spec: JobSpec, key: str, count: int | None, function: Function
    ) -> MapReceipt:
        """Return a new map without jobs, or the one made with ``key`` before. Raises as above."""

    async def put_part(
        self,
        user_id: int,
        map_id: int,
        part: int,
        first_index: int,
        count: int,
        arguments: bytes,
        files: Sequence[tuple[int, BlobRef]] = (),
    ) -> PartReceipt:
        """Return where the jobs of ``part`` are, committed; repeating a part gives the same answer.

        ``arguments`` is a pack of ``count`` records, empty for those in ``files`` (index in part).

        Raises:
            InvalidRequest: the pack does not fit; more than 1,000; outside the map.
            Conflict: the map is sealed or given up, or the part was sent with another content.
        """

    async def seal_map(
        self, user_id: int, map_id: int, count: int, parts: int
    ) -> list[JidRange]:
        """Return the jids of the map, in order of its indices; repeatable.

        Raises:
            Conflict: parts are missing, or the counts differ; the message says which.
        """

    # ---------------------------------------------------------------------------------- reading
    async def counts(self, user_id: int) -> dict[str, int]:
        """Return how many jobs of the user are in each status."""

    async def list_jobs(
        self,
        user_id: int,
        *,
        limit: int = 50,
        before: int | None = None,
        label: str | None = None,
        status: str | None = None,
        map_id: int | None = None,
    ) -> list[JobLine]:
        """Return at most ``limit`` (up to 1,000) jobs below jid ``before``, newest first."""

    async def statuses(self, user_id: int, jids: Ranges) -> list[tuple[int, int, str]]:
        """Return runs (first jid, last jid, status) that cover ``jids``. NotFound for others."""

    async def wait(
        self,
        user_id: int,
        jids: Ranges,
        *,
        timeout_seconds: float,
        until: str = "all",
        counts_seen: dict[str, int] | None = None,
    ) -> WaitAnswer:
        """Return how far ``jids`` are, as soon as ``until`` holds or the time is over (max 60 s).

        ``until``: "all" = all finished; "error" = one failed or all finished; "change" = counts
        differ from ``counts_seen``. Cancelling the call is safe.
        """

    async def results(
        self, user_id: int, jids: Ranges, *, limit_bytes: int, wait_seconds: float = 0.0
    ) -> ResultsAnswer:
        """Return the results of those of ``jids`` that are finished, in the order asked.

        With ``wait_seconds`` (max 60) it waits for the first of ``jids`` to finish.
        """

    async def result(self, user_id: int, jid: int) -> ResultItem:
        """Return the result of one finished job. Conflict while it is not finished."""

    async def info(
        self, user_id: int, jids: Ranges, fields: Sequence[str] | None
    ) -> dict[int, dict[str, Any]]:
        """Return ``{jid: {field: value}}``; None = stdout, stderr, status, runtime.

        Groups (memory, cputime ...) come as flat dotted keys, ["all"] gives every field.

        Raises:
            InvalidRequest: unknown field; the message names near ones.
        """

    async def arguments(self, user_id: int, jid: int) -> Payload:
        """Return the pickled (args, kwargs) of a job."""

    async def function(self, user_id: int, jid: int) -> Function:
        """Return the pickled function of a job."""

    async def output_place(self, user_id: int, jid: int) -> OutputPlace | None:
        """Return where the output of a job's last attempt is; None if it never started."""

    async def require(self, user_id: int, jids: Ranges) -> None:
        """Return if all of ``jids`` are the user's.

        Raises:
            NotFound: the first that is not.
        """

    def lease_is_live(self, lease: str, user_id: int, jid: int, attempt: int) -> bool:
        """Return whether ``lease`` runs that attempt of ``jid`` now: the check behind job keys."""

    # ------------------------------------------------------------------------- ending, removing
    async def kill(self, user_id: int, jids: Ranges | None) -> int:
        """Return how many jobs were ended; None = everything unfinished of the user.

        Returns when each is final, or its kill was sent and not answered for 2 seconds.
        """

    async def delete(self, user_id: int, jids: Ranges) -> int:
        """Return how many jobs were removed with all that belongs to them.

        Raises:
            Conflict: one is not finished.
        """
