"""Hands over results; keeps the newest of single calls in memory, since their callers ask at once."""

from collections import OrderedDict
from functools import partial

from picloud_jupyter.protocol.errors import Conflict
from picloud_jupyter.protocol.jobs import Status
from picloud_services.base.database import Database
from picloud_services.base.sql import Statement, Transaction
from picloud_services.jobs import queries
from picloud_services.jobs.outcomes import Outcome
from picloud_services.jobs.waiting import Waiting
from picloud_services.jobs.words import Ranges, ResultItem, ResultsAnswer

KEPT = 256
_MARK_READ = Statement("UPDATE results SET unread = 0 WHERE result = :result AND unread = 1")


class Results:
    """Reads results. `flush_read` is a step for a ticker: it notes what was fetched."""

    def __init__(self, database: Database, waiting: Waiting) -> None:
        self._database = database
        self._waiting = waiting
        self._kept: OrderedDict[int, tuple[int, int, ResultItem]] = OrderedDict()
        self._read: set[int] = set()

    def keep(self, outcome: Outcome) -> None:
        """Keep the result of a single call that was just committed."""
        kept = outcome.kept
        if kept is None or len(kept.items) != 1 or len(outcome.changes) != 1:
            return
        if outcome.changes[0].new is not Status.DONE or kept.items[0][7]:
            return
        jid = kept.first_jid
        item = ResultItem(jid, "done", "done", "", len(kept.body), body=kept.body)
        self._kept[jid] = (outcome.user_id, kept.result, item)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def forget(self, jids: Ranges) -> None:
        """Drop what was kept of deleted jobs."""
        for jid in [j for j in self._kept if any(a <= j <= b for a, b in jids)]:
            del self._kept[jid]

    async def results(
        self, user_id: int, jids: Ranges, limit_bytes: int, wait_seconds: float
    ) -> ResultsAnswer:
        """Return the results of finished ones; see `JobService.results`."""
        if wait_seconds and jids:
            await self._waiting.until_first(user_id, jids, wait_seconds)
        if len(jids) == 1 and jids[0][0] == jids[0][1]:
            kept = self._kept.get(jids[0][0])
            if kept is not None and kept[0] == user_id:
                self._read.add(kept[1])
                return ResultsAnswer([kept[2]])
        items, more, touched = await self._database.read(
            partial(queries.read_results, user_id=user_id, jids=jids, limit_bytes=limit_bytes)
        )
        self._read |= touched
        return ResultsAnswer(items, more)

    async def result(self, user_id: int, jid: int) -> ResultItem:
        """Return the result of one finished job; see `JobService.result`."""
        answer = await self.results(user_id, [(jid, jid)], 1, 0.0)
        if not answer.items:
            raise Conflict(
                "It is not finished; it has no result yet.",
                jid=jid,
                hint="wait for it (cloud.join or picloud join)",
            )
        return answer.items[0]

    async def flush_read(self) -> None:
        """Note what was read since the last time; losing this only keeps results longer."""
        read, self._read = self._read, set()
        if read:
            await self._database.write(partial(_mark_read, read))


def _mark_read(read: set[int], tx: Transaction) -> None:
    tx.many(_MARK_READ, [{"result": result} for result in read])
