"""Submits calls: one transaction, and the job may run before the client has its answer."""

import asyncio
import hashlib
from dataclasses import dataclass

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.protocol.jobs import CORE_TYPES, JobSpec, Kind, Status
from picloud_services.accounts.quotas import Standing
from picloud_services.accounts.service import Accounts
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.sql import Transaction
from picloud_services.blobs.store import BlobRef
from picloud_services.jobs import cache, links, store
from picloud_services.jobs.dependencies import Dependencies
from picloud_services.jobs.leasing import Arguments
from picloud_services.jobs.live import LiveJobs, Ready
from picloud_services.jobs.ports import Dispatch
from picloud_services.jobs.queries import ResultReader
from picloud_services.jobs.spans import CODE_OF, SEALED, LiveBatch
from picloud_services.jobs.words import CallReceipt, Function, Payload

MAX_LABEL_CHARACTERS = 200
MAX_KEY_CHARACTERS = 200
MAX_RETRIES = 100
MAX_DEPENDENCY_RANGES = 10_000
KINDS = (Kind.CALL, Kind.CELL, Kind.SHELL)  # what runners run
FAST_LEVELS = (0, 1, 2)


@dataclass(slots=True)
class Desk:
    """What submitting calls and maps share."""

    database: Database
    live: LiveJobs
    dispatch: Dispatch
    dependencies: Dependencies
    book: links.SpecBook
    clock: Clock
    accounts: Accounts

    def new_batch(
        self, user_id: int, spec: JobSpec, key: str, function: Function
    ) -> store.NewBatch:
        """Return what is to be entered for a request, checked.

        Raises:
            InvalidRequest: a value is out of range.
        """
        check_spec(spec, key)
        check_function(function)
        return store.NewBatch(
            user_id=user_id,
            spec=self.book.known(links.shared_part(spec)),
            label=spec.label,
            priority=spec.priority,
            parent_jid=spec.parent_jid,
            depends_on=spec.depends_on,
            key=key,
            function=function,
            at=self.clock.now_at(),
            default_quota=self.accounts.default,
        )

    def live_batch(
        self, new: store.NewBatch, entered: store.Entered, *, size: int | None, is_map: bool
    ) -> LiveBatch:
        """Return the image of a batch that was just committed, entered into the image of all."""
        batch = LiveBatch(
            batch=entered.batch,
            user_id=new.user_id,
            spec=self.book.remember(entered.spec, new.spec),
            function_digest=new.function.digest,
            priority=new.priority,
            label=new.label,
            state="open" if is_map else SEALED,
            size=size,
            created_at=new.at,
            depends_on=new.depends_on,
            is_map=is_map,
        )
        self.live.add_batch(batch)
        return batch


def check_spec(spec: JobSpec, key: str) -> None:
    """Return if the values that the service itself relies on are in range.

    Raises:
        InvalidRequest: one is not; the message names it and the range.
    """
    _check_forms(spec)
    core_type = CORE_TYPES.get(spec.core_type)
    if core_type is None:
        raise InvalidRequest(
            f"_type must be one of {', '.join(CORE_TYPES)}, got {spec.core_type[:40]!r}"
        )
    if spec.cores not in core_type.core_counts:
        allowed = ", ".join(map(str, core_type.core_counts))
        raise InvalidRequest(
            f"_cores of type {spec.core_type} must be one of {allowed}, got {spec.cores}"
        )
    if spec.label is not None and len(spec.label) > MAX_LABEL_CHARACTERS:
        raise InvalidRequest(f"_label may have at most {MAX_LABEL_CHARACTERS} characters")
    if len(key) > MAX_KEY_CHARACTERS:
        raise InvalidRequest(f"_key may have at most {MAX_KEY_CHARACTERS} characters")
    delay_seconds = spec.retries.delay_seconds
    if not (0 <= spec.retries.count <= MAX_RETRIES and 0 <= delay_seconds < float("inf")):
        raise InvalidRequest(f"_retries must be 0 to {MAX_RETRIES}, with a delay of 0 or more")
    if spec.gpus < 0:
        raise InvalidRequest(f"_gpu must be 0 or more, got {spec.gpus}")
    if spec.max_runtime_seconds is not None and not spec.max_runtime_seconds > 0:
        raise InvalidRequest("_max_runtime must be more than 0 minutes")
    if len(spec.depends_on) > MAX_DEPENDENCY_RANGES or any(
        not 1 <= first <= last for first, last in spec.depends_on
    ):
        raise InvalidRequest(
            f"_depends_on must be at most {MAX_DEPENDENCY_RANGES} ranges of job ids"
        )


def _check_forms(spec: JobSpec) -> None:
    if spec.kind not in KINDS:
        raise InvalidRequest(f"kind must be one of {', '.join(KINDS)}, got {spec.kind}")
    if spec.depends_on_errors not in ("abort", "ignore"):
        raise InvalidRequest("_depends_on_errors must be 'abort' or 'ignore'")
    if spec.fast_serialization not in FAST_LEVELS:
        raise InvalidRequest(
            f"_fast_serialization must be 0, 1 or 2, got {spec.fast_serialization}"
        )
    if spec.max_result_bytes is not None and spec.max_result_bytes < 0:
        raise InvalidRequest(
            f"max_result_bytes must be 0 (no limit) or more, got {spec.max_result_bytes}"
        )


def check_function(function: Function) -> None:
    """Return if the bytes are what their digest says: functions are shared by digest.

    Raises:
        InvalidRequest: they are not.
    """
    payload = function.payload
    found = (
        payload.digest if isinstance(payload, BlobRef) else hashlib.sha256(payload).hexdigest()
    )
    if found != function.digest:
        raise InvalidRequest(
            "the function's bytes do not match its digest; they were damaged on the way"
        )


