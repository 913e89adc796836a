"""The one HTTP client: keeps connections, repeats what may be repeated, raises errors by name.

Every request of the control API may be sent twice (submits carry a key), so a lost connection is
never an error by itself. Threads share one client, never a connection in use; after a fork the
child opens connections of its own.
"""

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from picloud_jupyter.protocol.errors import (
    CloudException,
    InternalError,
    Unreachable,
    error_from_wire,
)
from picloud_jupyter.protocol.frames import (
    CONTENT_TYPE,
    PREFIX,
    WIRE_VERSION,
    Buffer,
    encode_json,
)
from picloud_jupyter.transport.connection import (
    BadAnswerError,
    Connection,
    ConnectionLostError,
    Response,
)
from picloud_jupyter.transport.endpoint import Endpoint
from picloud_jupyter.transport.retry import RetryLimits, delay_seconds

LONGEST_WAIT_SECONDS = 60.0  # of one long poll
ANSWER_SECONDS = 60.0  # beyond what the request itself waits for
_JSON = "application/json"
_AT_ONCE_BYTES = 8192  # up to here joining costs less than a list of parts
_BYTES = "application/octet-stream"
_decode = json.JSONDecoder().decode
_IDLE_CONNECTIONS = 8


class RequestCancelledError(Exception):
    """Raised by a request whose `Canceller` was used."""


class Canceller:
    """Lets another thread end a request that waits; use one per waiting thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End the request in flight, or the next one at once."""
        with self._lock:
            self._cancelled = True
            if self._connection is not None:
                self._connection.abort()

    def check(self) -> bool:
        """Return whether it was cancelled since the last check."""
        with self._lock:
            cancelled, self._cancelled = self._cancelled, False
            return cancelled

    def watch(self, connection: Connection | None) -> None:
        """Say which connection a request is waiting on."""
        with self._lock:
            self._connection = connection
            if connection is not None and self._cancelled:
                connection.abort()


