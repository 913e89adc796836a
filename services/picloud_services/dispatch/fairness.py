"""Whose turn it is: the user with the least core-seconds used lately. Pure."""

HALF_LIFE_SECONDS = 600.0


class FairShare:
    """What each user has used, halved every ten minutes. ``now`` is steady seconds."""

    def __init__(self) -> None:
        self._used: dict[int, tuple[float, float]] = {}

    def charge(self, user_id: int, core_seconds: float, now: float) -> None:
        """Add to what a user has used."""
        self._used[user_id] = self.used(user_id, now) + core_seconds, now

    def used(self, user_id: int, now: float) -> float:
        """Return what a user has used, decayed."""
        used, at = self._used.get(user_id, (0.0, now))
        return used * float(0.5 ** ((now - at) / HALF_LIFE_SECONDS))

    def order(self, holding: dict[int, float], now: float) -> list[int]:
        """Return the users in order of their turn; ``holding`` are cores that each holds now.

        What runs is not charged yet, so a core held counts as a second used.
        """
        if len(holding) < 2:
            return list(holding)
        return sorted(holding, key=lambda user: (self.used(user, now) + holding[user], user))
