"""The users of a service: their quotas and standings in memory, as of the last commit. On the loop."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial

from picloud_jupyter.protocol.errors import InvalidRequest, QuotaExceeded
from picloud_jupyter.protocol.jobs import Resources
from picloud_jupyter.protocol.users import Quota, Use, UserReport
from picloud_services.accounts import quotas, store
from picloud_services.accounts.quotas import NO_LIMITS, NOTHING, Standing
from picloud_services.base.clock import Clock
from picloud_services.base.database import Database
from picloud_services.base.sql import Transaction

MAX_USER_ID = 2**32 - 2
MAX_VALUE = 2**62
MAX_SENDING = 10_000  # uploads of one user that no job names yet
UPLOAD_SECONDS = 3600.0  # what was sent and named by no job is gone after this time


class Accounts:
    """Says what users may do. `start` it before the jobs; `stand` is told each commit's standing."""

    def __init__(self, database: Database, clock: Clock, default: Quota | None = None) -> None:
        self.default = quotas.in_force(default or NO_LIMITS, NO_LIMITS)
        self._database = database
        self._clock = clock
        self._own: dict[int, Quota] = {}
        self._standings: dict[int, Standing] = {}
        self._sending: dict[str, tuple[int, int, float]] = {}  # upload -> user, bytes, until
        self._sending_counts: Counter[int] = Counter()  # of these, by user
        self._sending_bytes: Counter[int] = Counter()

    async def start(self) -> dict[int, tuple[float, float]]:
        """Read what is known of users; return what each used lately: (core-seconds, seconds ago)."""
        now_at = self._clock.now_at()
        rows = await self._database.read(store.read_users)
        for row in rows:
            if row.own != Quota():
                self._own[row.user_id] = row.own
            self._standings[row.user_id] = row.standing
        return {
            row.user_id: (row.recent_core_seconds, max(now_at - row.recent_at, 0.0))
            for row in rows
            if row.recent_core_seconds
        }

    async def save_recent(self, recent: Mapping[int, float]) -> None:
        """Keep what users used lately over a restart; losing it breaks no promise."""
        if not recent:
            return
        work = partial(store.save_recent, recent=recent, at=self._clock.now_at())
        await self._database.write(work)

    # ------------------------------------------------------------------------- what a user may do
    def quota(self, user_id: int) -> Quota:
        """Return the quota in force for a user; 0 = no limit."""
        own = self._own.get(user_id)
        return self.default if own is None else quotas.in_force(own, self.default)

    def stand(self, user_id: int, standing: Standing | None) -> None:
        """Take note of what a commit made of a user's cost and disk use."""
        if standing is not None:
            self._standings[user_id] = standing

    def why_not_now(self, user_id: int, held: Resources, wanted: Resources | None) -> str:
        """Return why no job of the user that needs ``wanted`` may start now; "" if one may."""
        quota = self.quota(user_id)
        if quota == NO_LIMITS:
            return ""
        paused = quotas.why_paused(quota, self._standings.get(user_id, Standing()))
        return paused or (quotas.why_not_now(quota, held, wanted) if wanted else "")

    def why_never(self, user_id: int, wanted: Resources) -> str:
        """Return why a job of the user that needs ``wanted`` may never start; "" if it may."""
        return quotas.why_never(self.quota(user_id), wanted)

    def is_paused(self, user_id: int) -> bool:
        """Return whether nothing of the user may start, whatever it needs."""
        quota = self.quota(user_id)
        return bool(quotas.why_paused(quota, self._standings.get(user_id, Standing())))

    # ------------------------------------------------------------------------------------ uploads
    def require_room(self, user_id: int, size_bytes: int, upload: str = "") -> None:
        """Return if the user may send ``size_bytes``; with ``upload`` they are taken for it.

        Raises:
            QuotaExceeded: with what is stored and on its way it is more than the quota, or too many
                uploads wait for a job to name them.
        """
        now = self._clock.steady_seconds()
        self._forget_stale(now)
        user, before_bytes, _ = self._sending.get(upload, (user_id, 0, 0.0))
        sending_bytes = self._sending_bytes[user_id] - (before_bytes if user == user_id else 0)
        stored = self._standings.get(user_id, Standing())
        standing = Standing(stored.cost, stored.disk_bytes + sending_bytes)
        store.require(quotas.why_no_room(self.quota(user_id), standing, size_bytes))
        if not upload:
            return
        if upload not in self._sending and self._sending_counts[user_id] >= MAX_SENDING:
            raise QuotaExceeded(
                f"You have begun {MAX_SENDING} uploads that no job names yet.",
                hint="Name them in a submit, or wait: they are forgotten after an hour.",
            )
        self._forget(upload)
        self._sending[upload] = (
            user_id,
            size_bytes,
            now + UPLOAD_SECONDS,
        )  # the last to be stale
        self._sending_counts[user_id] += 1
        self._sending_bytes[user_id] += size_bytes

    def sent(self, uploads: Iterable[str | None]) -> None:
        """Uploads, where there are any, are named by a job now, so that its row counts them."""
        for upload in uploads:
            if upload is not None:
                self._forget(upload)

    def _forget_stale(self, now: float) -> None:
        while self._sending and next(iter(self._sending.values()))[2] <= now:
            self._forget(next(iter(self._sending)))

    def _forget(self, upload: str) -> None:
        if upload in self._sending:
            user_id, size_bytes, _ = self._sending.pop(upload)
            self._sending_counts[user_id] -= 1
            self._sending_bytes[user_id] -= size_bytes

    # ------------------------------------------------------------------------------------- people
    async def set_quota(self, user_id: int, quota: Quota) -> None:
        """Give a user a quota of their own.

        Raises:
            InvalidRequest: no such user id, or a value below 0.
        """
        if not 0 <= user_id <= MAX_USER_ID:
            raise InvalidRequest(f"a user id is from 0 to {MAX_USER_ID}, not {user_id}")
        for name in ("cores", "memory_bytes", "disk_bytes", "cost"):
            value = getattr(quota, name)
            if value is not None and not 0 <= value <= MAX_VALUE:
                raise InvalidRequest(
                    f"{name} must be 0 (no limit) or more, or null (as the settings say), got {value}"
                )

        def work(tx: Transaction) -> None:
            store.set_quota(tx, user_id, quota, self._clock.now_at())

        def written(_nothing: None) -> None:
            self._own[user_id] = quota

        await self._database.write(work, written)

    def occupied_bytes(self) -> int:
        """Return what the jobs of all users occupy on the disk."""
        return sum(standing.disk_bytes for standing in self._standings.values())

    async def users(self, held: Mapping[int, Resources]) -> list[UserReport]:
        """Return everybody who ever used the service; ``held`` is what each one's jobs hold now."""
        rows = await self._database.read(store.read_users)
        return [self._report(row, held.get(row.user_id, NOTHING)) for row in rows]

    async def user(self, user_id: int, held: Mapping[int, Resources]) -> UserReport:
        """Return one user, also one who never submitted anything."""
        for report in await self.users(held):
            if report.user_id == user_id:
                return report
        return UserReport(user_id, Quota(), self.quota(user_id), Use())

    def _report(self, row: store.UserRow, held: Resources) -> UserReport:
        self._forget_stale(self._clock.steady_seconds())
        use = Use(
            held.cores,
            held.memory_bytes,
            # As a submit is measured: with what was sent for jobs to come.
            row.standing.disk_bytes + self._sending_bytes[row.user_id],
            row.standing.cost,
            row.core_seconds,
        )
        quota = quotas.in_force(row.own, self.default)
        return UserReport(row.user_id, row.own, quota, use, row.created_at)