class Client:
    """Talks to one control plane. ``revive`` may start it when nothing listens."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        revive: Callable[[], object] | None = None,
        limits: RetryLimits | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.limits = limits or RetryLimits()
        self._revive = revive
        self._idle: list[Connection] = []
        self._is_closed = False
        self._process_id = os.getpid()
        self._common = _common_head(endpoint)

    def close(self) -> bool:
        """Close idle connections; return whether there were any. The next request opens anew."""
        self._is_closed = True  # what other threads give back now is closed, too
        return self._close_idle() > 0

    def _close_idle(self) -> int:
        count = 0
        with contextlib.suppress(IndexError):  # other threads take and close them too
            while True:
                self._idle.pop().close()
                count += 1
        return count

    # ------------------------------------------------------------------ what callers use
    def get(self, path: str, query: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401  # JSON
        """Return the JSON answer to GET ``path``."""
        return json_of(self.exchange("GET", path, query=query).answer())

    def post(
        self,
        path: str,
        value: object,
        *,
        wait_seconds: float = 0.0,
        canceller: Canceller | None = None,
    ) -> Any:  # noqa: ANN401  # JSON
        """Return the JSON answer to POST ``path`` with ``value``; it may take ``wait_seconds``."""
        exchange = self.exchange(
            "POST",
            path,
            (encode_json(value),),
            content_type=_JSON,
            wait_seconds=wait_seconds,
            canceller=canceller,
        )
        return json_of(exchange.answer())

    def put_bytes(self, path: str, parts: Sequence[Buffer]) -> Any:  # noqa: ANN401  # JSON
        """Return the JSON answer to PUT ``path`` with ``parts`` as its body."""
        return json_of(self.exchange("PUT", path, parts, content_type=_BYTES).answer())

    def delete(self, path: str) -> Any:  # noqa: ANN401  # JSON
        """Return the JSON answer to DELETE ``path``."""
        return json_of(self.exchange("DELETE", path).answer())

    def start_post(
        self,
        path: str,
        value: object,
        *,
        wait_seconds: float = 0.0,
        canceller: Canceller | None = None,
    ) -> "Exchange":
        """Send POST ``path`` and return without waiting; ``value`` may be encoded JSON already."""
        body = value if isinstance(value, bytes) else encode_json(value)
        return self.exchange(
            "POST",
            path,
            (body,),
            content_type=_JSON,
            wait_seconds=wait_seconds,
            canceller=canceller,
        )

    def send_frame(
        self, method: str, path: str, header: Mapping[str, Any] | bytes, parts: Sequence[Buffer]
    ) -> Any:  # noqa: ANN401  # JSON
        """Return the JSON answer to one frame."""
        return json_of(self.start_frame(method, path, header, parts).answer())

    def start_frame(
        self, method: str, path: str, header: Mapping[str, Any] | bytes, parts: Sequence[Buffer]
    ) -> "Exchange":
        """Send one frame and return without waiting; ``header`` may be encoded JSON already."""
        size = sum(map(len, parts))
        head = header if isinstance(header, bytes) else encode_json(header)
        body = (PREFIX.pack(len(head), size), head, *parts)
        return self.exchange(method, path, body, content_type=CONTENT_TYPE)

    def exchange(
        self,
        method: str,
        path: str,
        parts: Sequence[Buffer] = (),
        *,
        content_type: str = "",
        query: Mapping[str, object] | None = None,
        wait_seconds: float = 0.0,
        canceller: Canceller | None = None,
    ) -> "Exchange":
        """Send a request; its answer is taken from the exchange that is returned."""
        target = f"{path}?{urlencode(query)}" if query else path
        size = sum(map(len, parts))
        kind = f"Content-Type: {content_type}\r\n" if content_type else ""
        length = f"Content-Length: {size}\r\n" if parts or method != "GET" else ""
        head = f"{method} {self.endpoint.base_path}{target}{self._common}{kind}{length}\r\n"
        first = head.encode("latin-1")
        sent = (b"".join((first, *parts)),) if size <= _AT_ONCE_BYTES else (first, *parts)
        return Exchange(self, sent, f"{method} {path}", wait_seconds, canceller)

    # ------------------------------------------------------------------ connections
    def take(self) -> tuple[Connection, bool]:
        """Return (a connection, whether it was used before)."""
        if self._process_id != os.getpid():  # forked: those connections are the parent's
            self._idle, self._process_id = [], os.getpid()
        self._is_closed = False
        try:
            return self._idle.pop(), True
        except IndexError:
            return self._open(), False

    def give_back(self, connection: Connection) -> None:
        """Keep ``connection`` for the next request, or close it."""
        if connection.reusable and not self._is_closed and len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
            self._close_if_closed_meanwhile()
        else:
            connection.close()

    def _close_if_closed_meanwhile(self) -> None:
        if self._is_closed:  # `close` may have looked before the last one was given back
            self._close_idle()

    def _open(self) -> Connection:
        try:
            return Connection.open(self.endpoint)
        except (FileNotFoundError, ConnectionRefusedError):
            if self._revive is None:
                raise
        self._revive()
        return Connection.open(self.endpoint)


class Exchange:
    """A request that was sent (as far as that went well) and waits for its answer."""

    def __init__(
        self,
        client: Client,
        parts: Sequence[Buffer],  # head first
        name: str,
        wait_seconds: float,
        canceller: Canceller | None,
    ) -> None:
        self._client = client
        self._parts = parts
        self._name = name
        self._timeout_seconds = ANSWER_SECONDS + wait_seconds
        self._canceller = canceller
        self._connection: Connection | None = None
        self._reused = False
        self._failure: Exception | None = None
        self._send()

    def answer(self) -> Response:
        """Return the answer, sending the request again where that helps.

        Raises:
            Unreachable: nothing answered within the limits of the client.
            CloudException: the control plane refused the request; the class says how.
            RequestCancelledError: the request's canceller was used.
        """
        failures = silences = 0
        while True:
            reused = self._reused
            outcome = self._receive()
            if self._canceller is not None and self._canceller.check():
                self.abandon()
                raise RequestCancelledError
            error = None
            if isinstance(outcome, Response):
                if outcome.status < 400:
                    return outcome
                error = _error_of(outcome)
                if outcome.status != 503 or not error.retry:
                    raise error
            is_silent = isinstance(outcome, TimeoutError)
            silences += is_silent
            is_stale = reused and isinstance(outcome, Exception) and not is_silent
            if not is_stale:  # an idle one may be
                failures += 1
                is_last = silences > self._client.limits.silent_attempts
                self._pause(failures, outcome, error, is_last=is_last)
            self._send()

    def abandon(self) -> None:
        """Give up: the answer, if it still comes, is not read."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        if self._connection is not None:
            self.abandon()

    def _pause(
        self,
        failures: int,
        outcome: Response | Exception,
        error: CloudException | None,
        *,
        is_last: bool,
    ) -> None:
        pause = delay_seconds(self._client.limits, failures, random.random())  # noqa: S311  # jitter
        if pause is not None and not is_last:
            time.sleep(pause)
        elif error is not None:
            raise error
        else:
            assert isinstance(outcome, Exception)
            raise _unreachable(
                self._client.endpoint, self._name, failures, outcome
            ) from outcome

    def _send(self) -> None:
        self._failure = None
        self._reused = False
        try:
            self._connection, self._reused = self._client.take()
            self._connection.send(self._parts, ANSWER_SECONDS)
        except (BrokenPipeError, ConnectionResetError):
            return  # the answer may be there already: a refusal of a large body
        except OSError as exc:
            self.abandon()
            self._failure = exc

    def _receive(self) -> Response | Exception:
        connection = self._connection
        if connection is None:
            return self._failure or ConnectionLostError("there is no connection")
        canceller = self._canceller
        if canceller is not None:
            canceller.watch(connection)
        try:
            response = connection.receive(self._timeout_seconds)
        except (OSError, BadAnswerError) as exc:
            return exc
        else:
            self._connection = None
            self._client.give_back(connection)
            return response
        finally:
            if canceller is not None:
                canceller.watch(None)
            if self._connection is not None:
                self.abandon()


