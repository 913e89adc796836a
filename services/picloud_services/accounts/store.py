"""Rows of users: quotas, what their jobs occupy and have cost. Counters of jobs: jobs/counting.py."""

from collections.abc import Mapping
from dataclasses import dataclass

from picloud_jupyter.protocol.errors import QuotaExceeded
from picloud_jupyter.protocol.jobs import EndReason
from picloud_jupyter.protocol.users import Quota
from picloud_services.accounts import quotas
from picloud_services.accounts.quotas import Standing
from picloud_services.base.sql import Statement, Transaction

_OCCUPY = Statement(
    """INSERT INTO users (user_id, disk_bytes, created_at) VALUES (:user_id, :size, :at)
    ON CONFLICT (user_id) DO UPDATE SET disk_bytes = users.disk_bytes + excluded.disk_bytes
    RETURNING cost, disk_bytes, max_disk_bytes"""
)
_RELEASE = Statement(
    """UPDATE users SET disk_bytes = disk_bytes - :size WHERE user_id = :user_id
    RETURNING cost, disk_bytes"""
)
_SET_QUOTA = Statement(
    """INSERT INTO users (user_id, max_cores, max_memory_bytes, max_disk_bytes, max_cost, created_at)
    VALUES (:user_id, :cores, :memory_bytes, :disk_bytes, :cost, :at)
    ON CONFLICT (user_id) DO UPDATE SET max_cores = excluded.max_cores,
      max_memory_bytes = excluded.max_memory_bytes, max_disk_bytes = excluded.max_disk_bytes,
      max_cost = excluded.max_cost"""
)
_ALL = Statement(
    """SELECT user_id, max_cores, max_memory_bytes, max_disk_bytes, max_cost, cost, disk_bytes,
      core_seconds, created_at, recent_core_seconds, recent_at
    FROM users ORDER BY user_id"""
)
_SAVE_RECENT = Statement(
    """UPDATE users SET recent_core_seconds = :seconds, recent_at = :at
    WHERE user_id = :user_id"""
)


@dataclass(frozen=True, slots=True)
class UserRow:
    """One user. ``recent_core_seconds`` is what was used lately, as of ``recent_at``."""

    user_id: int
    own: Quota
    standing: Standing
    core_seconds: float
    created_at: float | None
    recent_core_seconds: float
    recent_at: float


def occupy(
    tx: Transaction, user_id: int, size_bytes: int, at: float, default: Quota
) -> Standing:
    """Count what a user is about to store, who is entered if new; return what that makes.

    Raises:
        QuotaExceeded: it is more than the user's quota.
    """
    row = tx.one(_OCCUPY, user_id=user_id, size=size_bytes, at=at)
    assert row is not None
    cost, disk_bytes, own = row
    quota = quotas.in_force(Quota(disk_bytes=own), default)
    require(quotas.why_no_room(quota, Standing(cost, disk_bytes - size_bytes), size_bytes))
    return Standing(cost, disk_bytes)


def release(tx: Transaction, freed: Mapping[int, int]) -> dict[int, Standing]:
    """Count what is not stored any more, bytes by user; return what that makes."""
    found = {}
    for user_id, size_bytes in freed.items():
        row = tx.one(_RELEASE, user_id=user_id, size=size_bytes)
        if row is not None:
            found[user_id] = Standing(*row)
    return found


def require(words: str) -> None:
    """Return if there are no ``words`` on why not.

    Raises:
        QuotaExceeded: there are.
    """
    if words:
        raise QuotaExceeded(
            f"{words[0].upper()}{words[1:]}.",
            reason=EndReason.CAP_REACHED,
            hint=f"delete jobs that you do not need any more (cloud.delete); {quotas.RAISE}"
            if "disk" in words
            else quotas.RAISE,
        )


def set_quota(tx: Transaction, user_id: int, quota: Quota, at: float) -> None:
    """Write a user's own quota; the user is entered if new."""
    tx.run(
        _SET_QUOTA,
        user_id=user_id,
        cores=quota.cores,
        memory_bytes=quota.memory_bytes,
        disk_bytes=quota.disk_bytes,
        cost=quota.cost,
        at=at,
    )


def read_users(tx: Transaction) -> list[UserRow]:
    """Return every user that ever submitted a job or was given a quota."""
    return [
        UserRow(user_id, Quota(cores, memory, disk, cost), Standing(spent, occupied), *rest)
        for user_id, cores, memory, disk, cost, spent, occupied, *rest in tx.all(_ALL)
    ]


def save_recent(tx: Transaction, recent: Mapping[int, float], at: float) -> None:
    """Write what users used lately, in core-seconds."""
    tx.many(
        _SAVE_RECENT,
        [{"user_id": user, "seconds": seconds, "at": at} for user, seconds in recent.items()],
    )
