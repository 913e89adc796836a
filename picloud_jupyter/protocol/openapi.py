"""The OpenAPI 3.1 document of the control API, made from the words. Pure.

``python -m picloud_jupyter.protocol.openapi`` prints docs/openapi.json.
"""

import dataclasses
import json
import re
import types
import typing
from enum import Enum
from functools import cache
from typing import Any

from picloud_jupyter.protocol.answers import ErrorAnswer
from picloud_jupyter.protocol.errors import BY_CODE
from picloud_jupyter.protocol.frames import CONTENT_TYPE, OLDEST_WIRE_VERSION, WIRE_VERSION
from picloud_jupyter.protocol.operations import (
    ALWAYS,
    JSON_TYPE,
    OPERATIONS,
    Content,
    Operation,
)
from picloud_jupyter.protocol.requests import Limits

Schema = dict[str, Any]
JOB_KEY = "jobKey"
RANGE_STATUS = 416
_NAME = re.compile(r"\{(\w+)\}")
_SCALARS: dict[Any, Schema] = {
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}
_LIMITS = {
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
}
# What may stand in a path. Wrong ones are answered as 400 or 404, as all that does not exist.
_PATH_NAMES: dict[str, Schema] = {
    "jid": {"type": "integer", "minimum": 1},
    "map": {"type": "integer", "minimum": 1},
    "part": {"type": "integer", "minimum": 0},
    "user": {"type": "integer", "minimum": 0, "maximum": 2**32 - 2},
    "stream": {"type": "string", "enum": ["stdout", "stderr"]},
    "path": {"type": "string", "minLength": 1},
    "upload": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "name": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"},
}
# Statuses that come from HTTP itself, and carry the code of a wider error.
_OF_HTTP = {
    405: "another method is for this path",
    408: "the head came too slowly",
    RANGE_STATUS: "the range lies behind the end",
    431: "the head is too large",
}


@cache
def document() -> Schema:
    """Return the whole document, as plain values."""
    schemas: dict[str, Schema] = {}
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        methods = paths.setdefault(operation.path, {})
        methods[operation.method.lower()] = _operation(operation, schemas)
    refusals = _refusals(schemas)
    schemas["ErrorBody"]["properties"]["code"]["enum"] = sorted(BY_CODE)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "picloud-jupyter control API",
            "version": f"{OLDEST_WIRE_VERSION}.{WIRE_VERSION}",
            "description": "Served on a unix socket: there the peer's user id says who asks. Code "
            "inside a container shows its job's key. See docs/internals.md.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": refusals,
            "securitySchemes": {
                JOB_KEY: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the key of a running job, good while its lease lives",
                }
            },
        },
    }


@cache
def document_json() -> str:
    """Return the document as it stands in docs/openapi.json."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------ operations
def _operation(operation: Operation, schemas: dict[str, Schema]) -> Schema:
    found: Schema = {
        "operationId": _operation_id(operation),
        "summary": operation.about,
        "responses": _responses(operation, schemas),
        "security": [{}, {JOB_KEY: []}] if operation.callers == "anybody" else [{}],
        "x-picloud-callers": operation.callers,
    }
    if parameters := _parameters(operation):
        found["parameters"] = parameters
    if operation.body is not None:
        content = _content(operation.body, schemas)
        found["requestBody"] = {"required": True, "content": content}
    return found


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"\w+", operation.path.removeprefix("/v1"))
    return "_".join((operation.method.lower(), *words))


def _parameters(operation: Operation) -> list[Schema]:
    found: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_NAMES[name]}
        for name in _NAME.findall(operation.path)
    ]
    for query in operation.query:
        words = {"name": query.name, "in": "query", "description": query.about}
        found.append({**words, "schema": query.schema})
    if operation.ranged:
        found.append({"name": "Range", "in": "header", "schema": {"type": "string"}})
    return found


def _content(content: Content, schemas: dict[str, Schema]) -> Schema:
    schema: Schema
    if content.word is None:
        schema = {} if content.media_type.endswith("json") else {"type": "string"}
        if content.about:
            schema["description"] = content.about
    elif content.media_type == CONTENT_TYPE:
        schema = {
            "type": "string",
            "description": f"one frame: its header, {content.about}",
            "x-picloud-header": _schema(content.word, schemas),
        }
    else:
        schema = _schema(content.word, schemas)
    return {content.media_type: {"schema": schema}}


def _responses(operation: Operation, schemas: dict[str, Schema]) -> Schema:
    content = _content(operation.answer, schemas)
    found: Schema = {"200": {"description": "done", "content": content}}
    if operation.ranged:
        found["206"] = {"description": "the range that was asked for", "content": content}
    statuses = {*_OF_HTTP, *(cls.http_status for cls in (*ALWAYS, *operation.errors))}
    if not operation.ranged:
        statuses.discard(RANGE_STATUS)
    for status in sorted(statuses):
        found[str(status)] = {"$ref": f"#/components/responses/{status}"}
    return found


def _refusals(schemas: dict[str, Schema]) -> dict[str, Schema]:
    """Return by status the answers of operations that could not be done."""
    words: dict[int, list[str]] = {status: [text] for status, text in _OF_HTTP.items()}
    every = {cls for operation in OPERATIONS for cls in (*ALWAYS, *operation.errors)}
    for cls in every:
        words.setdefault(cls.http_status, []).append(cls.code)
    content = {JSON_TYPE: {"schema": _schema(ErrorAnswer, schemas)}}
    return {
        str(status): {"description": ", ".join(sorted(words[status])), "content": content}
        for status in sorted(words)
    }


# --------------------------------------------------------------------------------------- schemas
def _schema(annotation: Any, schemas: dict[str, Schema]) -> Schema:  # noqa: ANN401
    """Return the schema of a type; dataclasses and enums are entered in ``schemas`` by name."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _limited(_schema(arguments[0], schemas), arguments[1])
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(each, schemas) for each in arguments]}
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": _schema(arguments[0], schemas)}
        items = [_schema(each, schemas) for each in arguments]
        size = len(items)
        return {"type": "array", "prefixItems": items, "minItems": size, "maxItems": size}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], schemas)}
    if annotation in _SCALARS:
        return dict(_SCALARS[annotation])
    name: str = annotation.__name__
    if name not in schemas:
        schemas[name] = {}  # a word may hold itself
        schemas[name] |= (
            {"type": "string", "enum": [each.value for each in annotation]}
            if issubclass(annotation, Enum)
            else _object(annotation, schemas)
        )
    return {"$ref": f"#/components/schemas/{name}"}


def _limited(schema: Schema, limits: Limits) -> Schema:
    words = _LIMITS[schema["type"]]
    found = zip(words, (limits.low, limits.high), strict=True)
    return schema | {word: value for word, value in found if value is not None}


def _object(cls: Any, schemas: dict[str, Schema]) -> Schema:  # noqa: ANN401  # a dataclass
    hints = typing.get_type_hints(cls, include_extras=True)
    properties = {
        field.name: _schema(hints[field.name], schemas) for field in dataclasses.fields(cls)
    }
    required = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    found: Schema = {"type": "object", "properties": properties}
    if required:
        found["required"] = required
    if cls.__doc__:
        found["description"] = " ".join(cls.__doc__.split())
    return found


if __name__ == "__main__":
    print(document_json(), end="")  # noqa: T201  # that is what it is run for
