"""What a job raised <-> bytes: words that anybody may read, and the exception for the client.

The bytes are one frame. Its header (JSON: type, module, message, traceback, loadable) is all that
the control plane looks at; the body holds the pickled exception and those it was raised from.
"""

import itertools
import pickle
from collections.abc import Mapping
from dataclasses import dataclass

from picloud_jupyter.protocol.frames import Buffer, pack_frame, split_frame
from picloud_jupyter.protocol.secrets import SCRUBBED_CHARACTERS, scrub
from picloud_jupyter.serialize.payload import dump, load

MAX_TEXT_CHARACTERS = 256 * 1024
MAX_NAME_CHARACTERS = 1024  # of a type and of a module
MAX_EXCEPTION_BYTES = 48 * 1024  # a failed element's body has 64 KiB on the wire
MAX_FRAME_BYTES = 64 * 1024
_MAX_CHAIN = 8

_NONE: Mapping[str, str] = {}

Link = tuple[BaseException, str]  # an exception, and how the one before it names it


@dataclass(frozen=True, slots=True)
class Failure:
    """How a job failed. ``exception`` is None where it could not be loaded; ``why_not`` says why."""

    type_name: str
    module: str
    message: str
    traceback: str
    exception: BaseException | None = None
    why_not: str = ""


def dump_failure(
    exc: BaseException,
    traceback_text: str,
    *,
    message: str | None = None,
    secrets: Mapping[str, str] = _NONE,
) -> bytes:
    """Return ``exc`` with the text of its traceback as bytes of at most 64 KiB.

    An exception that cannot be pickled travels as words alone, and so does one that holds, as it seems,
    one of ``secrets`` (variable: value), whose values are in no word. ``message`` replaces its own text.
    """
    kind = type(exc)
    text = text_of(exc) if message is None else message
    # a client that re-raises must not be ended by a SystemExit from elsewhere
    pickled = _pickle_chain(exc) if isinstance(exc, Exception) else b""
    words = {
        "type": kind.__qualname__,
        "module": str(kind.__module__),
        "message": text,
        "traceback": traceback_text,
    }
    # Before anything is shortened: what is left of a value that was cut would not be found.
    clean = {name: scrub(text, secrets) for name, text in words.items()} if secrets else words
    if clean != words or _holds(pickled, secrets):
        pickled = b""
    return _pack_within_limit(clean, pickled)


def _holds(pickled: bytes, secrets: Mapping[str, str]) -> bool:
    return any(
        len(value) >= SCRUBBED_CHARACTERS and value.encode() in pickled
        for value in secrets.values()
    )


def _pack_within_limit(words: Mapping[str, str], pickled: bytes) -> bytes:
    """Return a failure as bytes, its words as short as they must be."""
    limit = MAX_FRAME_BYTES
    while True:
        header = {
            "type": _shorten(words["type"], MAX_NAME_CHARACTERS),
            "module": _shorten(words["module"], MAX_NAME_CHARACTERS),
            "message": _shorten(words["message"], limit // 4),
            "traceback": _shorten(words["traceback"], limit // 2),
            "loadable": bool(pickled),
        }
        frame = pack_frame(header, pickled)
        if len(frame) <= MAX_FRAME_BYTES:
            return frame
        if pickled and limit < MAX_FRAME_BYTES // 2:
            pickled = b""
        else:
            limit //= 2


def read_failure(data: Buffer) -> Failure:
    """Return the words in ``data`` without loading the exception.

    Raises:
        FrameError: these are not the bytes of a failure.
    """
    header, _body = split_frame(data)
    return Failure(
        str(header.get("type", "")),
        str(header.get("module", "")),
        str(header.get("message", "")),
        str(header.get("traceback", "")),
    )


def load_failure(data: Buffer) -> Failure:
    """Return the words in ``data`` and the exception, with those that it was raised from.

    Where the exception cannot be loaded, ``exception`` is None and ``why_not`` says why.

    Raises:
        FrameError: these are not the bytes of a failure.
    """
    words = read_failure(data)
    _header, body = split_frame(data)
    exception, why_not = None, "the exception could not be pickled where it was raised"
    if len(body):
        try:
            exception, why_not = _link(load(body)), ""
        except Exception as exc:  # noqa: BLE001  # any class's __init__ or __setstate__ may raise anything
            why_not = f"the exception cannot be loaded here: {type(exc).__name__}: {exc}"
    return Failure(
        words.type_name, words.module, words.message, words.traceback, exception, why_not
    )


def _pickle_chain(exc: BaseException) -> bytes:
    """Return ``exc`` and what it was raised from, as far as those can be pickled and loaded."""
    pickled = b""
    chain: list[Link] = []
    for link in _chain_of(exc):
        try:
            parts = dump([*chain, link], fast=1)
            if sum(map(len, parts)) > MAX_EXCEPTION_BYTES:
                break  # before they are joined and loaded: it may hold all the data of the job
            longer = b"".join(parts)
            load(longer)
        except Exception:  # noqa: BLE001  # what cannot be pickled or loaded ends the chain
            break
        chain.append(link)
        pickled = longer
    return pickled


def _chain_of(exc: BaseException) -> list[Link]:
    chain: list[Link] = [(exc, "")]
    seen = {id(exc)}
    while len(chain) < _MAX_CHAIN:
        last = chain[-1][0]
        if last.__cause__ is not None:
            following, name = last.__cause__, "cause"
        elif last.__context__ is not None and not last.__suppress_context__:
            following, name = last.__context__, "context"
        else:
            break
        if id(following) in seen:
            break
        seen.add(id(following))
        chain.append((following, name))
    return chain


def _link(chain: list[Link]) -> BaseException:
    if not chain or not isinstance(chain[0][0], BaseException):
        raise pickle.UnpicklingError("what was raised is not an exception")
    for (exc, _), (following, name) in itertools.pairwise(chain):
        if name == "cause":
            exc.__cause__ = following
        else:
            exc.__context__ = following
    return chain[0][0]


def text_of(exc: BaseException) -> str:
    """Return what ``exc`` says of itself, whatever its class does."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001  # a __str__ of the user's
        return f"<{type(exc).__qualname__} whose text cannot be made>"


def _shorten(text: str, limit_characters: int) -> str:
    if len(text) <= limit_characters:
        return text
    half = limit_characters // 2
    left_out = len(text) - 2 * half
    end = text[len(text) - half :]
    return f"{text[:half]}\n... {left_out:,} characters left out ...\n{end}"
