"""Tells the log what became of leases: what went another way than usual, and what took long.

What went well within a second is told at level DEBUG alone: the store keeps it, and a line for each
would wash everything else out of the log.
"""

import logging
from collections import Counter
from typing import Any

from picloud_jupyter.protocol.jobs import Status
from picloud_services.dispatch.cluster import HeldLease
from picloud_services.dispatch.engine import EngineEvent
from picloud_services.jobs.lifecycle import exit_text
from picloud_services.jobs.outcomes import Outcome

LONG_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Telling:
    """Writes the lines, and counts what the metrics show."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()  # what leases ended with: an event's name
        self.late = 0  # reports of leases that were over

    def tell(
        self, event: EngineEvent, outcome: Outcome, held: HeldLease | None, now_at: float
    ) -> None:
        """Tell of one committed event."""
        if outcome.late:
            self.late += 1
            _log.info(
                "a report (%s) of a lease that was over is dropped",
                event.name,
                extra=_ids(event, outcome, held),
            )
            return
        if outcome.lease_over:
            self.ended[event.name] += 1
        is_usual = event.name == "batch" and not outcome.ready
        is_usual &= all(change.new is Status.DONE for change in outcome.changes)
        if is_usual and _age_seconds(event.lease, now_at) < LONG_SECONDS:
            if _log.isEnabledFor(logging.DEBUG):
                self._tell_end(event, outcome, held, now_at, logging.DEBUG)
            return
        if outcome.changes or outcome.lease_over:
            self._tell_end(event, outcome, held, now_at, logging.INFO)
        self._tell_again(event, outcome, held)

    @staticmethod
    def _tell_end(
        event: EngineEvent,
        outcome: Outcome,
        held: HeldLease | None,
        now_at: float,
        level: int,
    ) -> None:
        counts: Counter[str] = Counter()
        for change in outcome.changes:
            counts[change.new.value] += change.last_jid - change.first_jid + 1
        told = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
        state = "is over" if outcome.lease_over else "goes on"
        cause = cause_of(event)
        _log.log(
            level,
            "the lease %s after %.3f s, ended: %s%s",
            *(state, _age_seconds(event.lease, now_at), told, cause and f"; {cause}"),
            extra=_ids(event, outcome, held)
            | {"jids": [[c.first_jid, c.last_jid] for c in outcome.changes]},
        )

    @staticmethod
    def _tell_again(event: EngineEvent, outcome: Outcome, held: HeldLease | None) -> None:
        for ready in outcome.ready:
            last_jid = ready.first_jid + ready.count - 1
            later = f", in {ready.delay_seconds:g} s" if ready.delay_seconds else ""
            _log.info(
                "queued again%s, attempt %d: %s",
                *(later, ready.attempt, cause_of(event) or "its attempt failed"),
                extra=_ids(event, outcome, held) | {"jids": [[ready.first_jid, last_jid]]},
            )


def cause_of(event: EngineEvent) -> str:
    """Return why a lease went another way than by results; "" for results."""
    fields = event.fields
    if event.name == "returned":
        return "given back before it was started"
    if event.name == "start_failed":
        return f"it could not be started ({fields.get('reason')}): {fields.get('message')}"
    if event.name == "lease_lost":
        return "its node holds it no more"
    if event.name == "exited":
        if fields.get("lost"):
            return str(fields.get("message"))
        asked = f", asked for: {fields['asked']}" if fields.get("asked") else ""
        oom = ", out of memory" if fields.get("oom_count") else ""
        note = f", {fields['message']}" if fields.get("message") else ""
        exit_words = exit_text(int(fields.get("wait_status") or 0))
        return f"its container ended with {exit_words}{oom}{asked}{note}"
    return ""


def _age_seconds(lease: str, now_at: float) -> float:
    return now_at - int(lease, 16) / 1e9  # a lease is the time when it was made, see `Giving`


def _ids(event: EngineEvent, outcome: Outcome, held: HeldLease | None) -> dict[str, Any]:
    usage = event.fields.get("usage") or {}
    container = event.fields.get("container") or usage.get("container")
    found: dict[str, Any] = {"lease": event.lease, "node": event.node}
    if held is not None:
        found |= {"attempt": held.attempt, "slot": held.slot.slot}
        container = container or held.container
    if outcome.batch:
        found |= {"batch": outcome.batch, "user": outcome.user_id}
    return found | ({"container": container} if container else {})
