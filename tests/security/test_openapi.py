"""The OpenAPI document: current, whole, sound, and the words of the services are those it tells of."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from picloud_jupyter.protocol import answers, requests
from picloud_jupyter.protocol.openapi import document, document_json
from picloud_jupyter.protocol.operations import OPERATIONS
from picloud_services.gateway.application import make_routes
from picloud_services.gateway.payloads import SubmitHeader
from picloud_services.gateway.router import Router
from picloud_services.gateway.words import WrongMethod, error_reply
from picloud_services.jobs import words

PAGE = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


def test_the_kept_document_is_what_the_words_say() -> None:
    assert PAGE.read_text() == document_json(), (
        "run `python -m picloud_jupyter.protocol.openapi > docs/openapi.json`"
    )


def test_every_route_is_in_it_for_the_same_callers() -> None:
    services: Any = None
    served = {
        (route.method, route.path): "owner"
        if route.owner_only
        else "anybody"
        if route.inside_jobs
        else "users"
        for route in make_routes(services)
    }
    assert {(o.method, o.path): o.callers for o in OPERATIONS} == served


def test_it_is_json_whose_schemas_are_schemas_and_whose_references_lead_somewhere() -> None:
    found = json.loads(document_json())
    assert found == document()
    for schema in found["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for name in references(found):
        here = found
        for word in name.removeprefix("#/").split("/"):
            here = here[word]


def references(value: Any) -> Iterator[str]:
    """Yield each $ref in ``value``."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


@pytest.mark.parametrize(
    ("ours", "told"),
    [
        (words.CallReceipt, answers.CallAnswer),
        (words.MapReceipt, answers.MapAnswer),
        (words.PartReceipt, answers.PartAnswer),
        (words.WaitAnswer, answers.WaitAnswer),
        (words.JobLine, answers.JobLine),
    ],
)
def test_the_words_of_the_services_have_the_fields_it_tells_of(ours: Any, told: Any) -> None:
    assert names(ours) == names(told)


def test_the_header_of_a_submit_has_the_fields_it_tells_of() -> None:
    assert names(SubmitHeader) == names(requests.CallSubmit) | names(requests.MapSubmit)


@pytest.mark.parametrize("path", sorted({operation.path for operation in OPERATIONS}))
def test_another_method_is_answered_with_those_that_are_there(path: str) -> None:
    services: Any = None
    router = Router(make_routes(services))
    there = {operation.method for operation in OPERATIONS if operation.path == path}
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - there:
        with pytest.raises(WrongMethod) as refused:
            router.find(method, path)
        reply = error_reply(refused.value)
        assert reply.status == 405
        assert set(reply.headers["Allow"].split(", ")) == there


def names(word: Any) -> set[str]:
    """Return the names of its fields."""
    return {field.name for field in dataclasses.fields(word)}
