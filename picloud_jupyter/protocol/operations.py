"""Every operation of the control API: what it takes, what it answers, how it may be refused. Pure."""

from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol import answers, frames, requests, routes
from picloud_jupyter.protocol.errors import (
    CloudException,
    Conflict,
    Corrupt,
    DiskFull,
    Incompatible,
    InternalError,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
    Unavailable,
)
from picloud_jupyter.protocol.ids import MAX_JID
from picloud_jupyter.protocol.jobs import Status
from picloud_jupyter.protocol.secrets import MAX_SECRET_BYTES
from picloud_jupyter.protocol.story import Story
from picloud_jupyter.protocol.users import Quota

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"
MAX_LOG_BYTES = 4 * 1024**2

Errors = tuple[type[CloudException], ...]
ALWAYS: Errors = (
    InvalidRequest,
    NotAuthenticated,
    NotAllowed,
    PayloadTooLarge,
    Incompatible,
    InternalError,
    Unavailable,
)
SUBMIT: Errors = (NotFound, Conflict, Corrupt, QuotaExceeded, DiskFull)


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of one media type. ``word`` is their JSON, or that of the header of a frame."""

    media_type: str
    word: type | None = None
    about: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """A value behind the ``?``, with its JSON Schema."""

    name: str
    schema: dict[str, Any]
    about: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    ``callers``: "anybody" (users, and jobs for their user), "users" (never with a job's key) or "owner".
    ``ranged``: the header Range is understood, and answered with 206.
    """

    method: str
    path: str
    about: str
    answer: Content
    body: Content | None = None
    errors: Errors = ()
    query: tuple[Query, ...] = ()
    callers: str = "anybody"
    ranged: bool = False


def _json(word: type) -> Content:
    return Content(JSON_TYPE, word)


def _frame(word: type, about: str) -> Content:
    return Content(frames.CONTENT_TYPE, word, about)


