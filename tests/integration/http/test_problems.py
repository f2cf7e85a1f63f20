"""Whatever is refused is a problem detail (RFC 9457) with the status of its error."""

from __future__ import annotations

import pytest

from stillhouse.fixtures import LARGEST_HEAD
from tests.integration.http.speaking import ServeTeacher, http_to

# The fixture then has no head, and does not offer HIDDEN.
NO_HEAD = LARGEST_HEAD + 1


@pytest.mark.parametrize(
    ("body", "status", "name", "detail"),
    [
        ({"sequences": [{"token_ids": [9999]}]}, 400, "InvalidRequestError", "sequences[0].token_ids must be below"),
        ({"sequences": [{"token_ids": []}]}, 400, "InvalidRequestError", "sequences[0].token_ids must hold at least"),
        (
            {"sequences": [{"token_ids": ["x"]}]},
            400,
            "InvalidRequestError",
            "sequences[0].token_ids[0]: Input should be",
        ),
        ({"sequences": [], "colour": 1}, 400, "InvalidRequestError", "colour: Extra inputs are not permitted"),
        ({"sequences": [{"token_ids": [1] * 9000}]}, 413, "RequestTooLongError", "9000 is over this teacher's limit"),
        (
            {"sequences": [{"token_ids": [1]}], "encoding": {"kind": "hidden"}},
            501,
            "EncodingNotOfferedError",
            "encoding Hidden is not offered",
        ),
        ({"sequences": [{"token_ids": [1, True]}]}, 400, "InvalidRequestError", "token_ids"),
        ({"sequences": [], "expected_fingerprint": "x"}, 412, "FingerprintMismatchError", "expected_fingerprint is x"),
        (
            {"sequences": [{"token_ids": [1] * 8000, "positions": "all"}] * 8},
            413,
            "RequestTooLongError",
            "over the limit of 3000000 in JSON; ask for less, for Arrow",
        ),
    ],
)
async def test_problems_name_the_field(
    serve_teacher: ServeTeacher, body: object, status: int, name: str, detail: str
) -> None:
    async with serve_teacher(fixture_vocabulary_size=NO_HEAD) as service, http_to(service) as http:
        response = await http.post("/v1/logits", json=body)
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert (response.status_code, problem["status"]) == (status, status)
        assert problem["type"] == f"urn:stillhouse:error:{name}"
        assert detail in problem["detail"]


async def test_what_is_not_there_is_a_problem_too(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/logits/", 404), ("GET", "/v1/logits", 405)):
            response = await http.request(method, path)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"


async def test_a_fault_shows_no_stack(serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_teacher() as service, http_to(service) as http:

        def fail(_: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(service.lifecycle.teacher, "check", fail)
        response = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
        assert response.status_code == 500
        assert "secret" not in response.text