class Calls:
    """Submits single calls."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def submit(
        self, user_id: int, spec: JobSpec, key: str, function: Function, arguments: Payload
    ) -> CallReceipt:
        """Return the receipt of a committed job; see `JobService.submit_call`."""
        desk = self._desk
        new = desk.new_batch(user_id, spec, key, function)
        desk.dispatch.check(user_id, new.spec)
        lease = None
        if not spec.depends_on and not spec.cache:
            lease = desk.dispatch.reserve(user_id, new.spec, spec.priority, function.digest)
        call = _Call(desk, new, arguments, lease)
        written = desk.database.write(
            call.enter,
            call.entered,
            quick=not spec.depends_on,
            at_once=True,
            before_commit=call.launch if lease is not None and new.spec.restartable else None,
        )
        written.add_done_callback(call.written)
        entered = await call.answer
        assert entered.first_jid is not None
        return CallReceipt(
            entered.first_jid,
            cached=entered.cached_from is not None,
            repeated=entered.repeated,
        )


class _Call:
    """A single call on its way into the store; its methods are what `Database.write` asks for.

    Who awaits ``answer`` may be cancelled: the write goes on, and is taken note of all the same.
    """

    __slots__ = ("_arguments", "_desk", "_lease", "_new", "_pack", "_standing", "answer")

    def __init__(
        self,
        desk: Desk,
        new: store.NewBatch,
        arguments: Payload,
        lease: store.NewLease | None,
    ) -> None:
        self._desk = desk
        self._new = new
        self._arguments = arguments
        self._lease = lease
        self._pack = Arguments(0, 0, b"")
        self._standing: Standing | None = None
        self.answer: asyncio.Future[store.Entered] = asyncio.get_running_loop().create_future()

    def enter(self, tx: Transaction) -> store.Entered:
        """Write the job, and its lease if there is one."""
        new, lease = self._new, self._lease
        known = store.admit(tx, new.user_id, new.key, new.default_quota, is_map=False)
        if known is not None:
            return known
        digests = []
        cached = None
        if new.spec.cache:
            digests = [cache.cache_digest(new.spec, new.function.digest, self._arguments)]
            cached = cache.find_cached(tx, new.user_id, digests[0], ResultReader(tx))
        counted = cached is None
        book = self._desk.book
        entered = store.insert_batch(tx, new, book, size=1, is_map=False, counted=counted)
        jid = entered.first_jid
        assert jid is not None
        pack = self._pack = _pack(jid, self._arguments)
        rows = store.PartRows(
            batch=entered.batch,
            user_id=new.user_id,
            part=0,
            first_jid=jid,
            first_index=0,
            count=1,
            arguments=pack.pack,
            at=new.at,
            status=Status.DONE if cached else entered.status,
            text=entered.text,
            files=[(0, ref) for _, ref in pack.files],
            default_quota=new.default_quota,
            counted=counted and entered.status is not Status.STALLED,
            cache_digests=digests,
        )
        store.insert_part(tx, rows)
        self._standing = rows.standing
        if cached is not None:
            self._standing = cache.take_cached(tx, cached, rows, jid)
            return store.Entered(
                entered.batch, jid, Status.DONE, entered.spec, cached_from=cached.jid
            )
        if lease is not None and entered.status is Status.QUEUED:
            store.insert_lease(
                tx,
                lease,
                batch=entered.batch,
                user_id=new.user_id,
                first_jid=jid,
                count=1,
                at=new.at,
            )
        return entered

    def launch(self, entered: store.Entered) -> None:
        """Let a job with a lease begin: a restartable one while its row is being committed.

        Its result is recorded after that commit in any case, and if it fails the lease is revoked.
        """
        assert self._lease is not None
        if entered.status is Status.QUEUED and not entered.repeated:
            new = self._new
            self._desk.dispatch.launch(self._lease, new.spec, self._pack, new.function)

    def entered(self, entered: store.Entered) -> None:
        """Take the committed job into the image, and to the dispatcher."""
        self._desk.accounts.stand(self._new.user_id, self._standing)
        if entered.repeated or entered.cached_from is not None:
            self._give_back()
        else:
            self._begin(entered)
        if not self.answer.done():
            self.answer.set_result(entered)

    def written(self, future: "asyncio.Future[store.Entered]") -> None:
        """Take note of a write that failed."""
        error = future.exception()
        if error is not None:
            self._give_back()
            if not self.answer.done():
                self.answer.set_exception(error)

    def _give_back(self) -> None:
        if self._lease is not None:
            self._desk.dispatch.cancel(self._lease)

    def _begin(self, entered: store.Entered) -> None:
        desk, new, lease = self._desk, self._new, self._lease
        jid = entered.first_jid
        assert jid is not None
        batch = desk.live_batch(new, entered, size=1, is_map=False)
        desk.live.add_jobs(batch, jid, 0, bytes((CODE_OF[entered.status],)))
        if entered.status is Status.WAITING:
            desk.dependencies.watch(batch)
        elif lease is not None:
            self.launch(entered)
        elif entered.status is Status.QUEUED:
            desk.dispatch.add([Ready(batch.batch, jid, 1)], self._pack, new.function)


def _pack(jid: int, arguments: Payload) -> Arguments:
    if isinstance(arguments, BlobRef):
        return Arguments(jid, 1, pack_records([b""]), ((jid, arguments),))
    return Arguments(jid, 1, pack_records([arguments]))
