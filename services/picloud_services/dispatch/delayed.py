"""Jobs that are to run again after a while. Pure."""

import heapq
from collections.abc import Container

from picloud_services.jobs.live import Ready


class Delayed:
    """Ready jobs whose time has not come; a look costs what is due, however many wait."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, Ready]] = {}  # first jid -> when, what
        self._order: list[tuple[float, int]] = []  # when, first jid

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ready: Ready, now: float) -> None:
        """Keep ``ready`` for its delay."""
        due = now + ready.delay_seconds
        self._waiting[ready.first_jid] = due, ready
        heapq.heappush(self._order, (due, ready.first_jid))

    def take(self, now: float, batches: Container[int]) -> list[Ready]:
        """Remove and return what is due; what is next and of none of ``batches`` is dropped."""
        found = []
        while self._order:
            due, jid = self._order[0]
            kept = self._waiting.get(jid)
            if kept is not None and kept[0] == due:
                is_live = kept[1].batch in batches
                if is_live and due > now:
                    break
                if is_live:
                    found.append(kept[1])
                del self._waiting[jid]
            heapq.heappop(self._order)
        return found

    def seconds_left(self, jid: int, now: float) -> float | None:
        """Return how long ``jid`` still waits; None if it does not."""
        kept = self._waiting.get(jid)
        return kept[0] - now if kept else None
