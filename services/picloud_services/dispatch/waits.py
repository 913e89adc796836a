"""Tells the log what queued jobs wait for, so that it is known afterwards too."""

import logging

from picloud_services.dispatch.assigning import Assigner
from picloud_services.dispatch.why import why_queued

LOOK_SECONDS = 1.0  # also: who waits less long is not told of
AGAIN_SECONDS = 600.0  # between two lines that say the same
MAX_USERS = 100  # looked at in one turn
_log = logging.getLogger(__name__)


class Waits:
    """Looks at the job of each user that is next in line."""

    def __init__(self, assigner: Assigner) -> None:
        self._assigner = assigner
        self._looked_at = 0.0
        self._told: dict[int, tuple[str, float]] = {}  # user -> words, when

    def look(self, now: float) -> None:
        """Write a line for each user whose next job waits, where that says something new."""
        queue = self._assigner.queue
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        waiting = queue.users()[:MAX_USERS]
        self._told = {user: self._told[user] for user in waiting if user in self._told}
        for user_id in waiting:
            work = queue.head(user_id)
            if work is None or now - work.since < LOOK_SECONDS:
                continue
            words = why_queued(work.first_jid, work.batch, self._assigner, None, now)
            before, told_at = self._told.get(user_id, ("", now))
            if words == before and now - told_at < AGAIN_SECONDS:
                continue
            self._told[user_id] = words, now
            _log.info(
                "%s",
                words,
                extra={"about": "waits", "jid": work.first_jid, "batch": work.batch_number}
                | {"user": user_id},
            )
