"""The words as JSON, fast: msgspec for what `protocol.codec` does with the standard library."""

import hashlib
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
Raw = msgspec.Raw  # a field of a word whose JSON is kept as it came

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
_ordered = msgspec.json.Encoder(order="deterministic")


def encode(value: Any) -> bytes:  # noqa: ANN401  # plain values and words
    """Return the JSON of plain values or words, every field written."""
    return _encoder.encode(value)


def decode(data: bytes | str) -> Any:  # noqa: ANN401
    """Return the plain values whose JSON ``data`` is.

    Raises:
        msgspec.DecodeError: it is not JSON (a ValueError).
    """
    return _decoder.decode(data)


def read(cls: type[T], data: bytes | str) -> T:
    """Return the word of type ``cls`` whose JSON ``data`` is; unknown fields are ignored.

    Raises:
        msgspec.ValidationError: a field is missing or of the wrong type (a ValueError).
    """
    return msgspec.json.decode(data, type=cls)


def convert(cls: type[T], value: object) -> T:
    """Return the word of type ``cls`` that plain values make; unknown fields are ignored.

    Raises:
        msgspec.ValidationError: a field is missing or of the wrong type (a ValueError).
    """
    return msgspec.convert(value, cls)


def digest(value: Any) -> str:  # noqa: ANN401
    """Return the sha256 in hex of the canonical JSON of ``value``: equal values, equal digests."""
    return hashlib.sha256(_ordered.encode(value)).hexdigest()
