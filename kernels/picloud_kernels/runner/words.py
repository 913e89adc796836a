"""What is said of an element that failed."""

import errno
import os
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from picloud_jupyter.protocol.secrets import scrub, scrub_end
from picloud_jupyter.serialize import payload
from picloud_jupyter.serialize.failure import dump_failure, text_of

_OWN_FOLDER = os.path.join(os.path.dirname(__file__), "")
_CONTINUATIONS = "".join(map(chr, range(0xDC80, 0xDCC0)))  # of a character that was cut in two
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)
_LOADERS = (payload.__file__, os.path.join(os.path.dirname(os.__file__), "cProfile.py"))


class ElementEnded(Exception):
    """Raised by what runs cells and commands to end the element with a reason of its own.

    ``body`` is that of a failed element, ``extra`` are further fields of its frame.
    """

    def __init__(self, reason: str, body: bytes, extra: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.body = body
        self.extra = extra or {}


_secrets: dict[str, str] = {}  # variable: value; a runner's jobs all have the same


def keep_secret(values: Mapping[str, str]) -> None:
    """Leave ``values`` (variable: value) out of all words about failures from now on."""
    _secrets.update(values)


def failure_body(exc: BaseException, text: str, *, message: str | None = None) -> bytes:
    """Return the body of a failed element, without the values of secrets; see `dump_failure`."""
    return dump_failure(exc, text, message=message, secrets=_secrets)


def scrub_cut(data: bytes, *, is_cut: bool) -> bytes:
    """Return output of a command without the values of secrets; ``is_cut`` says its beginning is gone."""
    text = data.decode("utf-8", "surrogateescape")
    whole = text.lstrip(_CONTINUATIONS) if is_cut else text
    clean = (scrub_end if is_cut else scrub)(whole, _secrets)
    return clean.encode("utf-8", "surrogateescape")


def traceback_text(exc: BaseException) -> str:
    """Return the traceback as Python prints it, without the runner's own frames."""
    frames = exc.__traceback__
    while frames is not None and _is_ours(frames):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(exc), exc, frames))


def _is_ours(frames: TracebackType) -> bool:
    file_name = frames.tb_frame.f_code.co_filename
    return file_name.startswith(_OWN_FOLDER) or file_name in _LOADERS


def describe_raised(exc: BaseException) -> tuple[str, bytes]:
    """Return (end reason, body) of an element whose function raised ``exc``."""
    text = traceback_text(exc)
    addition = _addition(exc)
    reason = "disk_full" if _is_out_of_space(exc) else "error"
    if not addition:
        return reason, failure_body(exc, text)
    return reason, failure_body(exc, f"{text}{addition}\n", message=_message(exc, addition))


def _message(exc: BaseException, addition: str) -> str:
    stated = text_of(exc)
    return addition if isinstance(exc, SystemExit) or not stated else f"{stated}. {addition}"


def _addition(exc: BaseException) -> str:
    if isinstance(exc, SystemExit):
        return (
            f"sys.exit({exc.code!r}) was called in the job (SystemExit). A job must not end its interpreter: "
            "return a value, or raise another exception"
        )
    if isinstance(exc, KeyboardInterrupt):
        return "the job got SIGINT from inside its container"
    if isinstance(exc, MemoryError):
        return (
            "the job could not get the memory it asked for; ask for more with _cores or _type, "
            "or work on smaller pieces"
        )
    if _is_out_of_space(exc):
        return "the disk that holds the job's files is full; free some space or write less"
    return ""


def _is_out_of_space(exc: BaseException) -> bool:
    return isinstance(exc, OSError) and exc.errno in _OUT_OF_SPACE
