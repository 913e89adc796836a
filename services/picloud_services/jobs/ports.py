"""What the job service needs from floors above it: given in by `picloud_services.app`."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import JobSpec
from picloud_services.jobs.leasing import Arguments
from picloud_services.jobs.live import Ready
from picloud_services.jobs.store import NewLease
from picloud_services.jobs.words import Function


class Dispatch(Protocol):
    """Runs what is ready. On the loop; never blocks."""

    def check(self, user_id: int, spec: JobSpec) -> None:
        """Return if jobs of ``spec`` can be held by some node, within the user's quota.

        Raises:
            InvalidRequest: (``reason`` never_scheduled) none can; the message names the limit.
            QuotaExceeded: one needs more than the user's quota.
        """

    def reserve(
        self, user_id: int, spec: JobSpec, priority: int, function_digest: str
    ) -> NewLease | None:
        """Return a lease for one job that may start at once, or None if it must queue."""

    def cancel(self, lease: NewLease) -> None:
        """Give back a reserved lease that was not committed; if its job was launched, revoke it."""

    def launch(
        self, lease: NewLease, spec: JobSpec, arguments: Arguments, function: Function
    ) -> None:
        """Start the job of a reserved lease that is committed now, or restartable and about to be."""

    def add(
        self,
        ready: Sequence[Ready],
        arguments: Arguments | None = None,
        function: Function | None = None,
    ) -> None:
        """Queue jobs; their payloads, where at hand, spare reading them again."""

    def killed(self, jids: Sequence[JidRange]) -> None:
        """Drop jobs that were ended by request from the queue and from leases."""

    def kill_running(self, jids: Sequence[int]) -> None:
        """End elements that run now; their ends come as outcomes."""

    def why(self, jid: int) -> str:
        """Return why a queued job does not run yet: "queued because ..."."""

    def lease_of(self, jid: int) -> NewLease | None:
        """Return the lease that a job is given out under, running or not."""


class OutputReader(Protocol):
    """Where what jobs print is read and removed: an `Engine`."""

    async def read_output(
        self, node: str, lease: str, position: int, stream: str, offset: int, limit: int
    ) -> "OutputSlice":
        """Return what the element printed to ``stream``."""

    async def delete_output(self, node: str, leases: Sequence[str]) -> None:
        """Remove the output files of ``leases``."""

    async def sweep_output(
        self, named: Callable[[Sequence[str]], Awaitable[set[str]]], *, before_at: float
    ) -> int:
        """Remove files of output of before ``before_at`` (UTC) that no row names; return their count.

        ``named`` gets at most 500 leases and answers those that a row names.
        """


class OutputSlice(Protocol):
    """See `picloud_services.dispatch.engine.OutputSlice`."""

    @property
    def data(self) -> bytes:
        """The bytes."""

    @property
    def total_bytes(self) -> int:
        """What there is so far."""
