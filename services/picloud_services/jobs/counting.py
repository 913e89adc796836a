"""Counters of users and batches: changed in the transaction that changes the jobs."""

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
Delta = Counter[Status]

_ADDITIONS = ", ".join(f"{s} = {s} + :{s}" for s in STORED_STATUSES)
_COLUMNS = ", ".join(STORED_STATUSES)
_USER = Statement(
    f"""UPDATE users SET {_ADDITIONS}, core_seconds = core_seconds + :core_seconds,
    cost = cost + :cost WHERE user_id = :user_id RETURNING cost, cost_cap"""  # noqa: S608
)
_NEW_USER = Statement(
    "INSERT INTO users (user_id) VALUES (:user_id) ON CONFLICT (user_id) DO NOTHING"
)
_BATCH = Statement(
    f"""UPDATE batches SET {_ADDITIONS}, open = open + :open,
    finished_seen_seconds = CASE WHEN open + :open = 0 AND state <> 'open'
      THEN (SELECT seen_seconds FROM sequences) ELSE NULL END
    WHERE batch = :batch"""  # noqa: S608  # names of our own columns
)
_READ_USER = Statement(f"SELECT {_COLUMNS} FROM users WHERE user_id = :user_id")  # noqa: S608
_READ_BATCH = Statement(f"SELECT {_COLUMNS} FROM batches WHERE batch = :batch")  # noqa: S608


def moved(old: Status, new: Status, count: int) -> Delta:
    """Return the change of counters when ``count`` jobs go from ``old`` to ``new``."""
    delta: Delta = Counter()
    delta[old] -= count
    delta[new] += count
    return delta


def add_to_user(
    tx: Transaction,
    user_id: int,
    delta: Delta,
    *,
    core_seconds: float = 0.0,
    cost: float = 0.0,
) -> tuple[float, float | None]:
    """Change the counters of a user, who is entered if new; return what was spent, and the cap."""
    values = {str(s): delta[s] for s in STORED_STATUSES}
    row = tx.one(_USER, user_id=user_id, core_seconds=core_seconds, cost=cost, **values)
    if row is None:
        tx.run(_NEW_USER, user_id=user_id)
        row = tx.one(_USER, user_id=user_id, core_seconds=core_seconds, cost=cost, **values)
    assert row is not None
    return row[0], row[1]


def add_to_batch(tx: Transaction, batch: int, delta: Delta) -> None:
    """Change the counters of a batch, and note when its last job is finished."""
    values = {str(s): delta[s] for s in STORED_STATUSES}
    still_open = sum(n for s, n in delta.items() if s not in FINISHED_STATUSES)
    tx.run(_BATCH, batch=batch, open=still_open, **values)


def user_counts(tx: Transaction, user_id: int) -> Delta:
    """Return how many jobs of a user are in each stored status."""
    return _read(tx.one(_READ_USER, user_id=user_id))


def batch_counts(tx: Transaction, batch: int) -> Delta:
    """Return how many jobs of a batch are in each stored status."""
    return _read(tx.one(_READ_BATCH, batch=batch))


def _read(row: tuple[int, ...] | None) -> Delta:
    return Counter({s: n for s, n in zip(STORED_STATUSES, row or (0,) * 6, strict=True) if n})