def _common_head(endpoint: Endpoint) -> str:
    host = endpoint.authority or "picloud"
    key = f"Authorization: Bearer {endpoint.key}\r\n" if endpoint.key else ""
    return f" HTTP/1.1\r\nHost: {host}\r\nX-PiCloud-Wire: {WIRE_VERSION}\r\n{key}"


def json_of(response: Response) -> Any:  # noqa: ANN401  # JSON
    """Return the JSON in ``response``; an empty one is an empty object."""
    if not response.body:
        return {}
    try:
        return _decode(str(response.body, "utf-8", "surrogatepass"))
    except ValueError as exc:
        raise InternalError(f"the control plane's answer is not JSON: {exc}") from exc


def _error_of(response: Response) -> CloudException:
    """The exception that an answer of 400 or more stands for."""
    try:
        value = _decode(str(response.body, "utf-8", "surrogatepass"))
    except ValueError:
        value = None
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        return error_from_wire(value)
    text = bytes(response.body[:200]).decode("utf-8", "replace")
    return InternalError(
        f"the control plane answered {response.status} without words of its own: {text!r}",
        status=response.status,
        retry=response.status == 503,
    )


def _unreachable(
    endpoint: Endpoint, name: str, failures: int, cause: Exception
) -> CloudException:
    if endpoint.system:
        hint = "ask for `sudo picloud up --system`, or set PICLOUD_HOME to use a service of your own"
    elif endpoint.embedded:
        hint = "run `picloud doctor`"
    else:
        hint = "check the address, the network, and that the service runs there"
    return Unreachable(
        f"no control plane answered at {endpoint.address} ({name}, tried {failures} times: {str(cause) or type(cause).__name__})",
        hint=hint,
    )
