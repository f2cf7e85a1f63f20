"""The OpenAPI page is complete and true. `test_schemathesis` asks for all that it says, at length."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from teacher_service.http_door.description import describe
from tests.integration.http.speaking import ServeTeacher, http_to


async def page_of(serve_teacher: ServeTeacher) -> dict[str, Any]:
    async with serve_teacher() as service, http_to(service) as http:
        page: dict[str, Any] = (await http.get("/openapi.json")).json()
        return page


async def test_every_route_is_described_with_every_refusal_as_a_problem(serve_teacher: ServeTeacher) -> None:
    page = await page_of(serve_teacher)
    assert set(page["paths"]) == {"/livez", "/readyz", "/metrics", "/v1/teacher", "/v1/output-head", "/v1/logits"}
    for path, operations in page["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            for status, response in operation["responses"].items():
                if status != "200" and (path, status) != ("/readyz", "503"):
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
            closed = path not in ("/livez", "/readyz")
            assert ("401" in operation["responses"]) == closed
    offered = page["paths"]["/v1/logits"]["post"]["responses"]["200"]["content"]
    assert set(offered) == {"application/json", "application/protobuf", "application/vnd.apache.arrow.stream"}


async def test_what_is_asked_and_answered_fits_the_schemas(
    serve_teacher: ServeTeacher, tiny_llama_folder: Path
) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        page = (await http.get("/openapi.json")).json()
        post = page["paths"]["/v1/logits"]["post"]
        asked = post["requestBody"]["content"]["application/json"]
        for name, example in asked["examples"].items():
            fits(page, asked["schema"], example["value"])
            for body in (example["value"], {**example["value"], "include_tokens": True}):
                response = await http.post("/v1/logits", json=body)
                assert response.status_code == 200, (name, response.text)
                fits(page, post["responses"]["200"]["content"]["application/json"]["schema"], response.json())
        for path in ("/livez", "/readyz", "/v1/teacher", "/v1/teacher?include_tokens=true"):
            described = page["paths"][path.partition("?")[0]]["get"]["responses"]["200"]["content"]["application/json"]
            fits(page, described["schema"], (await http.get(path)).json())
        problem = (await http.post("/v1/logits", json={})).json()
        fits(page, post["responses"]["400"]["content"]["application/problem+json"]["schema"], problem)


def fits(page: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    jsonschema_rs.validator_for({**schema, "components": page["components"]}).validate(value)


def test_a_route_without_its_statuses_cannot_be_described() -> None:
    """A new route cannot be forgotten: the page is not made without it."""
    from fastapi import FastAPI

    app = FastAPI()
    app.get("/new")(lambda: None)
    with pytest.raises(KeyError, match=re.escape("/new")):
        describe(app)
