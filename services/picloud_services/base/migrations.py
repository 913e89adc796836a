"""Brings a store to the current schema: forward only, each step in one transaction."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from picloud_jupyter.protocol.errors import Incompatible
from picloud_services.base.sql import Statement, Transaction

SCHEMA_FOLDER = Path(__file__).resolve().parent.parent / "schema"
_COMMENT = re.compile(r"--[^\n]*")

_CREATE_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS schema_versions "
    "(version BIGINT PRIMARY KEY, name TEXT NOT NULL, applied_at DOUBLE PRECISION NOT NULL)"
)
_VERSION = Statement("SELECT MAX(version) FROM schema_versions")
_RECORD = Statement(
    "INSERT INTO schema_versions (version, name, applied_at) VALUES (:version, :name, :at)"
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step. The files are written in PostgreSQL's words for types."""

    version: int
    name: str
    sql: str

    def for_dialect(self, dialect: str) -> str:
        """Return the step's SQL without comments, with SQLite's words for the two types that differ."""
        sql = _COMMENT.sub("", self.sql)
        if dialect == "sqlite":
            # only INTEGER PRIMARY KEY is SQLite's own row number, without an index of its own
            sql = sql.replace("BIGINT PRIMARY KEY", "INTEGER PRIMARY KEY")
            sql = sql.replace("BYTEA", "BLOB")
        return sql


def load_migrations(folder: Path = SCHEMA_FOLDER) -> list[Migration]:
    """Return the steps in order.

    Raises:
        ValueError: their numbers are not 1, 2, 3 ...
    """
    found = [
        Migration(int(path.name.split("_")[0]), path.stem, path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("[0-9]*.sql"))
    ]
    if [step.version for step in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"the migrations in {folder} are not numbered 1, 2, 3 ...")
    return found


def migrate(transaction: Transaction, steps: list[Migration], where: str) -> int:
    """Apply the steps that ``transaction``'s store lacks; return how many there were.

    Raises:
        Incompatible: the store was written by a newer version.
    """
    transaction.script(_CREATE_VERSIONS)
    current = transaction.value(_VERSION) or 0
    if current > len(steps):
        raise Incompatible(
            f"The store {where} has schema {current}; this version of picloud-jupyter knows "
            f"schemas up to {len(steps)}. It was written by a newer version, which must be used.",
            hint="pip install -U picloud-jupyter, or set PICLOUD_HOME to another folder",
        )
    for step in steps[current:]:
        transaction.script(step.for_dialect(transaction.dialect))
        transaction.run(_RECORD, version=step.version, name=step.name, at=time.time())
    return len(steps) - current
