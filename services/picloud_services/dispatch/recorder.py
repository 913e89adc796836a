"""What engines report becomes truth: events wait here while one transaction is on its way.

Events that gathered meanwhile share the next transaction, which is repeated until it succeeds, so no
event overtakes another of its lease. An event is acknowledged after its commit and all before it.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.errors import CloudException, Corrupt, NotFound
from picloud_jupyter.protocol.jobs import EndReason
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.sql import Transaction
from picloud_services.blobs.store import BlobStore
from picloud_services.dispatch.engine import EngineEvent
from picloud_services.jobs.lifecycle import classify_exit, exit_text
from picloud_services.jobs.links import blobs_of
from picloud_services.jobs.live import LiveJobs
from picloud_services.jobs.outcomes import Outcome, Report, Rules, record
from picloud_services.jobs.returns import end_all, end_wished, give_back

RETRY_SECONDS = 1.0
QUICK_COUNT = 16  # elements of an event recorded on the loop's own time
QUICK_EVENTS = 4
SINGLE_TRIES = 3  # of an event that fails alone
REFUSED = "refused"  # our own event, in the place of one that cannot be entered
LONG_COUNT = 250  # elements in one transaction: single results and calls wait for its end
RECORDED = frozenset({"batch", "exited", "returned", "start_failed", "lease_lost"})
_log = logging.getLogger(__name__)

_EXIT_USAGE = ("output_bytes", "container")

RulesOf = Callable[[str, int], Rules]  # (lease, batch): called on the writer's thread
Recorded = Sequence[tuple[EngineEvent, Outcome]]


@dataclass(frozen=True, slots=True)
class _Step:
    """An event with what only the loop knows of it."""

    event: EngineEvent
    started_at: float
    now_at: float


class Recorder:
    """Commits events. ``on_committed`` gets them with their outcomes, on the loop.

    Those of one lease are committed in order; a single result passes the many of long chunks.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        live: LiveJobs,
        clock: Clock,
        rules_of: RulesOf,
        on_committed: Callable[[Recorded], None],
        acknowledge: Callable[[str, int], None],
    ) -> None:
        entry = _Entry(live, clock, rules_of)
        self._on_committed = on_committed
        self._acknowledge = acknowledge
        self._short = _Lane(database, blobs, entry, self._recorded)
        self._long = _Lane(database, blobs, entry, self._recorded)
        self._lanes: dict[str, _Lane] = {}  # by lease, while events of it are on their way
        self._on_their_way: Counter[str] = Counter()
        self._open: dict[str, dict[int, None]] = {}  # node -> n of what is not committed yet
        self._highest: dict[str, int] = {}  # node -> n

    def take(self, event: EngineEvent) -> None:
        """Commit ``event`` after those of its lease that were taken before it."""
        if event.n:
            self._open.setdefault(event.node, {})[event.n] = None
            self._highest[event.node] = max(event.n, self._highest.get(event.node, 0))
        lane = self._lanes.get(event.lease)
        if lane is None:
            lane = self._lanes[event.lease] = self._short if _is_short(event) else self._long
        self._on_their_way[event.lease] += 1
        lane.take(event)

    def stop(self) -> None:
        """Take nothing more to the store; what is not acknowledged comes again."""
        self._short.stop()
        self._long.stop()

    def _recorded(self, recorded: Recorded) -> None:
        nodes = set()
        for event, _ in recorded:
            self._on_their_way[event.lease] -= 1
            if not self._on_their_way[event.lease]:
                del self._on_their_way[event.lease], self._lanes[event.lease]
            if event.n:
                nodes.add(event.node)
                self._open[event.node].pop(event.n, None)
        self._on_committed(recorded)
        for node in nodes:
            # An acknowledgement covers all before it, and one of these may still be on its way.
            first_open = next(iter(self._open[node]), None)
            self._acknowledge(node, first_open - 1 if first_open else self._highest[node])


