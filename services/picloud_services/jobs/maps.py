"""Submits maps: create, parts, seal; and gives up those whose client went silent."""

import asyncio
import logging
import math
from functools import partial

from picloud_jupyter.protocol.errors import CloudException, Conflict, InvalidRequest, NotFound
from picloud_jupyter.protocol.frames import FrameError, Pack
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import (
    MAX_MAP_COUNT,
    MAX_PART_COUNT,
    EndReason,
    JobSpec,
    Status,
)
from picloud_services.base.sql import Row, Statement, Transaction
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs import cache, links, store
from picloud_services.jobs.ending import Move, move, slices
from picloud_services.jobs.leasing import Arguments
from picloud_services.jobs.live import Change, Ready
from picloud_services.jobs.publishing import Publisher
from picloud_services.jobs.queries import ResultReader
from picloud_services.jobs.reasons import Facts, message
from picloud_services.jobs.spans import ABANDONED, CODE_OF, OPEN, SEALED, LiveBatch
from picloud_services.jobs.submit import Desk
from picloud_services.jobs.words import Function, MapReceipt, PartReceipt

MAX_OPEN_MAPS = 200  # of one user
_log = logging.getLogger(__name__)

_MAP = Statement(
    """SELECT state, size, first_jid, dependencies, depends_on FROM batches
    WHERE batch = :batch AND user_id = :user_id AND is_map = 1"""
)
_PART = Statement(
    "SELECT first_jid, count, arguments FROM parts WHERE batch = :batch AND part = :part"
)
_TAKEN = Statement("SELECT 1 FROM jobs WHERE jid BETWEEN :first AND :last LIMIT 1")
_HEARD = Statement("UPDATE batches SET heard_at = :at WHERE batch = :batch")
_PARTS = Statement(
    """SELECT COUNT(*), COALESCE(SUM(count), 0), COALESCE(MAX(part), -1),
      COALESCE(MAX(first_index + count), 0) FROM parts WHERE batch = :batch"""
)
_RANGES = Statement(
    "SELECT first_jid, count FROM parts WHERE batch = :batch ORDER BY first_index"
)
_SET_STATE = Statement(
    """UPDATE batches SET state = :state, size = :size,
    finished_seen_seconds = CASE WHEN open = 0
      THEN (SELECT seen_seconds FROM sequences) ELSE NULL END
    WHERE batch = :batch AND state = 'open'"""
)