_BYTES = Content(BYTES_TYPE)
_NOTHING = _json(answers.Nothing)
_JID = {"type": "integer", "minimum": 0, "maximum": MAX_JID}
_SECONDS = {"type": "number", "minimum": 0, "maximum": 60}
_OF_A_JOB: Errors = (NotFound,)
_PAYLOAD: Errors = (NotFound, Conflict, Corrupt)

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", routes.SERVICE, "The service and its nodes", _json(answers.ServiceAnswer)),
    Operation(
        "GET",
        routes.OPENAPI,
        "This description",
        Content(JSON_TYPE, None, "an OpenAPI 3.1 document"),
    ),
    Operation(
        "POST",
        routes.CALLS,
        "Run a function as a job",
        _json(answers.CallAnswer),
        _frame(requests.CallSubmit, "then the bytes of the function and of the arguments"),
        SUBMIT,
    ),
    Operation(
        "POST",
        routes.MAPS,
        "Begin a map",
        _json(answers.MapAnswer),
        _frame(requests.MapSubmit, "then the bytes of the function"),
        SUBMIT,
    ),
    Operation(
        "PUT",
        routes.MAP_PART,
        "Send a part of a map; may be repeated",
        _json(answers.PartAnswer),
        _frame(requests.MapPart, "then a pack of the arguments, those of uploads empty"),
        SUBMIT,
    ),
    Operation(
        "POST",
        routes.MAP_SEAL,
        "End a map",
        _json(answers.SealAnswer),
        _json(requests.MapSeal),
        (NotFound, Conflict),
    ),
    Operation(
        "GET",
        routes.JOBS,
        "The caller's jobs, newest first",
        _json(answers.JobsAnswer),
        query=(
            Query(
                "limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "at most so many"
            ),
            Query("before", _JID, "older than this jid"),
            Query("label", {"type": "string", "maxLength": 1000}, "with this label"),
            Query("status", {"type": "string", "enum": list(Status)}, "in this status"),
            Query("map", _JID, "of this map"),
        ),
    ),
    Operation(
        "POST",
        routes.STATUS,
        "Statuses of jobs",
        _json(answers.StatusesAnswer),
        _json(requests.JobsNamed),
        _OF_A_JOB,
    ),
    Operation(
        "POST",
        routes.WAIT,
        "Wait for jobs",
        _json(answers.WaitAnswer),
        _json(requests.WaitWish),
        _OF_A_JOB,
    ),
    Operation(
        "POST",
        routes.RESULTS,
        "Results of finished jobs",
        _frame(answers.ResultsAnswer, "then the results one after another"),
        _json(requests.ResultsWish),
        (NotFound, Corrupt),
    ),
    Operation(
        "GET", routes.RESULT, "The bytes of a result", _BYTES, errors=_PAYLOAD, ranged=True
    ),
    Operation(
        "GET",
        routes.ARGUMENTS,
        "The bytes of a job's arguments",
        _BYTES,
        errors=_PAYLOAD,
        ranged=True,
    ),
    Operation(
        "GET",
        routes.FUNCTION,
        "The bytes of a job's function",
        _BYTES,
        errors=_PAYLOAD,
        ranged=True,
    ),
    Operation(
        "POST",
        routes.INFO,
        "What is known of jobs",
        _json(answers.InfoAnswer),
        _json(requests.InfoWish),
        _OF_A_JOB,
    ),
    Operation(
        "POST",
        routes.KILL,
        "End jobs",
        _json(answers.KillAnswer),
        _json(requests.KillWish),
        _OF_A_JOB,
    ),
    Operation(
        "POST",
        routes.DELETE,
        "Remove finished jobs",
        _json(answers.DeleteAnswer),
        _json(requests.DeleteWish),
        (NotFound, Conflict),
    ),
    Operation(
        "GET",
        routes.LOG,
        "What a job prints",
        _BYTES,
        errors=_OF_A_JOB,
        query=(
            Query("offset", _JID, "from this byte on"),
            Query(
                "limit",
                {"type": "integer", "minimum": 0, "maximum": MAX_LOG_BYTES},
                "at most so many bytes",
            ),
            Query("wait_seconds", _SECONDS, "wait so long for more"),
            Query("tail_bytes", _JID, "the last bytes, instead of offset"),
        ),
    ),
    Operation(
        "GET",
        routes.FILES,
        "The files that a job wrote",
        _json(answers.FilesAnswer),
        errors=_PAYLOAD,
    ),
    Operation(
        "GET",
        routes.FILE,
        "The bytes of one of them",
        _BYTES,
        errors=_PAYLOAD,
        query=(
            Query("offset", _JID, "from this byte on"),
            Query("limit", _JID, "at most so many bytes"),
        ),
        ranged=True,
    ),
    Operation(
        "GET",
        routes.SAMPLES,
        "What a job used, over time",
        _json(answers.SamplesAnswer),
        errors=_OF_A_JOB,
        query=(Query("since", {"type": "number", "minimum": 0}, "later than this time"),),
    ),
    Operation(
        "GET",
        routes.WHY,
        "What happened to a job, step by step",
        _json(Story),
        errors=_OF_A_JOB,
    ),
    Operation(
        "POST",
        routes.UPLOADS,
        "Begin to send a large payload",
        _json(answers.UploadAnswer),
        _json(requests.UploadBegin),
        (QuotaExceeded, DiskFull),
    ),
    Operation(
        "PUT",
        routes.UPLOAD,
        "Send its bytes",
        _json(answers.UploadedAnswer),
        _BYTES,
        (NotFound, Conflict, QuotaExceeded, DiskFull),
    ),
    Operation(
        "POST",
        routes.UPLOAD,
        "Say that its file is written",
        _NOTHING,
        _json(requests.UploadEnd),
        (NotFound, Conflict, Corrupt, QuotaExceeded, DiskFull),
    ),
    Operation(
        "GET", routes.CODE, "Whether an archive of modules is here", _NOTHING, errors=_OF_A_JOB
    ),
    Operation(
        "PUT",
        routes.CODE,
        "Send an archive of modules",
        _NOTHING,
        Content(BYTES_TYPE, None, "a zip file"),
        (QuotaExceeded, DiskFull),
    ),
    Operation("GET", routes.NODES, "The machines that run jobs", _json(answers.NodesAnswer)),
    Operation(
        "GET",
        routes.SECRETS,
        "The caller's secrets",
        _json(answers.SecretsAnswer),
        callers="users",
    ),
    Operation(
        "PUT",
        routes.SECRET,
        "Keep a secret",
        _json(answers.SecretAnswer),
        Content("text/plain", None, f"its value: UTF-8, at most {MAX_SECRET_BYTES} bytes"),
        (DiskFull,),
        callers="users",
    ),
    Operation(
        "DELETE",
        routes.SECRET,
        "Forget a secret",
        _NOTHING,
        errors=_OF_A_JOB,
        callers="users",
    ),
    Operation(
        "GET",
        routes.USERS,
        "Everybody who used it",
        _json(answers.UsersAnswer),
        callers="owner",
    ),
    Operation(
        "GET",
        routes.METRICS,
        "What the service counts of itself",
        Content("text/plain", None, "the text format of Prometheus"),
        callers="owner",
    ),
    Operation(
        "GET",
        routes.DIAGNOSIS,
        "Versions, settings and the soundness of the store",
        _json(answers.DiagnosisAnswer),
        callers="owner",
    ),
    Operation(
        "PUT",
        routes.USER_QUOTA,
        "Give a user a quota",
        _json(answers.UserAnswer),
        _json(Quota),
        callers="owner",
    ),
    Operation(
        "POST",
        routes.STOP,
        "End the service",
        _NOTHING,
        _json(requests.StopWish),
        callers="owner",
    ),
)
