"""The error tree. Everything this product raises for what went wrong outside the caller's code.

::

    CloudException                 code, message, hint, http_status, retry, jid
    ├─ CloudTimeoutError           waited longer than `timeout`
    ├─ RequestError                you asked for something that cannot be (4xx)
    │  ├─ InvalidRequest 400       ├─ NotAuthenticated 401   ├─ NotAllowed 403
    │  ├─ NotFound 404             ├─ Conflict 409           ├─ PayloadTooLarge 413
    │  └─ QuotaExceeded 429
    ├─ JobError                    the platform worked, the job did not
    │  ├─ JobFailed                ├─ JobKilled              └─ JobStalled
    └─ PlatformError               ours (5xx)
       ├─ Unreachable              ├─ Unavailable            ├─ DiskFull
       ├─ Incompatible             ├─ Corrupt                └─ InternalError

Wrong types and values of a Python call raise TypeError and ValueError before anything is sent.
Converted in two places only: `picloud_services.gateway.handler` (exception -> JSON) and
`picloud_jupyter.transport` (JSON -> exception).
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class CloudException(Exception):
    """Raised when something outside your own code went wrong; the message says what to do next.

    ``parameter`` is the message without the job id, ``jid`` the job it is about, ``status`` the
    HTTP status or error number, ``retry`` whether the same request may work later.
    """

    code: ClassVar[str] = "cloud_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        parameter: str = "",
        jid: Any = None,  # noqa: ANN401  # an int, or the jids still waited for
        status: int | None = None,
        *,
        retry: bool | None = None,
        hint: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(jid, status, parameter, jid)
        self.parameter = parameter
        self.jid = jid
        self.status = self.http_status if status is None else status
        self.retry = self.retryable if retry is None else retry
        self.hint = hint
        self.reason = reason

    def __str__(self) -> str:
        text = (
            f"Job {self.jid}: {self.parameter}" if isinstance(self.jid, int) else self.parameter
        )
        return f"{text}\nTIP: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(cls: type[CloudException], state: dict[str, Any]) -> CloudException:
    error = cls(state["parameter"], state["jid"], state["status"], hint=state["hint"])
    error.__dict__.update(state)
    return error


class CloudTimeoutError(CloudException):
    """Raised when `timeout` seconds passed; ``jid`` holds what was still unfinished."""

    code = "timeout"
    http_status = 408


class RequestError(CloudException):
    """Base of what the caller can mend."""

    code = "request_error"
    http_status = 400


class InvalidRequest(RequestError):
    """Raised when a value is outside what is allowed; the message names it and the range."""

    code = "invalid_request"


class NotAuthenticated(RequestError):
    """Raised when no key, or a wrong or expired one, was given."""

    code = "not_authenticated"
    http_status = 401


class NotAllowed(RequestError):
    """Raised when the key is good but does not cover this request."""

    code = "not_allowed"
    http_status = 403


class NotFound(RequestError):
    """Raised when a thing does not exist, or is not yours: both look the same."""

    code = "not_found"
    http_status = 404


class Conflict(RequestError):
    """Raised when a thing is in the wrong state for the request; the message says which."""

    code = "conflict"
    http_status = 409


class PayloadTooLarge(RequestError):
    """Raised when a payload is over its limit; the message names part, size and limit."""

    code = "payload_too_large"
    http_status = 413


class QuotaExceeded(RequestError):
    """Raised when a quota of yours is reached; the message names it and its number."""

    code = "quota_exceeded"
    http_status = 429


class JobError(CloudException):
    """Base of what went wrong in a job. ``reason`` is its end reason."""

    code = "job_error"
    http_status = 424


class JobFailed(JobError):
    """Raised by result and join when the job ended as `error`; holds the remote traceback.

    ``__cause__`` is the remote exception itself when it could be loaded here.
    """

    code = "job_failed"


class JobKilled(JobError):
    """Raised by result and join when the job was killed, by you or by its max_runtime."""

    code = "job_killed"


class JobStalled(JobError):
    """Raised by result and join when the job could not start, or may not start again."""

    code = "job_stalled"


class PlatformError(CloudException):
    """Base of what is ours to mend."""

    code = "platform_error"


class Unreachable(PlatformError):
    """Raised when no control plane answers; the message says what was tried."""

    code = "unreachable"
    http_status = 503
    retryable = True


class Unavailable(PlatformError):
    """Raised when the control plane cannot take the request just now; try again."""

    code = "unavailable"
    http_status = 503
    retryable = True


class DiskFull(PlatformError):
    """Raised when the disk that holds the state is full; free some space and try again."""

    code = "disk_full"
    http_status = 507
    retryable = True


class Incompatible(PlatformError):
    """Raised when client and service do not speak the same wire version."""

    code = "incompatible"
    http_status = 426


class Corrupt(PlatformError):
    """Raised when stored bytes do not match their digest; they are never served."""

    code = "corrupt"


class InternalError(PlatformError):
    """Raised when the service met something it did not expect; its log has the traceback."""

    code = "internal_error"


def _walk(cls: type[CloudException]) -> list[type[CloudException]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _walk(child))]


BY_CODE: dict[str, type[CloudException]] = {cls.code: cls for cls in _walk(CloudException)}


def error_to_wire(error: CloudException) -> dict[str, Any]:
    """Return the JSON object that carries ``error`` to a client."""
    return {
        "error": {
            "code": error.code,
            "message": error.parameter,
            "status": error.status,
            "retry": error.retry,
            "hint": error.hint,
            "jid": error.jid if isinstance(error.jid, int) else None,
            "reason": error.reason,
        }
    }


def error_from_wire(value: Mapping[str, Any]) -> CloudException:
    """Return the exception carried by ``value``; an unknown code becomes a CloudException."""
    body = value.get("error")
    if not isinstance(body, Mapping):
        body = {}
    cls = BY_CODE.get(str(body.get("code")), CloudException)
    return cls(
        str(body.get("message") or "the service answered with an error that has no text"),
        body.get("jid"),
        body.get("status"),
        retry=bool(body.get("retry")),
        hint=body.get("hint"),
        reason=body.get("reason"),
    )
