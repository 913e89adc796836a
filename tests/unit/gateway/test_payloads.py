"""Headers and specs of submits: what is refused at the door, and what is kept."""

import json
from typing import Any

import pytest

from picloud_jupyter.protocol.errors import InvalidRequest, PayloadTooLarge
from picloud_jupyter.protocol.frames import PREFIX
from picloud_services.gateway import payloads
from picloud_services.gateway.payloads import MAX_SPEC_BYTES, parse_spec, read_submit

PYTHON = {"executable": "/bin/sh", "prefix": "/usr", "base_prefix": "/usr", "version": "3.11.2"}


def spec_bytes(**fields: Any) -> bytes:
    return json.dumps({"function_name": "f", "host_python": PYTHON, **fields}).encode()


def test_header_when_nested_without_end_then_refused_in_words():
    depth = 100_000
    header = b'{"key":"k","function":{"size_bytes":1},"spec":%b%b}' % (
        b"[" * depth,
        b"]" * depth,
    )
    with pytest.raises(InvalidRequest, match="header of the frame"):
        read_submit(PREFIX.pack(len(header), 0) + header)


@pytest.mark.parametrize(
    "text", ['{"count": 1, "delay_seconds": 1e999}', '{"count": 36893488147419103232}']
)
def test_spec_when_a_number_could_not_be_read_back_from_the_store_then_refused(text):
    data = spec_bytes(retries=None).replace(b"null", text.encode())
    with pytest.raises(InvalidRequest, match="number"):
        parse_spec(data)


def test_spec_when_too_large_then_refused_and_large_ones_are_not_kept():
    with pytest.raises(PayloadTooLarge, match="spec"):
        parse_spec(spec_bytes(function_name="x" * MAX_SPEC_BYTES))
    large, usual = spec_bytes(function_name="x" * 100_000), spec_bytes(function_name="usual")
    assert parse_spec(large) == parse_spec(large)
    assert parse_spec(large) is not parse_spec(large)
    assert parse_spec(usual) is parse_spec(usual)
    assert payloads.KEPT_SPEC_BYTES * payloads.KEPT_SPECS <= 8 * 1024**2