class _Lane:
    """One row of events on their way: those that gather share the next transaction."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        entry: "_Entry",
        on_committed: Callable[[Recorded], None],
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._entry = entry
        self._on_committed = on_committed
        self._waiting: deque[EngineEvent] = deque()
        self._writing: list[EngineEvent] = []
        self._stopped = False
        self._is_repeating = False
        self._suspects = (
            0  # of the next events one made a transaction fail: each is written alone
        )
        self._tries = 0  # of the first of them
        self._task: asyncio.Task[None] | None = None

    def take(self, event: EngineEvent) -> None:
        """Commit ``event`` after those taken before it."""
        self._waiting.append(event)
        if not self._writing:
            self._next()

    def stop(self) -> None:
        """Write nothing more."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    def _next(self) -> None:
        limit = 1 if self._suspects else LONG_COUNT
        self._writing = [] if self._stopped else _cut(self._waiting, limit)
        if not self._writing:
            return
        if self._is_repeating or any(_names_files(event) for event in self._writing):
            self._task = asyncio.get_running_loop().create_task(self._adopt_and_write())
            self._task.add_done_callback(self._adopted)
        else:
            self._write()

    def _write(self) -> None:
        events = self._writing
        future = self._database.write(
            self._entry.of(events),
            lambda outcomes: self._on_committed(list(zip(events, outcomes, strict=True))),
            essential=True,
            quick=len(events) <= QUICK_EVENTS and all(map(_is_short, events)),
            at_once=True,
        )
        future.add_done_callback(self._written)

    def _written(self, done: "asyncio.Future[list[Outcome]]") -> None:
        error = None if done.cancelled() else done.exception()
        if error is None:
            self._suspects, self._tries = max(0, self._suspects - 1), 0
            self._next()
        else:
            self._try_again(error)

    def _adopted(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._try_again(error)

    def _try_again(self, error: BaseException) -> None:
        known = isinstance(error, CloudException | OSError)  # a disk, descriptors: it passes
        count = len(self._writing)
        _log.error("%d events wait: %s", count, error, exc_info=None if known else error)
        events = self._writing
        if not known:  # the store is well: what it was given is not
            events = self._suspect(error)
        self._waiting.extendleft(reversed(events))
        self._is_repeating = True
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._next)

    def _suspect(self, error: BaseException) -> list[EngineEvent]:
        """Find the event that cannot be entered; its lease ends, so that it does not hold up all others.

        Return what is to be written next.
        """
        events = self._writing
        if len(events) > 1:
            self._suspects = len(events)
            return events
        self._suspects, self._tries = max(1, self._suspects), self._tries + 1
        if self._tries < SINGLE_TRIES:
            return events
        self._tries = 0
        (event,) = events
        if event.name == REFUSED:  # not even that: the others go first
            self._waiting.append(event)
            return []
        words = f"what came back of it cannot be entered ({type(error).__name__}: {error})"
        return [EngineEvent(event.node, REFUSED, event.n, event.lease, {"message": words})]

    # ---------------------------------------------------------------------------- large results
    async def _adopt_and_write(self) -> None:
        if self._is_repeating:
            self._is_repeating = False
            for blob in _named_blobs(self._writing):
                await self._blobs.find(blob)  # in use: else it is swept while the disk is full
        for event in self._writing:
            if not _names_files(event):
                continue
            if event.name == "exited":
                event.fields["files"] = await self._kept(event.fields["files"])
            else:
                for item in event.fields["items"]:
                    await self._adopt(item)
        self._write()

    async def _adopt(self, item: list[Any]) -> None:
        """Make the file that holds a large result a blob, durable before a row names it."""
        extra = item[7]
        if extra and "file" in extra.get("files", ()):
            item[7] = extra = dict(extra)
            kept = await self._kept(extra["files"])
            if kept is None:
                del extra["files"]
                extra["note"] = "the files that it wrote were lost on their way"
            else:
                extra["files"] = kept
        if not extra or not extra.get("file"):
            return
        item[7] = await self._kept(extra)
        if item[7] is None:
            item[1] = str(EndReason.NODE_LOST)

    async def _kept(self, extra: dict[str, Any]) -> dict[str, Any] | None:
        """Return ``extra`` with a blob in the place of its file; None if the file is gone."""
        while True:
            try:
                ref = await self._blobs.adopt(
                    extra["file"], size_bytes=extra["size"], digest=extra.get("digest", "")
                )
            except (NotFound, Corrupt) as exc:
                _log.error("the file of a large result is gone: %s", exc)
                return None
            except (CloudException, OSError) as exc:
                _log.warning("a large result cannot be kept yet: %s", exc)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                kept = {key: value for key, value in extra.items() if key != "file"}
                return kept | {"blob": ref.blob, "size": ref.size_bytes, "digest": ref.digest}


