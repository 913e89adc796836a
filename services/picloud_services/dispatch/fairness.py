"""Whose turn it is: the user with the least core-seconds used lately. Pure."""

from collections.abc import Mapping

HALF_LIFE_SECONDS = 600.0


class FairShare:
    """What each user has used, halved every ten minutes. ``now`` is steady seconds."""

    def __init__(self) -> None:
        self._used: dict[int, tuple[float, float]] = {}
        self._changed: set[int] = set()

    def charge(self, user_id: int, core_seconds: float, now: float) -> None:
        """Add to what a user has used."""
        self._used[user_id] = self.used(user_id, now) + core_seconds, now
        self._changed.add(user_id)

    def used(self, user_id: int, now: float) -> float:
        """Return what a user has used, decayed."""
        used, at = self._used.get(user_id, (0.0, now))
        return decay(used, now - at)

    def restore(self, recent: Mapping[int, tuple[float, float]], now: float) -> None:
        """Take over what an earlier service knew: (core-seconds, seconds ago) by user."""
        for user_id, (core_seconds, age_seconds) in recent.items():
            self.charge(user_id, decay(core_seconds, age_seconds), now)

    def take_changed(self, now: float) -> dict[int, float]:
        """Return what those have used, decayed, who were charged since this was asked."""
        changed, self._changed = self._changed, set()
        return {user_id: self.used(user_id, now) for user_id in changed}

    def level(self, user_id: int, running: float, now: float) -> float:
        """Return what a user has used with what runs, which is charged only when it ends."""
        return self.used(user_id, now) + running

    def order(self, running: Mapping[int, float], now: float) -> list[int]:
        """Return the users in order of their turn; ``running``: what runs has used so far."""
        if len(running) < 2:
            return list(running)
        return sorted(running, key=lambda user: (self.level(user, running[user], now), user))


def decay(core_seconds: float, age_seconds: float) -> float:
    """Return what is left of a use after some time.

    >>> decay(100.0, 600.0)
    50.0
    """
    return core_seconds * float(0.5 ** (age_seconds / HALF_LIFE_SECONDS))
