"""Counters of users and batches: changed in the transaction that changes the jobs.

A user's row counts what is finished; what is not is counted by the image in memory (`live`).
"""

from collections import Counter

from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, Status
from picloud_services.base.sql import Statement, Transaction

STORED_STATUSES = (
    Status.WAITING,
    Status.QUEUED,
    Status.DONE,
    Status.ERROR,
    Status.KILLED,
    Status.STALLED,
)
ENDED_STATUSES = tuple(s for s in STORED_STATUSES if s in FINISHED_STATUSES)
Delta = Counter[Status]


def _additions(statuses: tuple[Status, ...]) -> str:
    return ", ".join(f"{s} = {s} + :{s}" for s in statuses)


_USER = Statement(
    f"""UPDATE users SET {_additions(ENDED_STATUSES)}, core_seconds = core_seconds + :core_seconds,
    cost = cost + :cost WHERE user_id = :user_id"""  # noqa: S608  # names of our own columns
)
_NEW_USER = Statement(
    "INSERT INTO users (user_id) VALUES (:user_id) ON CONFLICT (user_id) DO NOTHING"
)
_BATCH = Statement(
    f"""UPDATE batches SET {_additions(STORED_STATUSES)}, open = open + :open,
    finished_seen_seconds = CASE WHEN open + :open = 0 AND state <> 'open'
      THEN (SELECT seen_seconds FROM sequences) ELSE NULL END
    WHERE batch = :batch"""  # noqa: S608  # names of our own columns
)
_READ_USER = Statement(
    f"SELECT {', '.join(ENDED_STATUSES)} FROM users WHERE user_id = :user_id"  # noqa: S608
)
_SPENT = Statement("SELECT cost, max_cost FROM users WHERE user_id = :user_id")


def add_to_user(
    tx: Transaction,
    user_id: int,
    delta: Delta,
    *,
    core_seconds: float = 0.0,
    cost: float = 0.0,
) -> None:
    """Change the counters of a user, who is entered if new."""
    if not any(s in delta for s in ENDED_STATUSES):
        return
    values = {str(s): delta.get(s, 0) for s in ENDED_STATUSES}
    if not tx.run(_USER, user_id=user_id, core_seconds=core_seconds, cost=cost, **values):
        tx.run(_NEW_USER, user_id=user_id)
        tx.run(_USER, user_id=user_id, core_seconds=core_seconds, cost=cost, **values)


def add_to_batch(tx: Transaction, batch: int, delta: Delta) -> None:
    """Change the counters of a batch, and note when its last job is finished."""
    values = {str(s): delta.get(s, 0) for s in STORED_STATUSES}
    still_open = sum(n for s, n in delta.items() if s not in FINISHED_STATUSES)
    tx.run(_BATCH, batch=batch, open=still_open, **values)


def spent(tx: Transaction, user_id: int) -> tuple[float, float | None]:
    """Return what the jobs of a user have cost, and the user's own cap."""
    return tx.one(_SPENT, user_id=user_id) or (0.0, None)


def finished_counts(tx: Transaction, user_id: int) -> Delta:
    """Return how many jobs of a user have ended in each status."""
    row = tx.one(_READ_USER, user_id=user_id) or (0,) * len(ENDED_STATUSES)
    return Counter(dict(zip(ENDED_STATUSES, row, strict=True)))