class Maps:
    """Submits maps. `abandon_silent` is a step for a ticker."""

    def __init__(self, desk: Desk, publisher: Publisher) -> None:
        self._desk = desk
        self._publisher = publisher
        self._heard: dict[int, float] = {}  # open maps -> when their client spoke last (steady)

    # ------------------------------------------------------------------------------- submitting
    async def create(
        self, user_id: int, spec: JobSpec, key: str, count: int | None, function: Function
    ) -> MapReceipt:
        """Return a new map without jobs; see `JobService.create_map`."""
        if count is not None and not 0 <= count <= MAX_MAP_COUNT:
            raise InvalidRequest(f"a map has at most {MAX_MAP_COUNT} elements, not {count}")
        desk = self._desk
        new = desk.new_batch(user_id, spec, key, function)
        desk.dispatch.check(user_id, new.spec)
        self._require_few_open(user_id)
        entered = await desk.database.write(
            partial(_enter_map, new, desk.book, count), partial(self._created, new, count)
        )
        return MapReceipt(entered.batch, entered.first_jid)

    def _require_few_open(self, user_id: int) -> None:
        """Return if the user may begin another map: each takes memory for all its elements."""
        batches = self._desk.live.batches
        begun = [batch for map_id in self._heard if (batch := batches.get(map_id)) is not None]
        if sum(batch.user_id == user_id for batch in begun) >= MAX_OPEN_MAPS:
            raise Conflict(
                f"{MAX_OPEN_MAPS} maps of yours were begun and are not complete yet",
                hint="let some of them be sent to their end first; what is not heard of for a while is given up",
            )

    def _created(self, new: store.NewBatch, count: int | None, entered: store.Entered) -> None:
        if entered.repeated:
            return
        batch = self._desk.live_batch(new, entered, size=count, is_map=True)
        self._heard[batch.batch] = self._desk.clock.steady_seconds()
        if entered.first_jid is not None and count:
            self._desk.live.reserve(batch, entered.first_jid, count)
        if entered.status is Status.WAITING:
            self._desk.dependencies.watch(batch)

    def reopened(self, batch: LiveBatch) -> None:
        """Watch a map found at the start of the service: an open one gets a full new term."""
        is_open = batch.state == OPEN  # else its end was begun, and is gone on with soon
        self._heard[batch.batch] = self._desk.clock.steady_seconds() if is_open else -math.inf

    async def put_part(
        self,
        user_id: int,
        map_id: int,
        part: int,
        first_index: int,
        arguments: Arguments,
    ) -> PartReceipt:
        """Return where the jobs of a part are; see `JobService.put_part`."""
        desk = self._desk
        self._hear(user_id, map_id)
        batch = desk.live.batches.get(map_id)
        rows = store.PartRows(
            batch=map_id,
            user_id=user_id,
            part=part,
            first_jid=0,
            first_index=first_index,
            count=arguments.count,
            arguments=arguments.pack,
            at=desk.clock.now_at(),
            files=[(index, ref) for index, ref in arguments.files],
            default_quota=desk.accounts.default,
        )
        _check_part(rows)
        spec = batch.spec if batch is not None and batch.spec.cache else None
        digest = batch.function_digest if batch is not None else ""
        return await asyncio.shield(
            desk.database.write(
                partial(_enter_part, rows, spec, digest), partial(self._part_entered, rows)
            )
        )

    def _part_entered(self, rows: store.PartRows, receipt: PartReceipt) -> None:
        desk = self._desk
        batch = desk.live.batches.get(rows.batch)
        desk.accounts.stand(rows.user_id, rows.standing)
        if batch is None:
            return
        self._heard[rows.batch] = desk.clock.steady_seconds()
        if not rows.first_jid:  # repeated
            return
        codes = bytes((CODE_OF[rows.status],)) * rows.count
        desk.live.add_jobs(batch, rows.first_jid, rows.first_index, codes)
        done = {jid for jid, _ in rows.cached}
        if done:
            self._publisher.apply(
                [
                    Change(batch.batch, jid, jid, Status.QUEUED, Status.DONE)
                    for jid in sorted(done)
                ]
            )
        if rows.status is Status.QUEUED:
            files = tuple((rows.first_jid + index, ref) for index, ref in rows.files)
            pack = Arguments(rows.first_jid, rows.count, rows.arguments, files)
            ready = [
                Ready(batch.batch, first, last - first + 1)
                for first, last in _without(rows.first_jid, rows.count, done)
            ]
            desk.dispatch.add(ready, pack)

    async def seal(
        self, user_id: int, map_id: int, count: int, parts: int, *, short: bool
    ) -> list[JidRange]:
        """Return the jids of a map that is over; see `JobService.seal_map`."""
        self._hear(user_id, map_id)

        def sealed(_ranges: list[JidRange]) -> None:
            batch = self._desk.live.batches.get(map_id)
            if batch is not None:
                batch.size = count
            self._closed(map_id, SEALED)

        return await self._desk.database.write(
            partial(_seal, user_id, map_id, count, parts, short=short), sealed
        )

    def _hear(self, user_id: int, map_id: int) -> None:
        batch = self._desk.live.batches.get(map_id)
        if batch is None or batch.user_id != user_id or batch.state != OPEN:
            return
        if map_id in self._heard:
            self._heard[map_id] = self._desk.clock.steady_seconds()

    def _closed(self, map_id: int, state: str) -> None:
        self._heard.pop(map_id, None)
        batch = self._desk.live.batches.get(map_id)
        if batch is not None:
            batch.state = state
            self._desk.live.forget_if_finished(batch)

    # ------------------------------------------------------------------------------- giving up
    async def abandon_silent(self, silent_seconds: float) -> int:
        """Give up open maps whose client was silent that long; return how many there were."""
        given_up = 0
        for map_id in tuple(self._heard):
            heard = self._heard.get(map_id)  # asked anew: giving up one takes time
            if heard is None or self._desk.clock.steady_seconds() - heard < silent_seconds:
                continue
            batch = self._desk.live.batches.get(map_id)
            if batch is None:
                del self._heard[map_id]
                continue
            try:
                given_up += await self._abandon(batch)
            except CloudException as exc:
                _log.warning("map %d cannot be given up yet: %s", map_id, exc)
        return given_up

    async def _abandon(self, batch: LiveBatch) -> bool:
        """Give up a map; return False if it was sealed meanwhile."""
        desk = self._desk
        text = message(EndReason.ABANDONED, Facts())
        if batch.state != ABANDONED:  # else an earlier try came to an end half-way
            if not await desk.database.write(
                partial(_set_state, batch.batch, ABANDONED, batch.size), essential=True
            ):
                return False
            batch.state = ABANDONED
        spans = [(span.first_jid, span.last_jid) for span in batch.spans]
        running = set(desk.live.running)
        for first, last in slices(spans):
            for start, stop in _without(first, last - first + 1, running):
                wanted = Move(
                    batch.batch,
                    batch.user_id,
                    start,
                    stop,
                    Status.STALLED,
                    EndReason.ABANDONED,
                    text,
                )
                await desk.database.write(
                    partial(move, wanted=wanted, at=desk.clock.now_at()),
                    self._ended,
                    essential=True,
                )
        self._closed(batch.batch, ABANDONED)
        return True

    def _ended(self, changes: list[Change]) -> None:
        self._publisher.apply(changes)
        self._desk.dispatch.killed([(c.first_jid, c.last_jid) for c in changes])


