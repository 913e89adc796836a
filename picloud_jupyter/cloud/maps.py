"""`cloud.map`: one function, many elements, a job for each.

The map travels in parts of at most 1,000 elements; jobs of a part run as soon as it is stored, while
the next one is still being pickled.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from itertools import zip_longest
from typing import Any

from picloud_jupyter.cloud.functions import Runnable
from picloud_jupyter.cloud.handles import Jids
from picloud_jupyter.cloud.keywords import Options, take_options
from picloud_jupyter.cloud.results import kill
from picloud_jupyter.cloud.session import Session, session
from picloud_jupyter.cloud.settings import config
from picloud_jupyter.cloud.submission import dump_checked_function, prepare, submit
from picloud_jupyter.cloud.uploads import check_size, upload
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException, QuotaExceeded
from picloud_jupyter.protocol.frames import Buffer, encode_json, pack_records
from picloud_jupyter.protocol.ids import JidRange, format_jids, merge_ranges
from picloud_jupyter.protocol.jobs import INLINE_BYTES, MAX_MAP_COUNT, MAX_PART_COUNT
from picloud_jupyter.serialize.payload import dump_call
from picloud_jupyter.serialize.pickler import References
from picloud_jupyter.transport.client import Exchange, json_of

PART_BYTES = 1024 * 1024
PART_SECONDS = 1.0  # a slow generator's elements run meanwhile
_NO_KEYWORDS: dict[str, object] = {}


def map(func: Callable[..., object], *iterables: Iterable[Any], **reserved: Any) -> Jids:  # noqa: A001, ANN401  # PiCloud's name
    """Return the ids of new jobs, one for each element: ``func(a, b, ...)``, in order.

    Shorter iterables are filled with None. Generators are read as they go, and the first jobs run
    before they end. At most 1,000,000 elements. Of nothing it makes nothing, and the sequence is empty.

    Raises:
        TypeError: ``func`` cannot be called, or an argument is not iterable.
        ValueError: no iterable, too many elements, or a keyword that is not reserved.
        QuotaExceeded: your quota of the disk is reached. Jobs that were made before go on, and are the
            ``jid`` of the exception.
        pickle.PicklingError, PayloadTooLarge, CloudException: as for `call`. Jobs that were made before
            are killed; not with a `_key`, which may be that of an earlier call.
    """
    if not callable(func):
        raise TypeError(f"the first argument must be callable, got {func!r}")
    options = take_options(reserved, func=None, environ=os.environ, callbacks=False)
    if reserved:
        raise ValueError(
            f"map takes reserved keywords only, not {', '.join(reserved)}; bind others with functools.partial"
        )
    count = _count(iterables)  # refuses what is none, in words
    return submit_map(func, zip_longest(*iterables), count, options)


def submit_map(
    func: Runnable, elements: Iterator[tuple[Any, ...]], count: int | None, options: Options
) -> Jids:
    """Return the ids of new jobs that run ``func`` with the arguments in ``elements``, one for each.

    ``count`` is how many there are, None = not known yet. Errors as for `map`.
    """
    references = References()
    function = dump_checked_function(func, references)
    # A repeat must be cut as the first one was, which the clock cannot promise.
    seconds = PART_SECONDS if options.key is None or count is None else float("inf")
    parts = _parts(elements, options.fast_serialization, references, seconds)
    first = next(parts, None)
    if first is None:
        return Jids()
    current = session()
    submission = prepare(current, func, function, references, options)
    header = submission.header("count", encode_json(count))
    answer = submit(current, routes.MAPS, header, submission.function_parts)
    return _Sender(current, answer["map"], is_keyed=options.key is not None).send(first, parts)


def _count(iterables: Sequence[Iterable[Any]]) -> int | None:
    if not iterables:
        raise ValueError("map needs at least one iterable")
    for position, iterable in enumerate(iterables, 1):
        if not isinstance(iterable, Iterable):
            raise TypeError(
                f"iterable {position} of map is none, but of type {type(iterable).__name__}"
            )
    if not all(_has_length(iterable) for iterable in iterables):
        return None
    count = max(len(iterable) for iterable in iterables if isinstance(iterable, Sized))
    if count > MAX_MAP_COUNT:
        raise ValueError(_too_many(f"{count:,}"))
    return count


def _has_length(iterable: object) -> bool:
    """Whether its length is the number of its elements.

    A progress bar tells the total that it was given, a table of pandas its rows while it gives its columns.
    """
    return isinstance(iterable, Sequence | Set | Mapping) or (
        isinstance(iterable, Sized) and hasattr(iterable, "__array_interface__")
    )


def _too_many(count: str) -> str:
    return f"a map has at most {MAX_MAP_COUNT:,} elements, got {count}; make several maps"


class _Part:
    """Elements that travel together; ``large`` are those that are uploaded one by one."""

    def __init__(self, first_index: int) -> None:
        self.first_index = first_index
        self.records: list[Buffer] = []
        self.large: list[tuple[int, list[Buffer], int]] = []
        self.size_bytes = 0
        self.begun_at = time.monotonic()

    def add(self, arguments: list[Buffer], limit: int) -> bool:
        """Add one element; return whether the part is full."""
        if len(arguments) == 1 and len(arguments[0]) <= min(INLINE_BYTES, limit):
            record = arguments[0]
        else:
            index = self.first_index + len(self.records)
            size = check_size(arguments, limit, f"the arguments of element {index:,}")
            record = b"".join(arguments) if size <= INLINE_BYTES else b""
            if not record:
                self.large.append((len(self.records), arguments, size))
        self.records.append(record)
        self.size_bytes += len(record)
        return (
            len(self.records) >= MAX_PART_COUNT
            or self.size_bytes >= PART_BYTES
            or bool(self.large)
        )


def _parts(
    elements: Iterator[tuple[Any, ...]], fast: int, references: References, seconds: float
) -> Iterator[_Part]:
    limit = config.max_transmit_data
    clock = time.monotonic
    part = _Part(0)
    for element in elements:
        arguments = dump_call(
            element, _NO_KEYWORDS, fast=fast, references=references, file_limit_bytes=limit
        )
        if part.add(arguments, limit) or clock() - part.begun_at > seconds:
            yield part
            part = _Part(part.first_index + len(part.records))
    if part.records:
        yield part


class _Sender:
    """Sends the parts of one map: while one is on its way the next one is pickled."""

    def __init__(self, current: Session, map_id: int, *, is_keyed: bool) -> None:
        self._session = current
        self._map = map_id
        self._is_keyed = is_keyed
        self._sent = 0
        self._stored = 0
        self._parts = 0
        self._under_way: Exchange | None = None
        self._jids: list[JidRange] = []

    def send(self, first: _Part, rest: Iterator[_Part]) -> Jids:
        """Return the jids, once all parts are stored."""
        try:
            self._send_part(first)
            for part in rest:
                self._send_part(part)
            self._finish_part()
            return Jids.of_pairs(self._seal())
        except QuotaExceeded as exc:
            raise self._cut_short(exc) from exc
        except BaseException as exc:
            self._abandon(exc)
            raise

    def _send_part(self, part: _Part) -> None:
        if self._sent + len(part.records) > MAX_MAP_COUNT:
            raise ValueError(_too_many("more"))
        uploads = [
            (index, upload(self._session, arguments, size))
            for index, arguments, size in part.large
        ]
        self._finish_part()
        header = {
            "first_index": self._sent,
            "count": len(part.records),
            "uploads": uploads,
        }
        self._under_way = self._session.client.start_frame(
            "PUT",
            routes.MAP_PART.format(map=self._map, part=self._parts),
            header,
            (pack_records(part.records),),
        )
        self._sent += len(part.records)
        self._parts += 1

    def _finish_part(self) -> None:
        if self._under_way is None:
            return
        try:
            answer = json_of(self._under_way.answer())
        except CloudException:
            self._under_way = None  # refused; after Ctrl-C it is asked for again instead
            raise
        first = answer["first_jid"]
        self._jids.append((first, first + answer["count"] - 1))
        self._stored += answer["count"]
        self._under_way = None

    def _seal(self, *, short: bool = False) -> list[JidRange]:
        answer = self._session.client.post(
            routes.MAP_SEAL.format(map=self._map),
            {"count": self._stored, "parts": len(self._jids), "short": short},
        )
        return [(first, last) for first, last in answer["jids"]]

    def _abandon(self, error: BaseException) -> None:
        """Half a map helps nobody: what was stored is ended, and the map closed.

        With a `_key` it may be the map of an earlier call, which is not this one's to end.
        """
        with contextlib.suppress(
            CloudException
        ):  # ``error`` is told; those stored before are ended
            self._finish_part()
        if not self._jids:
            return
        if self._is_keyed:
            error.add_note(
                f"The jobs {format_jids(merge_ranges(self._jids))} of the map with this _key are not ended by that: kill them, or "
                "repeat the call with the same elements and _key, within 10 minutes, to have the others too."
            )
            return
        kill(Jids.of_pairs(self._jids))
        self._seal(short=True)

    def _cut_short(self, refusal: QuotaExceeded) -> QuotaExceeded:
        """What a quota leaves of a map stays and runs: nothing that was done is lost."""
        with contextlib.suppress(QuotaExceeded):  # the part under way may be refused, too
            self._finish_part()
        self._seal(short=True)
        if not self._jids:
            return refusal
        stored = Jids.of_pairs(self._jids)
        return QuotaExceeded(
            f"{refusal.parameter} The first {self._stored:,} elements of the map are jobs "
            f"{format_jids(merge_ranges(self._jids))}, which go on; the others were not taken.",
            stored,
            hint=refusal.hint,
            reason=refusal.reason,
        )
