"""Statements and transactions: SQL written once, run on SQLite and PostgreSQL.

SQLAlchemy compiles each statement once per dialect; it then runs through the driver's own cursor,
because SQLAlchemy's execution costs more per row than the row itself.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine.interfaces import Dialect

Row = tuple[Any, ...]

DIALECTS: dict[str, Dialect] = {
    "sqlite": SQLiteDialect_pysqlite(paramstyle="named"),
    "postgresql": PGDialect_psycopg(paramstyle="pyformat")  # type: ignore[no-untyped-call],
}


class Statement:
    """One SQL statement with ``:named`` parameters."""

    __slots__ = ("_clause", "postgresql", "sqlite")

    def __init__(self, sql: str) -> None:
        self._clause = text(sql)
        self.sqlite = str(self._clause.compile(dialect=DIALECTS["sqlite"]))
        self.postgresql = str(self._clause.compile(dialect=DIALECTS["postgresql"]))


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
