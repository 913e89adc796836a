"""Statements and transactions: SQL written once, run on SQLite and PostgreSQL.

SQLite takes ``:named`` parameters as they are written. For PostgreSQL SQLAlchemy compiles each
statement once, at its first use; it runs through the driver's own cursor, because SQLAlchemy's execution
costs more per row than the row itself. SQLAlchemy is imported only where it is used: it is half of the
time that a start takes, and 20 MB.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

Row = tuple[Any, ...]


@cache
def _for_postgresql(sql: str) -> str:
    from sqlalchemy import text
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    dialect = PGDialect_psycopg(paramstyle="pyformat")  # type: ignore[no-untyped-call]
    return str(text(sql).compile(dialect=dialect))


class Statement:
    """One SQL statement with ``:named`` parameters."""

    __slots__ = ("sqlite",)

    def __init__(self, sql: str) -> None:
        self.sqlite = sql

    @property
    def postgresql(self) -> str:
        """The statement as psycopg takes it."""
        return _for_postgresql(self.sqlite)


class Transaction:
    """What runs statements inside one transaction, on the thread that owns the connection."""

    __slots__ = ("_connection", "dialect")

    def __init__(self, connection: Any, dialect: str) -> None:  # noqa: ANN401  # two drivers
        self._connection = connection
        self.dialect = dialect

    def all(self, statement: Statement, **values: Any) -> list[Row]:  # noqa: ANN401
        """Return every row."""
        found: list[Row] = self._connection.execute(
            getattr(statement, self.dialect), values
        ).fetchall()
        return found

    def one(self, statement: Statement, **values: Any) -> Row | None:  # noqa: ANN401
        """Return the first row, or None."""
        found: Row | None = self._connection.execute(
            getattr(statement, self.dialect), values
        ).fetchone()
        return found

    def value(self, statement: Statement, **values: Any) -> Any:  # noqa: ANN401
        """Return the first column of the first row, or None."""
        row = self.one(statement, **values)
        return row[0] if row else None

    def run(self, statement: Statement, **values: Any) -> int:  # noqa: ANN401
        """Run a statement that returns nothing; return how many rows it touched."""
        touched: int = self._connection.execute(
            getattr(statement, self.dialect), values
        ).rowcount
        return touched

    def many(self, statement: Statement, rows: Iterable[dict[str, Any]]) -> None:
        """Run a statement once for each of ``rows``."""
        cursor = self._connection.cursor()
        cursor.executemany(getattr(statement, self.dialect), rows)
        cursor.close()

    def script(self, sql: str) -> None:
        """Run several statements without parameters, separated by ``;``."""
        for piece in sql.split(";"):
            if piece.strip():
                self._connection.execute(piece)
