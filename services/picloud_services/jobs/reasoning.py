"""Why a job does not run yet, in words."""

from picloud_jupyter.protocol.ids import format_jids
from picloud_jupyter.protocol.jobs import Status
from picloud_services.jobs.dependencies import Dependencies
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.ports import Dispatch


class Whys:
    """Asks those who know: the dependencies, or the dispatcher."""

    def __init__(self, live: LiveJobs, dependencies: Dependencies, dispatch: Dispatch) -> None:
        self._live = live
        self._dependencies = dependencies
        self._dispatch = dispatch

    def why(self, jid: int) -> str:
        """Return why ``jid`` is waiting or queued; "" if it is neither."""
        status = self._live.status(jid)
        if status is Status.QUEUED:
            return self._dispatch.why(jid)
        if status is Status.WAITING:
            span = self._live.find(jid)
            assert span is not None
            ranges = self._dependencies.waits_for(span.batch)
            jids = format_jids(ranges)
            noun = "job" if jids.isdecimal() else "jobs"
            return f"waiting for {noun} {jids} to finish" if ranges else ""
        return ""