def _without(first: int, count: int, holes: set[int]) -> list[JidRange]:
    """Return the runs of ``first`` .. that have no jid of ``holes``."""
    stop = first + count
    inside = sorted(jid for jid in holes if first <= jid < stop)
    found = []
    for hole in [*inside, stop]:
        if hole > first:
            found.append((first, hole - 1))
        first = hole + 1
    return found


def _check_part(rows: store.PartRows) -> None:
    if not 1 <= rows.count <= MAX_PART_COUNT:
        raise InvalidRequest(
            f"a part has 1 to {MAX_PART_COUNT} elements, not {rows.count}; send more parts"
        )
    if rows.first_index < 0 or rows.first_index + rows.count > MAX_MAP_COUNT:
        raise InvalidRequest(f"a map has at most {MAX_MAP_COUNT} elements")
    if rows.part < 0:
        raise InvalidRequest("parts are numbered from 0")
    try:
        found = len(Pack(rows.arguments, most=MAX_PART_COUNT))
    except FrameError as exc:
        raise InvalidRequest(f"the arguments are not a pack: {exc}") from exc
    if found != rows.count:
        raise InvalidRequest(f"the part says {rows.count} elements, its pack has {found}")
    if any(not 0 <= index < rows.count for index, _ in rows.files):
        raise InvalidRequest("an upload names an element outside of its part")


def _enter_map(
    new: store.NewBatch, book: links.SpecBook, count: int | None, tx: Transaction
) -> store.Entered:
    known = store.admit(tx, new.user_id, new.key, new.default_quota, is_map=True)
    if known is not None:
        return known
    return store.insert_batch(tx, new, book, size=count, is_map=True)


def _find_map(tx: Transaction, user_id: int, map_id: int) -> Row:
    row = tx.one(_MAP, batch=map_id, user_id=user_id)
    if row is None:
        raise NotFound(f"There is no map {map_id}.")
    return row


