"""The words about secrets: names, versions, limits. Values are in none of them. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_SECRET_BYTES = 64 * 1024  # the kernel takes no variable above 128 KiB
MAX_JOB_SECRETS = 64
SCRUBBED_CHARACTERS = 4
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED = "PICLOUD_"  # what the runner itself tells a job


@dataclass(frozen=True, slots=True)
class SecretLine:
    """What is shown of a secret. ``version`` grows with each value of a user's secrets."""

    name: str
    version: int
    set_at: float


def check_name(name: object) -> str:
    """Return ``name`` if a secret may be called that.

    Raises:
        TypeError: it is no text.
        ValueError: it could not be the name of a variable.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a secret must be a string, got {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a secret's name is 1 to 64 letters, digits and _, and begins with no digit; got {name[:80]!r}"
        )
    return name


def check_value(value: object) -> str:
    """Return ``value`` if it can be a secret; messages never contain it.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty, too large, or no environment variable can hold it.
    """
    if not isinstance(value, str):
        raise TypeError(f"a secret must be a string, got {type(value).__name__}")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("a secret must be text; give bytes as base64") from None
    if not 0 < size_bytes <= MAX_SECRET_BYTES:
        raise ValueError(f"a secret has 1 to {MAX_SECRET_BYTES} bytes, this one {size_bytes}")
    if "\0" in value:
        raise ValueError("a secret cannot hold the character NUL; give bytes as base64")
    return value


def check_job_secrets(pairs: Iterable[tuple[object, object]]) -> tuple[tuple[str, str], ...]:
    """Return the (variable, name) pairs of a job's secrets, in order of the variables.

    Raises:
        TypeError: one is no text.
        ValueError: one is not allowed, there are too many, or a variable comes twice.
    """
    found: dict[str, str] = {}
    for variable, name in pairs:
        checked = check_name(variable)
        if checked.startswith(_RESERVED):
            raise ValueError(f"_secrets: variables named {_RESERVED}... belong to the service")
        if checked in found:
            raise ValueError(f"_secrets: the variable {checked} comes twice")
        found[checked] = check_name(name)
    if len(found) > MAX_JOB_SECRETS:
        raise ValueError(f"a job has at most {MAX_JOB_SECRETS} secrets, not {len(found)}")
    return tuple(sorted(found.items()))


def scrub(text: str, values: Mapping[str, str]) -> str:
    """Return ``text`` with each of ``values`` (variable: value) replaced by its variable's name.

    Also as `repr` writes it. What is shorter than four characters stays: it is found everywhere,
    and taking it out would say it.

    >>> scrub("401 for token s3cret!", {"TOKEN": "s3cret!"})
    '401 for token [secret TOKEN]'
    """
    for form, word in _forms(values):
        text = text.replace(form, word)
    return text


def scrub_end(text: str, values: Mapping[str, str]) -> str:
    """Return `scrub` of ``text``, the end of a longer one, which may begin with a part of a value.

    >>> scrub_end("cret!, sent s3cret!", {"TOKEN": "s3cret!"})
    '[secret TOKEN], sent [secret TOKEN]'
    """
    for form, word in _forms(values):
        for length in range(min(len(form) - 1, len(text)), SCRUBBED_CHARACTERS - 1, -1):
            if text.startswith(form[-length:]):
                return word + scrub(text[length:], values)
    return scrub(text, values)


def _forms(values: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (text, what stands for it) of each value, the longest first."""
    longest_first = sorted(values.items(), key=lambda item: -len(item[1]))
    return [
        (form, f"[secret {variable}]")
        for variable, value in longest_first
        if len(value) >= SCRUBBED_CHARACTERS
        for form in (value, repr(value)[1:-1])
    ]
