"""`picloud why`: puts a job's life together from the store, the logs and what runs now."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from picloud_jupyter.protocol.jobs import FINISHED_STATUSES, Status
from picloud_jupyter.protocol.story import Story
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.log_lines import Found, Line, at_of, read_lines
from picloud_services.jobs.links import SpecBook
from picloud_services.jobs.live import LiveJobs, Running
from picloud_services.jobs.ports import OutputReader
from picloud_services.jobs.story_facts import StoryFacts, read_facts
from picloud_services.jobs.story_words import concerns, names, tell

AFTER_SECONDS = 5.0  # of the logs, since the job was over
ROUNDING_SECONDS = 0.001  # times of log lines are cut to milliseconds


class Stories:
    """Reads; changes nothing. ``why`` says why a job does not run yet."""

    def __init__(
        self,
        database: Database,
        live: LiveJobs,
        why: Callable[[int], str],
        outputs: OutputReader,
        home: Path,
        clock: Clock,
    ) -> None:
        self._database = database
        self._live = live
        self._why = why
        self._outputs = outputs
        self._home = home
        self._clock = clock
        self._book = SpecBook()

    async def story(self, user_id: int, jid: int) -> Story:
        """Return what happened to ``jid`` so far.

        Raises:
            NotFound: there is no such job of the user.
        """
        facts, found = await self._read(user_id, jid)
        over = (None, *FINISHED_STATUSES)
        if facts.finished_at is None and self._live.status(jid) in over:  # it ended meanwhile
            facts, found = await self._read(user_id, jid)
        running = self._live.running.get(jid)
        return tell(
            facts,
            status=self._live.status(jid) or Status(facts.status),
            running=running,
            why=self._why(jid),
            printed=await self._printed(facts, running),
            lines=[(at_of(line), line) for line in found.lines],
            logs_since=found.oldest_at,
            now_at=self._clock.now_at(),
        )

    async def _read(self, user_id: int, jid: int) -> tuple[StoryFacts, Found]:
        read = partial(read_facts, book=self._book, user_id=user_id, jid=jid)
        facts = await self._database.read(lambda tx: read(tx, leases=()))
        found = await self._lines(facts)
        said = {str(line["lease"]) for line in found.lines if _tells_of_attempt(line, jid)}
        if said - _leases(facts):  # of attempts that the store has under other jobs' results
            facts = await self._database.read(lambda tx: read(tx, leases=said))
            found = await self._lines(facts)
        return facts, found

    async def _lines(self, facts: StoryFacts) -> Found:
        leases = _leases(facts)
        containers = {found.container for found in facts.attempts if found.container}
        running = self._live.running.get(facts.jid)
        if running is not None and running.container:
            containers.add(running.container)
        wanted = partial(concerns, facts=facts, leases=leases, containers=containers)
        until_at = facts.finished_at or self._clock.now_at()
        return await asyncio.to_thread(
            read_lines,
            *(self._home, facts.created_at - ROUNDING_SECONDS, until_at + AFTER_SECONDS),
            wanted,
        )

    async def _printed(
        self, facts: StoryFacts, running: Running | None
    ) -> dict[str, int | None]:
        """Return how many bytes there are of each stream of the last attempt."""
        if running is not None:
            place = running.node, running.lease, running.position
        elif facts.attempts and facts.status not in (Status.WAITING, Status.QUEUED):
            last = facts.attempts[-1]
            place = last.node, last.lease, last.position
        else:
            return {}
        found: dict[str, int | None] = {}
        for stream in ("stdout", "stderr"):
            part = await self._outputs.read_output(*place, stream, 0, 1)
            found[stream] = part.total_bytes
        return found


def _leases(facts: StoryFacts) -> set[str]:
    found = {attempt.lease for attempt in facts.attempts}
    return found | ({facts.out.lease} if facts.out else set())


def _tells_of_attempt(line: Line, jid: int) -> bool:
    return bool(line.get("lease")) and names(line, jid)
