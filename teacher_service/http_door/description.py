"""The OpenAPI page: every route, every status, both media types, with an example of each form.

A test asks for every route what it says and compares (schemathesis); a status that is not here is never answered.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stillhouse.http_forms import MESSAGE_TYPE, PAYLOAD_TYPE, PROBLEM_TYPE
from teacher_service.http_door.answer_models import LogitsOut, StatusOut, TeacherOut
from teacher_service.http_door.arrow_answers import ARROW_TYPE
from teacher_service.http_door.head_file import HEAD_TYPE
from teacher_service.http_door.problems import Problem
from teacher_service.http_door.requests import LogitsIn

_REF = "#/components/schemas/{model}"

_WHEN = {
    400: "A field that no teacher could serve, or bytes that are no HTTP.",
    401: "No token, or an unknown one.",
    403: "A token of another scope.",
    406: "`accept` names no form that is made here.",
    408: "The body did not come whole in time.",
    409: "Teacher and student do not have the same vocabulary.",
    412: "The teacher's fingerprint is not the one that was expected.",
    413: "More sequences, tokens or bytes than the limits allow.",
    415: "The body is neither plain JSON nor a message.",
    429: "A bound is reached; `retry-after` says when to come again.",
    500: "A fault in the service; its log says more.",
    501: "This teacher does not offer what was asked for.",
    503: "Weights load, or the service drains.",
    504: "The answer took longer than any may.",
}

# What any request can meet: a body that nobody asked for is read and bounded too.
_ANY = (400, 408, 413, 429, 500)
_BEHIND_A_TOKEN = (*_ANY, 401, 403, 503, 504)

STATUSES = {
    "/livez": _ANY,
    "/readyz": _ANY,
    "/metrics": (*_ANY, 401, 403),
    "/v1/teacher": _BEHIND_A_TOKEN,
    "/v1/output-head": (*_BEHIND_A_TOKEN, 412, 501),
    "/v1/logits": (*_BEHIND_A_TOKEN, 406, 409, 412, 415, 501),
}
"""The refusals of each route."""

_BYTES = {"type": "string", "format": "binary"}
_BINARY = {"schema": _BYTES}

_EXAMPLES: dict[str, Any] = {
    "dense": {"summary": "All logits of the last position", "value": {"sequences": [{"token_ids": [1, 2, 3]}]}},
    "top_k": {
        "summary": "The five likeliest tokens at every position, with their texts",
        "value": {
            "sequences": [{"token_ids": [1, 2, 3], "positions": "all"}],
            "encoding": {"kind": "top_k", "k": 5},
            "temperature": 2.0,
            "include_tokens": True,
        },
    },
    "sampled": {
        "summary": "Fifty draws at the second position and all after it",
        "value": {
            "sequences": [{"token_ids": [1, 2, 3], "positions": {"from": 1}}],
            "encoding": {"kind": "sampled", "draws": 50, "seed": 7},
        },
    },
    "candidates": {
        "summary": "How likely three tokens are at two positions",
        "value": {
            "sequences": [{"token_ids": [1, 2, 3], "positions": {"explicit": [0, 2]}}],
            "encoding": {"kind": "candidates", "token_ids": [2, 3, 5]},
        },
    },
    "candidates_of_each_position": {
        "summary": "How likely other tokens are at each position",
        "value": {
            "sequences": [{"token_ids": [1, 2], "positions": "all", "candidate_ids": [[2, 3], [4, 5]]}],
            "encoding": {"kind": "candidates"},
        },
    },
    "hidden": {
        "summary": "The final hidden state",
        "value": {"sequences": [{"token_ids": [1, 2, 3]}], "encoding": {"kind": "hidden", "value_type": "float32"}},
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI page of the application."""
    page = get_openapi(
        title=app.title,
        version=app.version,
        summary="A teacher's logits, for whoever learns from them.",
        routes=app.routes,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    models: tuple[type[BaseModel], ...] = (LogitsIn, LogitsOut, TeacherOut, StatusOut, Problem)
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    token = {"type": "http", "scheme": "bearer", "description": "Where the service has tokens; else none is asked for."}
    page["components"] = {"schemas": definitions["$defs"], "securitySchemes": {"token": token}}
    for path, operations in page["paths"].items():
        for operation in operations.values():
            operation["responses"] = _answers(path) | {str(status): _problem(status) for status in STATUSES[path]}
            operation["security"] = [{}] if path in ("/livez", "/readyz") else [{"token": []}, {}]
    page["paths"]["/v1/logits"]["post"]["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": _reference(LogitsIn), "examples": _EXAMPLES},
            MESSAGE_TYPE: {"schema": {**_BYTES, "description": "A `ComputeLogitsRequest` of the contract in proto/."}},
        },
    }
    return page


def _answers(path: str) -> dict[str, Any]:
    json = "application/json"
    match path:
        case "/livez":
            return _answer("It lives.", {json: {"schema": _reference(StatusOut)}})
        case "/readyz":
            content = {json: {"schema": _reference(StatusOut)}}
            not_yet = {"503": {"description": "Not now.", "content": content, "headers": _RETRY_AFTER}}
            return _answer("Requests are accepted.", content) | not_yet
        case "/metrics":
            return _answer("The text that Prometheus reads.", {"text/plain": {"schema": {"type": "string"}}})
        case "/v1/teacher":
            return _answer("What is served.", {json: {"schema": _reference(TeacherOut)}, MESSAGE_TYPE: _BINARY})
        case "/v1/output-head":
            return _answer("A safetensors file, or one payload.", {HEAD_TYPE: _BINARY, PAYLOAD_TYPE: _BINARY})
        case _:
            content = {json: {"schema": _reference(LogitsOut)}, ARROW_TYPE: _BINARY, MESSAGE_TYPE: _BINARY}
            return _answer("The answer; to a message, a message.", content)


def _answer(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"description": description, "content": content}}


def _problem(status: int) -> dict[str, Any]:
    problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _WHEN[status],
    }
    return {
        "description": _WHEN[status],
        "content": {PROBLEM_TYPE: {"schema": _reference(Problem), "example": problem}},
        **({"headers": _RETRY_AFTER} if status in (429, 503) else {}),
        **({"headers": _CHALLENGE} if status == HTTPStatus.UNAUTHORIZED else {}),
    }


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


_RETRY_AFTER = {
    "Retry-After": {"description": "When to come again, in seconds.", "schema": {"type": "integer"}, "required": True}
}
_CHALLENGE = {
    "WWW-Authenticate": {"description": "The scheme to use.", "schema": {"const": "Bearer"}, "required": True}
}
