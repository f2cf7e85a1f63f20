"""The OpenAPI page put to the test: schemathesis makes requests of it, right and wrong, and holds answers to it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.integration.http.speaking import ServeTeacher, http_to

EXAMPLES = max(10, int(300 * float(os.environ.get("STILLHOUSE_TEST_COUNT", "1"))))

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.ignored_auth,
]
TOKEN = "right-token-0123456789"

# What takes anything that could be wrong.
TAKING = ("/v1/teacher", "/v1/output-head", "/v1/logits")

Operation = schemathesis.APIOperation[Any, Any, Any, Any]


def try_all(url: str) -> dict[int, int]:
    """Make requests of every operation; return how often each status came."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers={"authorization": f"Bearer {TOKEN}"})
    seen: dict[int, int] = {}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        try_one(operation, schemathesis.GenerationMode.POSITIVE, seen)
        if operation.path in TAKING:
            try_one(operation, schemathesis.GenerationMode.NEGATIVE, seen)
    return seen


def try_one(operation: Operation, mode: schemathesis.GenerationMode, seen: dict[int, int]) -> None:
    @hypothesis.given(case=operation.as_strategy(mode))
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def answers_as_described(case: schemathesis.Case[Any]) -> None:
        response = case.call_and_validate(checks=CHECKS, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30)
        assert response.status_code != 500
        seen[response.status_code] = seen.get(response.status_code, 0) + 1

    answers_as_described()


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_every_answer_is_as_described(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN) as service, http_to(service, TOKEN) as http:
        seen = await asyncio.to_thread(try_all, f"http://127.0.0.1:{service.http_port}")
        assert {200, 400} <= set(seen), seen
        response = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
        assert response.json()["payloads"][0]["logits"][0][1] == 10.0
