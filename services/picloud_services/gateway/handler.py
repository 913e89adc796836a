"""One HTTP request from its first byte to its answer: the only place that knows who asks.

It authenticates (the peer's uid on api.sock, a job's key on jobs.sock), finds the route, takes
the body within its limit, and turns every exception into the JSON of `protocol.errors`.
"""

import errno
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from picloud_jupyter.protocol.errors import (
    CloudException,
    DiskFull,
    Incompatible,
    InternalError,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    PayloadTooLarge,
)
from picloud_jupyter.protocol.frames import OLDEST_WIRE_VERSION, WIRE_VERSION
from picloud_services.accounts.keys import JobIdentity
from picloud_services.base.user_rights import account_name
from picloud_services.gateway.router import Router
from picloud_services.gateway.words import (
    Caller,
    Handler,
    Head,
    Reply,
    Request,
    Sink,
    error_reply,
)

WIRE_HEADER = "x-picloud-wire"
_BEARER = "Bearer "
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """How a listener authenticates. ``owner_uid`` None means: by a job's key and nothing else.

    With ``everybody`` each peer is served as its own uid; else only the owner, and root for the owner.
    """

    router: Router
    check_key: Callable[[str], JobIdentity | None]
    owner_uid: int | None
    everybody: bool = False

    def caller(self, peer_uid: int, headers: Mapping[str, str]) -> Caller:
        """Return who asks.

        Raises:
            NotAuthenticated: no key, a wrong one, or one of a job that no longer runs.
            NotAllowed: this service belongs to somebody else.
        """
        if self.everybody:
            is_owner = peer_uid == self.owner_uid
            return Caller(require_account(peer_uid), local=is_owner, owner=is_owner)
        if self.owner_uid is not None:
            if peer_uid not in (self.owner_uid, 0):
                raise NotAllowed(
                    f"this service belongs to uid {self.owner_uid}, and you are uid {peer_uid}",
                    hint="Start your own with `picloud up`.",
                )
            return Caller(self.owner_uid, local=peer_uid == self.owner_uid, owner=True)
        header = headers.get("authorization", "")
        if not header.startswith(_BEARER):
            raise NotAuthenticated("code inside a container needs its job's key")
        job = self.check_key(header[len(_BEARER) :].strip())
        if job is None:
            raise NotAuthenticated(
                "the key is none of ours, or its job no longer runs on this attempt"
            )
        return Caller(job.user_id, job=job)


def require_account(uid: int) -> int:
    """Return ``uid`` if it is a user of this machine: jobs run with that user's groups.

    Raises:
        NotAllowed: it is not.
    """
    try:
        account_name(uid)
    except KeyError:
        raise NotAllowed(
            f"uid {uid} has no account on this machine, so no job can run as it",
            hint="Ask for an account, or start a service of your own with PICLOUD_HOME set.",
        ) from None
    return uid


class Exchange:
    """One request and its answer: see `words.Exchange`."""

    def __init__(self, door: Door, head: Head, peer_uid: int) -> None:
        self.user_id: int | None = None
        self.body_bytes = 0
        self.sink: Sink | None = None
        self.refusal: CloudException | None = None
        self.route = "none"  # the metrics' name of what was asked for
        self._handle: Handler | None = None
        try:
            self._request = self._open(door, head, peer_uid)
        except Exception as exc:  # noqa: BLE001  # the door: all becomes JSON
            self.refusal = as_cloud_exception(exc)

    def _open(self, door: Door, head: Head, peer_uid: int) -> Request:
        headers = head.headers
        check_wire(headers.get(WIRE_HEADER))
        caller = door.caller(peer_uid, headers)
        route, names = door.router.find(head.method, head.path)
        self.route = f"{route.method} {route.path}"
        if caller.job is not None and not route.inside_jobs:
            raise NotAllowed(f"{head.method} {head.path} is not for code inside a job")
        if route.owner_only and not caller.owner:
            raise NotAllowed(
                f"{head.method} {head.path} is for the owner of the service, not for uid {caller.user_id}"
            )
        query = dict(parse_qsl(head.query)) if head.query else {}
        request = Request(caller, names, query, headers, head.length_bytes)
        if route.open_sink is not None:
            self.sink = route.open_sink(request)
        elif (head.length_bytes or 0) > route.body_bytes:
            raise PayloadTooLarge(
                f"the body has {head.length_bytes} bytes, and this request takes {route.body_bytes}"
            )
        self.user_id, self.body_bytes = caller.user_id, route.body_bytes
        self._handle = route.handle
        return request

    async def serve(self, body: bytes) -> Reply:
        """Return the answer to the whole request, or to what went wrong."""
        try:
            if self.sink is not None:
                return await self.sink.finish()
            assert self._handle is not None
            self._request.body = body
            return await self._handle(self._request)
        except Exception as exc:  # noqa: BLE001  # the door: all becomes JSON
            return self.fail(exc)

    def fail(self, error: Exception) -> Reply:
        """Return the answer that says what went wrong."""
        return error_reply(as_cloud_exception(error))


def check_wire(text: str | None) -> None:
    """Return if the client's wire version is one that we speak; none given means a person with curl.

    Raises:
        Incompatible: it is too old or too new; the message says which side to upgrade.
    """
    if text is None or text == str(WIRE_VERSION):
        return
    if not text.isdecimal() or len(text) > 6:
        raise InvalidRequest(f"X-PiCloud-Wire must be a whole number, got {text[:20]!r}")
    if int(text) < OLDEST_WIRE_VERSION:
        raise Incompatible(
            f"this client speaks wire version {text}, and the service needs {OLDEST_WIRE_VERSION} or later",
            hint="Upgrade picloud-jupyter where the client runs.",
        )
    if int(text) > WIRE_VERSION:
        raise Incompatible(
            f"this client speaks wire version {text}, newer than the service's {WIRE_VERSION}",
            hint="Run `picloud up --replace`: the service is started anew and running jobs go on.",
        )


def as_cloud_exception(error: Exception) -> CloudException:
    """Return ``error`` as one of ours; what nobody expected is logged and named so."""
    if isinstance(error, CloudException):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            "the disk that holds the service's state is full",
            hint="Free some space and try again.",
        )
    _log.error("a request failed", exc_info=error)
    return InternalError(
        f"the service met something it did not expect ({type(error).__name__})",
        hint="service.log in its home folder has the traceback.",
    )