def _enter_part(
    rows: store.PartRows, spec: JobSpec | None, function_digest: str, tx: Transaction
) -> PartReceipt:
    state, size, map_first, dependencies, depends_on = _find_map(tx, rows.user_id, rows.batch)
    known = tx.one(_PART, batch=rows.batch, part=rows.part)
    if known is not None:
        if known[1] != rows.count or bytes(known[2]) != rows.arguments:
            raise Conflict(f"part {rows.part} was sent before with another content")
        return PartReceipt(known[0], known[1])
    _require_open(rows.batch, state)
    if size is not None:
        if rows.first_index + rows.count > size:
            raise InvalidRequest(
                f"the map has {size} elements; part {rows.part} ends at {rows.first_index + rows.count}"
            )
        first_jid = map_first + rows.first_index
        if tx.one(_TAKEN, first=first_jid, last=first_jid + rows.count - 1):
            raise Conflict(f"part {rows.part} overlaps with a part that was sent before")
    else:
        first_jid, _ = store.take_numbers(tx, jids=rows.count, batches=0)
    rows.first_jid = first_jid
    rows.status = store.STATUS_BY_DEPENDENCIES[dependencies]
    if rows.status is Status.STALLED:
        rows.text = message(EndReason.DEPENDENCY_FAILED, Facts(detail=str(depends_on)))
    if spec is not None:
        pack = Pack(rows.arguments)
        large: dict[int, BlobRef] = dict(rows.files)
        rows.cache_digests = [
            cache.cache_digest(spec, function_digest, large.get(i) or pack[i])
            for i in range(rows.count)
        ]
        if rows.status is Status.QUEUED:
            reader = ResultReader(tx)
            rows.cached = [
                (first_jid + i, found)
                for i, digest in enumerate(rows.cache_digests)
                if (found := cache.find_cached(tx, rows.user_id, digest, reader)) is not None
            ]
    store.insert_part(tx, rows)
    for jid, found in rows.cached:
        done = Move(rows.batch, rows.user_id, jid, jid, Status.DONE, olds=(Status.QUEUED,))
        move(tx, done, rows.at)
        rows.standing = cache.take_cached(tx, found, rows, jid)
    tx.run(_HEARD, batch=rows.batch, at=rows.at)
    return PartReceipt(first_jid, rows.count)


def _require_open(map_id: int, state: str) -> None:
    if state == ABANDONED:
        raise Conflict(
            f"map {map_id} was given up: nothing was heard of it for too long",
            reason=EndReason.ABANDONED,
            hint="call cloud.map again",
        )
    if state != OPEN:
        raise Conflict(f"map {map_id} is sealed; it takes no more parts")


def _set_state(map_id: int, state: str, size: int | None, tx: Transaction) -> bool:
    """Close an open map; return whether it was open."""
    return bool(tx.run(_SET_STATE, batch=map_id, state=state, size=size))


def _seal(
    user_id: int, map_id: int, count: int, parts: int, tx: Transaction, *, short: bool
) -> list[JidRange]:
    state, size, first_jid, _, _ = _find_map(tx, user_id, map_id)
    row = tx.one(_PARTS, batch=map_id)
    assert row is not None
    if (row[0], row[1], row[2]) != (parts, count, parts - 1):
        raise Conflict(
            f"map {map_id} cannot be sealed: {row[0]} parts with {row[1]} elements have come, "
            f"the client says {parts} with {count}; send the missing parts"
        )
    if row[3] != count:  # its jids are counted on from the first
        raise Conflict(
            f"map {map_id} cannot be sealed: {count} elements have come, and the last one is element "
            f"{row[3] - 1}; send those between"
        )
    if state == ABANDONED:
        _require_open(map_id, state)
    if state == OPEN:
        if size is not None and (size < count if short else size != count):
            raise Conflict(f"map {map_id} was made for {size} elements, not {count}")
        _set_state(map_id, SEALED, count, tx)
    if first_jid is not None and count:
        return [(first_jid, first_jid + count - 1)]
    ranges = [(first, first + n - 1) for first, n in tx.all(_RANGES, batch=map_id)]
    return _join_in_order(ranges)


def _join_in_order(ranges: list[JidRange]) -> list[JidRange]:
    """Return ``ranges`` in their order, neighbours joined."""
    joined: list[JidRange] = []
    for first, last in ranges:
        if joined and first == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined
