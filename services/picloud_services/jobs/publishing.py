"""Tells everybody of committed changes: the image, its watchers, and whoever listens."""

from collections.abc import Sequence

from picloud_jupyter.protocol.jobs import Status
from picloud_services.base.events import Events
from picloud_services.jobs.live import Change, LiveJobs, Ready

TOPIC = "jobs.changed"


class Publisher:
    """One call per committed transaction, on the loop, in commit order."""

    def __init__(self, live: LiveJobs, events: Events) -> None:
        self._live = live
        self._events = events

    def apply(self, changes: Sequence[Change]) -> None:
        """Take over ``changes``."""
        if changes:
            self._live.apply(changes)
            self._events.publish(TOPIC, changes)


def ready_from(changes: Sequence[Change]) -> list[Ready]:
    """Return what became queued by ``changes``."""
    return [
        Ready(c.batch, c.first_jid, c.last_jid - c.first_jid + 1)
        for c in changes
        if c.new is Status.QUEUED
    ]
