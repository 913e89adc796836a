"""What happens to one job, as events for the thread that shows it.

Threads of this module talk to the control plane; whoever reads the events writes to the notebook.
So output never comes from a background thread, and an interrupt is never lost in a request.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from picloud_jupyter.cloud.information import info
from picloud_jupyter.cloud.outcomes import Outcome, fetch
from picloud_jupyter.cloud.results import kill
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.transport.client import Canceller, Exchange, RequestCancelledError

STREAMS = ("stdout", "stderr")
_POLL_SECONDS = 30.0
_SLICE_BYTES = 1024 * 1024
_BEGUN_ANEW = b"\n[picloud: the job was started again, what follows is its new output]\n"
_QUEUED_EVENTS = 16  # slices: a reader does not run ahead of who shows them


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job exists; it repeats the output of ``written_by`` where that is another."""

    jid: int
    written_by: int


@dataclass(frozen=True, slots=True)
class Written:
    """The job wrote ``data`` to ``stream``."""

    stream: str
    data: Buffer


@dataclass(frozen=True, slots=True)
class Ended:
    """The job is finished; all that it wrote came before."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Broken:
    """The job could not be submitted or is not known any more."""

    error: BaseException


Event = Submitted | Written | Ended | Broken


class _Reader:
    """Reads one stream from its beginning, in a thread once that is started."""

    def __init__(self, jid: int, stream: str) -> None:
        self._jid = jid
        self.stream = stream
        self._offset = 0
        self._attempt = ""  # the one in whose output that is
        self._canceller = Canceller()
        self._thread: threading.Thread | None = None

    def start(self, put: Callable[[Event], None]) -> None:
        """Put what the job writes as it comes."""
        self._thread = threading.Thread(
            target=self._follow, args=(put,), name=f"picloud-{self.stream}", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread may still put something."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End the request in flight, and the thread with it."""
        self._canceller.cancel()

    def ask(self, *, wait_seconds: float = 0.0, canceller: Canceller | None = None) -> Exchange:
        """Ask for what comes next, and return without waiting."""
        query = {"offset": self._offset, "limit": _SLICE_BYTES, "wait_seconds": wait_seconds}
        return session().client.exchange(
            "GET",
            routes.LOG.format(jid=self._jid, stream=self.stream),
            query=query,
            wait_seconds=wait_seconds,
            canceller=canceller,
        )

    def take(self, exchange: Exchange) -> tuple[Buffer, bool]:
        """Return (what came, whether nothing more will come)."""
        answer = exchange.answer()
        get = answer.headers.get
        total = int(get("x-picloud-total", 0))
        before, self._attempt = self._attempt, get("x-picloud-attempt", "")
        if self._offset and (total < self._offset or self._attempt != before):
            self._offset = 0
            return _BEGUN_ANEW, False
        self._offset = int(get("x-picloud-next", self._offset))
        return answer.body, get("x-picloud-finished") == "1" and self._offset >= total

    def _follow(self, put: Callable[[Event], None]) -> None:
        # a stream that cannot be read is no end of the job: the end is told by its result
        with contextlib.suppress(RequestCancelledError, CloudException):
            complete = False
            while not complete:
                asked = self.ask(wait_seconds=_POLL_SECONDS, canceller=self._canceller)
                data, complete = self.take(asked)
                if len(data):
                    put(Written(self.stream, data))


class JobFeed:
    """The events of one job: `Submitted`, any number of `Written`, then `Ended` or `Broken`.

    ``outcome`` is there as soon as the job has ended, for who loses an event to an interrupt.
    ``may_repeat`` says that its result may be the kept one of another job, whose output is shown then.
    """

    def __init__(self, submit: Callable[[], int], *, may_repeat: bool = False) -> None:
        self._submit = submit
        self._may_repeat = may_repeat
        self._events: queue.Queue[Event] = queue.Queue(_QUEUED_EVENTS)
        self._lock = threading.Lock()
        self._readers: list[_Reader] = []
        self._reading = False
        self._cancelled = False
        self._closed = False
        self.jid: int | None = None
        self.outcome: Outcome | None = None
        threading.Thread(target=self._run, name="picloud-cell", daemon=True).start()

    def next(self, timeout_seconds: float | None = None) -> Event | None:
        """Return the next event, None if there was none within the time."""
        try:
            return self._events.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def start_reading(self) -> None:
        """Have output come while the job runs; a job that ends at once is read when it has ended."""
        if self.jid is None or self._reading:
            return
        self._reading = True
        for reader in self._readers:
            reader.start(self._put)

    def cancel(self) -> None:
        """End the job without waiting for that; one that is being submitted ends as soon as it exists."""
        with self._lock:
            self._cancelled = True
            jid = self.jid
        if jid is not None:
            threading.Thread(
                target=_kill, args=(jid,), name="picloud-cancel", daemon=True
            ).start()

    def rest(self) -> Iterator[Written]:
        """Yield what is still unread of a job that has ended."""
        for reader in self._readers:
            reader.stop()
        while any(reader.running for reader in self._readers) or not self._events.empty():
            event = self.next(0.01)
            if isinstance(event, Written):
                yield event
        pending = [(reader, reader.ask()) for reader in self._readers]
        while pending:
            reader, exchange = pending.pop(0)
            data, complete = reader.take(exchange)
            if len(data):
                yield Written(reader.stream, data)
            if not complete:
                pending.append((reader, reader.ask()))

    def close(self) -> None:
        """Stop reading; the job goes on."""
        self._closed = True
        for reader in self._readers:
            reader.stop()

    def _put(self, event: Event) -> None:
        while not self._closed:  # nobody takes events any more then
            with contextlib.suppress(queue.Full):
                self._events.put(event, timeout=1.0)
                return

    def _run(self) -> None:
        try:
            jid = int(self._submit())
            source = _repeated_by(jid) if self._may_repeat else jid
            with self._lock:
                self._readers = [_Reader(source, stream) for stream in STREAMS]
                self.jid = jid
                cancelled = self._cancelled
            if cancelled:
                kill(jid)
            self._put(Submitted(jid, source))
            self.outcome = self._wait(jid)
            if self.outcome is not None:
                self._put(Ended(self.outcome))
        except BaseException as exc:  # noqa: BLE001  # raised again where the events are read
            self._put(Broken(exc))

    def _wait(self, jid: int) -> Outcome | None:
        while not self._closed:
            found, _ = fetch([(jid, jid)], wait_seconds=_POLL_SECONDS)
            if found:
                return found[0]
        return None


def _repeated_by(jid: int) -> int:
    """The job whose kept result is that of ``jid``; itself where it ran."""
    return int(info(jid, ["cached_from"])[jid].get("cached_from") or jid)


def _kill(jid: int) -> None:
    # where it was not taken, the job's end tells: nobody is there to hear of an error
    with contextlib.suppress(CloudException):
        kill(jid)
