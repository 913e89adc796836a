"""Counters of users and batches: changed in the transaction that changes the jobs.

A user's row counts what is finished; what is not is counted by the image in memory (`live`). It is
entered with the first arguments that the user stores (`accounts.store.occupy`).
"""

from collections import Counter

from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, Status
from picloud_services.accounts.quotas import Standing
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
    cost = cost + :cost, disk_bytes = disk_bytes + :disk_bytes WHERE user_id = :user_id
    RETURNING cost, disk_bytes"""  # noqa: S608  # names of our own columns
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


def add_to_user(
    tx: Transaction,
    user_id: int,
    delta: Delta,
    *,
    core_seconds: float = 0.0,
    cost: float = 0.0,
    disk_bytes: int = 0,
) -> Standing | None:
    """Change the counters of a user; return what that makes of cost and disk use."""
    if not disk_bytes and not any(s in delta for s in ENDED_STATUSES):
        return None
    row = tx.one(
        _USER,
        user_id=user_id,
        core_seconds=core_seconds,
        cost=cost,
        disk_bytes=disk_bytes,
        **{str(s): delta.get(s, 0) for s in ENDED_STATUSES},
    )
    return Standing(*row) if row else None


def add_to_batch(tx: Transaction, batch: int, delta: Delta) -> None:
    """Change the counters of a batch, and note when its last job is finished."""
    values = {str(s): delta.get(s, 0) for s in STORED_STATUSES}
    still_open = sum(n for s, n in delta.items() if s not in FINISHED_STATUSES)
    tx.run(_BATCH, batch=batch, open=still_open, **values)


def finished_counts(tx: Transaction, user_id: int) -> Delta:
    """Return how many jobs of a user have ended in each status."""
    row = tx.one(_READ_USER, user_id=user_id) or (0,) * len(ENDED_STATUSES)
    return Counter(dict(zip(ENDED_STATUSES, row, strict=True)))
