"""A restartable call begins while it is committed; any other one only afterwards."""

import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.tools.job_system import USER, System, running_system


class WatchedConnection:
    """The connection of a store; it notes commits, and fails the next if it is told to."""

    def __init__(self, connection: sqlite3.Connection, said: list[str]) -> None:
        self._connection = connection
        self._said = said
        self.fails = False

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:  # as sqlite3
        """Run a statement."""
        if sql == "COMMIT":
            self._said.append("commit")
            if self.fails:
                self.fails = False
                raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(sql, *values)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


@pytest.fixture
def said() -> list[str]:
    """What happened, in order."""
    return []


@pytest.fixture
async def system(tmp_path, said, monkeypatch) -> AsyncIterator[System]:
    """A service that tells of its commits, and of what is sent and revoked."""
    async with running_system(tmp_path) as found:
        found.database._connection = WatchedConnection(found.database._connection, said)
        for name in ("submit", "revoke"):
            was = getattr(found.engine, name)

            def told(*values: object, name: str = name, was=was) -> None:
                said.append(name)
                was(*values)

            monkeypatch.setattr(found.engine, name, told)
        yield found


async def test_restartable_call_is_sent_before_its_commit(system, said):
    jid = await system.call()
    assert said[:2] == ["submit", "commit"]
    assert await system.join(jid) == {"done": 1}


async def test_call_that_may_run_once_is_sent_after_its_commit(system, said):
    jid = await system.call(restartable=False)
    assert said[:2] == ["commit", "submit"]
    assert await system.join(jid) == {"done": 1}


async def test_failed_commit_revokes_what_was_sent_and_leaves_no_job(system, said):
    system.database._connection.fails = True
    with pytest.raises(sqlite3.OperationalError):
        await system.call(key="k")
    again = await system.call(key="k")
    assert said.index("revoke") > said.index("commit")
    assert await system.join(again) == {"done": 1}
    assert await system.service.counts(USER) == {"done": 1}
    assert said.count("submit") == 2
    assert not system.dispatcher._cluster.leases


async def test_failed_commit_of_a_call_that_may_run_once_sends_nothing(system, said):
    system.database._connection.fails = True
    with pytest.raises(sqlite3.OperationalError):
        await system.call(restartable=False)
    assert said == ["commit"]
