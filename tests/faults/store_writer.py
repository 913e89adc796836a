"""Writes to a store and notes what was acknowledged: ``python tests/faults/store_writer.py STORE ACKED``.

It goes on after a refusal, as the service does, and ends with 0 if all it met were refusals in words.
"""

import asyncio
import os
import sys
from pathlib import Path

from picloud_jupyter.protocol.errors import CloudException
from picloud_services.base import database as database_module
from picloud_services.base.database import open_database
from picloud_services.base.sql import Statement

COUNT = 24
TABLE = Statement("CREATE TABLE IF NOT EXISTS swept (n INTEGER PRIMARY KEY, data BLOB)")
ADD = Statement("INSERT INTO swept VALUES (:n, zeroblob(:size))")


async def main(store: Path, acked: Path) -> int:
    """Write, large and small, essential or not, alone and in groups; fold the log in often."""
    database_module.CHECKPOINT_BYTES = 50_000
    notes = os.open(acked, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    database = open_database(store)
    try:
        await database.open()
        await database.write(lambda tx: tx.run(TABLE))
    except CloudException as exc:
        print("refused to start:", exc)
        return 0
    for first in range(0, COUNT, 3):

        def add(n: int) -> "asyncio.Future[int]":
            size = 30_000 if n % 5 == 0 else 10
            return database.write(
                lambda tx: tx.run(ADD, n=n, size=size), essential=n % 2 == 0, quick=n % 3 == 0
            )

        group = range(first, first + 3)
        found = await asyncio.gather(*map(add, group), return_exceptions=True)
        for n, outcome in zip(group, found, strict=True):
            if isinstance(outcome, CloudException):
                print("refused:", outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                os.write(notes, b"%d\n" % n)
    await database.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]))))
