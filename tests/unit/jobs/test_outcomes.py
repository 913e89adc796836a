"""What comes back of jobs that were killed and deleted while they were out."""

from collections.abc import Iterator

import pytest

from picloud_services.base.connections import Source, connect
from picloud_services.base.migrations import load_migrations, migrate
from picloud_services.base.sql import Statement, Transaction
from picloud_services.jobs.lifecycle import Terms
from picloud_services.jobs.outcomes import Report, Rules, record
from picloud_services.jobs.store import NewLease, insert_lease

LEASE = "00000000000000a1"
BLOB_BYTES = 100_000
BLOB = {"blob": "ab" * 16, "size": BLOB_BYTES, "digest": "d"}
_USER = Statement("INSERT INTO users (user_id, disk_bytes) VALUES (1000, 0)")
_BATCH = Statement(
    """INSERT INTO batches (batch, user_id, kind, is_map, spec, function_digest, priority, dependencies,
      state, created_at, heard_at, open) VALUES (3, 1000, 'call', 0, 1, 'f', 0, 'met', 'sealed', 1, 1, 0)"""
)
_RESULTS = Statement("SELECT links, bytes FROM results")
_DISK = Statement("SELECT disk_bytes FROM users")
_LINKS = Statement("SELECT links, unlinked_at FROM blobs")


@pytest.fixture
def tx(tmp_path) -> Iterator[Transaction]:
    connection = connect(Source(tmp_path / "store.db"))
    connection.execute("BEGIN IMMEDIATE")
    found = Transaction(connection, "sqlite")
    migrate(found, load_migrations(), "here")
    found.run(_USER)
    lease = NewLease(LEASE, "node", "slot", False, 1)
    insert_lease(found, lease, batch=3, user_id=1000, first_jid=7, count=2, at=1.0)
    yield found
    connection.close()


def report() -> Report:
    items = [
        [0, "done", 1.0, 0.1, 0.0, 0.0, 3, BLOB],
        [1, "killed", 1.0, 0.1, 0.0, 0.0, 0, None],
    ]
    return Report(LEASE, items, b"abc", 5.0, usage={"output_bytes": 10})


def test_record_when_its_batch_was_deleted_then_nothing_is_kept_or_counted(tx):
    outcome = record(tx, report(), lambda _tx, _batch: Rules(Terms()))
    assert (outcome.lease_over, outcome.changes, outcome.kept) == (True, [], None)
    assert tx.all(_RESULTS) == []
    assert tx.value(_DISK) == 0
    assert tx.all(_LINKS) == [(0, 5.0)]


def test_record_when_its_jobs_were_killed_and_are_there_then_it_goes_with_their_batch(tx):
    tx.run(_BATCH)
    record(tx, report(), lambda _tx, _batch: Rules(Terms()))
    kept_bytes = 3 + 2 * 64 + 10 + BLOB_BYTES
    assert tx.all(_RESULTS) == [(0, kept_bytes)]
    assert tx.value(_DISK) == kept_bytes