class _Entry:
    """Turns events into rows."""

    def __init__(self, live: LiveJobs, clock: Clock, rules_of: RulesOf) -> None:
        self._live = live
        self._clock = clock
        self._rules_of = rules_of

    def of(self, events: Sequence[EngineEvent]) -> Callable[[Transaction], list[Outcome]]:
        """Return the work that enters ``events``."""
        now_at = self._clock.now_at()
        steps = [_Step(event, self._started_at(event), now_at) for event in events]
        return lambda tx: [
            end_wished(tx, self._apply(tx, step), self._live.killing, now_at) for step in steps
        ]

    def _started_at(self, event: EngineEvent) -> float:
        if event.name == "exited" and event.fields.get("position") is not None:
            for running in self._live.running.values():
                if (running.lease, running.position) == (event.lease, event.fields["position"]):
                    return running.started_at
        return 0.0

    def _apply(self, tx: Transaction, step: _Step) -> Outcome:
        event, fields, at = step.event, step.event.fields, step.now_at

        def rules_of(_tx: Transaction, batch: int) -> Rules:
            return self._rules_of(event.lease, batch)

        if event.name == "batch":
            report = Report(
                event.lease,
                fields["items"],
                event.body,
                at,
                usage=fields.get("usage"),
                over=bool(fields.get("end")),
            )
            return record(tx, report, rules_of)
        if event.name == "returned":
            over = bool(fields.get("over"))
            return give_back(tx, event.lease, fields["first"], fields["count"], over=over)
        if event.name == "exited" and fields.get("position") is not None:
            return record(tx, _exit_report(step), rules_of)
        if event.name == "exited" and not fields.get("lost"):
            return give_back(tx, event.lease, 0, 0, over=True)
        reason, began = EndReason.NODE_LOST, event.name != "start_failed"
        if not began:
            reason = _start_reason(fields.get("reason"))
        elif event.name == REFUSED:
            reason = EndReason.INCOMPATIBLE
        detail = str(fields.get("message") or "")
        return end_all(tx, event.lease, reason, rules_of, at, detail, began=began)


def _exit_report(step: _Step) -> Report:
    """Return how the elements ended that a container took with it.

    It is the first that may be to blame. What began behind it is lost as with its machine.
    """
    fields, at = step.event.fields, step.now_at
    wait_status = int(fields.get("wait_status") or 0)
    reason = classify_exit(wait_status, fields.get("oom_count") or 0, fields.get("asked"))
    note = str(fields.get("message") or "")
    text = exit_text(wait_status)
    first = fields["position"]
    items: list[list[Any]] = []
    for position in range(first, first + fields.get("begun", 1)):  # 1: of an older supervisor
        why = reason if position == first else EndReason.NODE_LOST
        started_at = step.started_at if position == first and step.started_at else at
        figures = (started_at, max(at - started_at, 0.0), 0.0, 0.0, 0)
        items.append([position, str(why), *figures, {"exit": text, "note": note}])
    if fields.get("files"):  # of the one that ran
        items[-1][-1]["files"] = fields["files"]
    return Report(
        step.event.lease,
        items,
        b"",
        at,
        exit_text=f"{text}, {note}" if note else text,
        loss=note,
        usage={name: fields[name] for name in _EXIT_USAGE if fields.get(name)} or None,
        over=True,
    )


def _start_reason(word: object) -> EndReason:
    try:
        return EndReason(str(word))
    except ValueError:
        return EndReason.START_FAILED


def _names_files(event: EngineEvent) -> bool:
    """Return whether a file of ``event`` is not a blob yet."""
    if event.name == "exited":
        return "file" in (event.fields.get("files") or ())
    return event.name == "batch" and any(
        item[7] and ("file" in item[7] or "file" in item[7].get("files", ()))
        for item in event.fields["items"]
    )


def _named_blobs(events: Sequence[EngineEvent]) -> list[str]:
    """Return the blobs that ``events`` name already."""
    extras = [item[7] for event in events for item in event.fields.get("items") or ()]
    extras += [{"files": event.fields.get("files")} for event in events]
    return [ref.blob for extra in extras for ref in blobs_of(extra)]


def _is_short(event: EngineEvent) -> bool:
    if event.name != "batch" or len(event.fields["items"]) > QUICK_COUNT:
        return False
    return not _names_files(event)


def _cut(waiting: deque[EngineEvent], limit: int) -> list[EngineEvent]:
    """Take the next events of at most about ``limit`` elements off ``waiting``."""
    events: list[EngineEvent] = []
    count = 0
    while waiting and count < limit:
        events.append(waiting.popleft())
        count += len(events[-1].fields.get("items") or ()) or 1
    return events
