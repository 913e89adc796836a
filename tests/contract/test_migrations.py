"""Stores of earlier schemas, with rows in them, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from picloud_services.base.connections import Source, connect
from picloud_services.base.migrations import load_migrations, migrate
from picloud_services.base.sql import Statement, Transaction
from tests.tools.postgresql_server import fresh_database, private_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with private_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transaction]:
    """A transaction on an empty store."""
    url = ""
    if request.param == "postgresql":
        url = fresh_database(request.getfixturevalue("server"), "migrations")
    connection: Any = connect(Source(tmp_path / "store.db", url))
    connection.execute("BEGIN")
    yield Transaction(connection, request.param)
    connection.execute("ROLLBACK")
    connection.close()


def test_quotas_come_to_a_store_that_has_jobs(store):
    steps = load_migrations()
    assert migrate(store, steps[:1], "store") == 1
    store.run(
        Statement("INSERT INTO users (user_id, done, cost, cost_cap) VALUES (7, 2, 1.5, 9)")
    )
    for first, user, arguments in ((1, 7, b"x" * 100), (3, 7, b"y" * 50), (5, 8, b"")):
        store.run(
            Statement(
                """INSERT INTO parts (first_jid, batch, user_id, part, first_index, count, links,
                  created_at, arguments) VALUES (:first, :first, :user, 0, 0, 2, 2, :at, :data)"""
            ),
            first=first,
            user=user,
            at=1000.0 + first,
            data=arguments,
        )
    store.run(
        Statement(
            """INSERT INTO part_files (jid, user_id, blob, size_bytes, digest)
            VALUES (3, 7, 'b', 70000, 'd')"""
        )
    )
    store.run(
        Statement(
            """INSERT INTO results (result, user_id, batch, first_jid, attempt, node, first_position,
              links, bytes, seen_seconds, finished_at, items)
            VALUES (1, 7, 1, 1, 1, 'n', 0, 1, 300, 0, 0, '[]')"""
        )
    )
    store.run(
        Statement(
            "INSERT INTO jobs (jid, batch, user_id, status, attempt) VALUES (1, 1, 7, 'done', 1)"
        )
    )
    assert migrate(store, steps, "store") == len(steps) - 1
    users = store.all(
        Statement(
            """SELECT user_id, done, cost, max_cost, max_cores, disk_bytes, created_at
            FROM users ORDER BY user_id"""
        )
    )
    assert users == [
        (7, 2, 1.5, 9.0, None, 100 + 50 + 4 * 64 + 70_000 + 300, 1001.0),
        (8, 0, 0.0, None, None, 2 * 64, 1005.0),
    ]
    assert store.value(Statement("SELECT kill_wished FROM jobs")) == 0
    assert migrate(store, steps, "store") == 0
