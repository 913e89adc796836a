"""Negative tests 3, 5 and 17: requests generated from the OpenAPI document, good ones and bad ones.

A real service answers each as the document tells, or refuses it in the document's words; it never
meets a fault of its own, and is afterwards what it was. SEED and EXAMPLES (of each operation) change them.
"""

import copy
import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.frames import CONTENT_TYPE, pack_frame, split_frame
from picloud_jupyter.protocol.openapi import document
from tests.security.conftest import PLAIN_SPEC, Attacked
from tests.tools.unix_requests import BASE_URL

EXAMPLES = int(os.environ.get("EXAMPLES", "8"))
SEED = int(os.environ.get("SEED", "1"))
GROWTH_BYTES = 64 * 1024**2
MOST_FILES = 20
MOST_INLINE_BYTES = 1000
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


# ------------------------------------------------------------------------- frames for schemathesis
def with_headers_as_bodies(api: dict[str, Any]) -> dict[str, Any]:
    """Return ``api`` where the schema of a frame is that of its header: the rest is `as_frame`."""
    found = copy.deepcopy(api)
    for methods in found["paths"].values():
        for operation in methods.values():
            for part in (operation.get("requestBody", {}), *operation["responses"].values()):
                for content in part.get("content", {}).values():
                    if "x-picloud-header" in content["schema"]:
                        content["schema"] = content["schema"]["x-picloud-header"]
    del found["paths"][routes.STOP]  # tried by hand
    return found


@schemathesis.serializer(CONTENT_TYPE)
def as_frame(_context: Any, header: Any) -> bytes:
    """Return a frame with ``header`` and the bytes that it names, if these are few."""
    size_bytes = 0
    if isinstance(header, dict):
        payloads = [header.get("function"), header.get("arguments")]
        for payload in payloads:
            if isinstance(payload, dict) and isinstance(payload.get("size_bytes"), int):
                size_bytes += max(0, min(payload["size_bytes"], MOST_INLINE_BYTES))
    return pack_frame(header, b"x" * size_bytes)


@schemathesis.deserializer(CONTENT_TYPE)
def header_of_frame(_context: Any, response: Any) -> dict[str, Any]:
    """Return the header of an answer that is a frame."""
    return split_frame(response.content)[0]


@pytest.fixture(scope="module", autouse=True)
def _it_is_afterwards_what_it_was(attacked: Attacked) -> Iterator[None]:
    """The same process, hardly larger, holds nothing open, and met nothing that it did not expect."""
    process = attacked.process()
    rss_bytes, files = process.memory_info().rss, process.num_fds()
    yield
    assert attacked.process().pid == process.pid
    assert process.memory_info().rss - rss_bytes < GROWTH_BYTES
    assert process.num_fds() - files < MOST_FILES
    log = attacked.log()
    assert "Traceback" not in log
    assert "did not expect" not in log


API = schemathesis.openapi.from_dict(with_headers_as_bodies(document()))
OPERATIONS = [found.ok() for found in API.get_all_operations() if isinstance(found, Ok)]


# ----------------------------------------------------------------------------------------- the test
def aim(case: Any, attacked: Attacked) -> None:
    """Let a part of the requests be about what is there, and none of them wait for long."""
    odd = len(repr(case.body)) % 2 == 1
    here = {
        "jid": str(attacked.done if odd else attacked.failed),
        "map": str(attacked.map),
        "upload": attacked.upload,
    }
    for name, value in here.items():
        if odd and name in (case.path_parameters or {}):
            case.path_parameters[name] = value
    body = case.body
    if not isinstance(body, dict):
        return
    if odd and "jids" in body:
        body["jids"] = [[attacked.done, attacked.failed]]
    for name in ("timeout_seconds", "wait_seconds"):
        if isinstance(body.get(name), int | float) and body[name] > 0.05:
            body[name] = 0.05
    if odd and isinstance(body.get("spec"), dict):
        body["spec"]["host_python"] = PLAIN_SPEC["host_python"]


@pytest.mark.timeout(250)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_3_5_17_generated_requests_are_answered_as_documented(
    attacked: Attacked, operation: Any
) -> None:
    modes = schemathesis.GenerationMode
    cases = operation.as_strategy(modes.POSITIVE) | operation.as_strategy(modes.NEGATIVE)

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases)
    def ask(case: Any) -> None:
        aim(case, attacked)
        answer = case.call(base_url=BASE_URL, session=attacked.http)
        case.validate_response(answer, checks=CHECKS)

    ask()
