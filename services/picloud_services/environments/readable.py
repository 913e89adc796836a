"""Looks whether a user may read what a job of theirs shall see."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from picloud_jupyter.protocol.errors import Unavailable
from picloud_services.base.user_rights import file_rights, may, rights_of

LOOK_SECONDS = 10.0
LOOKS_AT_ONCE = 8  # of one user; each that hangs on a dead disk keeps a thread


@dataclass(frozen=True, slots=True)
class Wanted:
    """A path that a job shall see, and ``what`` it is in words."""

    path: str
    what: str
    writable: bool = False


Refused = tuple[Wanted, str]


class Looks:
    """Looks at paths as our own user does or, if ``everybody`` is served, as each of them would.

    A disk may never answer, and a user can make one that does not; so paths are looked at in threads
    of their own, a few for each user.
    """

    def __init__(self, *, everybody: bool) -> None:
        self._everybody = everybody
        self._slots: dict[int, asyncio.Semaphore] = {}  # by user

    async def first_refused(self, user_id: int, places: Sequence[Wanted]) -> Refused | None:
        """Return the first of ``places`` that the user may not use, and why; None if there is none.

        Raises:
            Unavailable: no answer came within ten seconds.
        """
        if not places:
            return None
        look = partial(find_refused, places, _allows)
        if self._everybody and user_id != os.geteuid():
            look = partial(_find_as, user_id, places)
        slots = self._slots.setdefault(user_id, asyncio.Semaphore(LOOKS_AT_ONCE))
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await slots.acquire()
                return await _in_thread(look, done=slots.release)
        except TimeoutError:
            raise _no_answer(places) from None


def _find_as(user_id: int, places: Sequence[Wanted]) -> Refused | None:
    with file_rights(rights_of(user_id)):  # who is in which group may be asked of a network
        return find_refused(places, may)


def _in_thread(
    find: Callable[[], Refused | None], *, done: Callable[[], None]
) -> "asyncio.Future[Refused | None]":
    """Look in a thread of its own; ``done`` is called when that ends, awaited or not."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Refused | None] = loop.create_future()

    def end(found: Refused | Exception | None) -> None:
        done()
        if answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def look() -> None:
        found: Refused | Exception | None
        try:
            found = find()
        except Exception as exc:  # noqa: BLE001  # raised where the answer is awaited
            found = exc
        with contextlib.suppress(RuntimeError):  # the service has ended meanwhile
            loop.call_soon_threadsafe(end, found)

    try:
        threading.Thread(target=look, name="picloud-look", daemon=True).start()
    except RuntimeError:  # the process may have no more threads
        done()
        raise
    return answer


def find_refused(
    places: Sequence[Wanted], allows: Callable[[str, int], bool]
) -> Refused | None:
    """Return the first of ``places`` that ``allows`` does not allow, and why."""
    for place in places:
        if not allows(place.path, os.R_OK):
            exists = allows(place.path, os.F_OK)
            return place, "may not be read by you" if exists else "is not on this machine"
        if place.writable and not allows(place.path, os.W_OK):
            return place, "may not be written to by you"
    return None


def _allows(path: str, mode: int) -> bool:
    return os.access(path, mode)


def _no_answer(places: Sequence[Wanted]) -> Unavailable:
    names = ", ".join(place.path for place in places[:3])
    return Unavailable(
        f"the disk of one of these paths does not answer: {names}",
        hint="See whether `ls` works there, then submit again.",
        retry=False,
    )
