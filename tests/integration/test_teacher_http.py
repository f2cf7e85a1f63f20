"""The service through its HTTP door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import torch

from stillhouse.client import AsyncTeacherClient
from stillhouse.encodings import TopK
from stillhouse.payloads import TopKLogits
from stillhouse.request import All, LogitsRequest, Sequence
from teacher_service.service import TeacherService

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

TOKEN = "right-token-0123456789"
SCRAPE_TOKEN = "scrape-token-0123456789"


@asynccontextmanager
async def http_to(service: TeacherService, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}", headers=headers) as http:
        yield http


async def test_logits_come_as_json(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(fixture_vocabulary_size=6) as service, http_to(service) as http:
        response = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1, 4], "positions": "all"}]})
        assert response.status_code == 200
        body = response.json()
        (payload,) = body["payloads"]
        assert payload == {"positions": [0, 1], "logits": [[0, 0, 0, 0, 10, 0]] * 2}
        assert body["fingerprint"] == service.lifecycle.teacher.description.fingerprint


async def test_both_doors_give_the_same_answer(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    ids = (5, 3, 8)
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client,
    ):
        request = LogitsRequest((Sequence(ids, (), All()),), TopK(4, "float32"), temperature=2.0)
        (payload,) = (await client.answer(request)).payloads
        assert isinstance(payload, TopKLogits)
        asked = {
            "sequences": [{"token_ids": ids, "positions": {"explicit": [0, 1, 2]}}],
            "encoding": {"kind": "top_k", "k": 4, "value_type": "float32"},
            "temperature": 2.0,
        }
        (shown,) = (await http.post("/v1/logits", json=asked)).json()["payloads"]
        assert shown["token_ids"] == payload.token_ids.tolist()
        for name in ("logits", "log_normalizer", "tempered_log_tail_mass"):
            torch.testing.assert_close(torch.tensor(shown[name]), getattr(payload, name), atol=1e-4, rtol=0)


async def test_positions_and_segments_are_read(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        sequences = [
            {"token_ids": [1, 2, 3], "segment_lengths": [1, 2], "positions": {"from": 1}},
            {"token_ids": [1, 2, 3]},
        ]
        encoding = {"kind": "top_k", "k": 1}
        body = (await http.post("/v1/logits", json={"sequences": sequences, "encoding": encoding})).json()
        assert [payload["positions"] for payload in body["payloads"]] == [[1, 2], [2]]


@pytest.mark.parametrize(
    ("body", "status", "name", "detail"),
    [
        ({"sequences": [{"token_ids": [999]}]}, 400, "InvalidRequestError", "sequences[0].token_ids must be below"),
        ({"sequences": [{"token_ids": []}]}, 400, "InvalidRequestError", "sequences[0].token_ids must hold at least"),
        ({"sequences": [{"token_ids": ["x"]}]}, 400, "InvalidRequestError", "sequences.0.token_ids.0: Input should be"),
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
            "ask over gRPC, or for less",
        ),
    ],
)
async def test_problems_name_the_field(
    serve_teacher: ServeTeacher, body: object, status: int, name: str, detail: str
) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        response = await http.post("/v1/logits", json=body)
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert (response.status_code, problem["status"]) == (status, status)
        assert problem["type"] == f"urn:stillhouse:error:{name}"
        assert detail in problem["detail"]


async def test_a_body_over_the_limit_is_refused_before_it_is_read(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(max_message_bytes=2**21) as service, http_to(service) as http:
        response = await http.post("/v1/logits", content=b" " * (2**21 + 1))
        assert response.status_code == 413

        async def endless() -> AsyncIterator[bytes]:
            yield b"{"

        response = await http.post("/v1/logits", content=endless())
        assert (response.status_code, "content-length must be sent" in response.text) == (400, True)


async def test_what_is_not_there_is_a_problem_too(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/logits", 405)):
            response = await http.request(method, path)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"


async def test_a_fault_shows_no_stack(serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_teacher() as service, http_to(service) as http:

        async def fail(_: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(service.lifecycle.teacher, "answer", fail)
        response = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
        assert response.status_code == 500
        assert "secret" not in response.text


async def test_readiness_follows_the_life_of_the_service(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        assert (await http.get("/readyz")).json() == {"status": "ready", "model": "fixture", "cache": "off"}
        for phase in ("loading", "draining"):
            service.lifecycle.phase = phase
            response = await http.get("/readyz")
            assert (response.status_code, response.json()["status"]) == (503, phase)
            assert (await http.get("/livez")).status_code == 200
            assert (await http.get("/v1/teacher")).status_code == 503


async def test_the_teacher_describes_itself(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        plain = (await http.get("/v1/teacher")).json()
        assert plain["encodings"] == ["Dense", "TopK", "Candidates"]
        assert plain["limits"]["max_sequence_tokens"] == 512
        assert "tokens" not in plain
        full = (await http.get("/v1/teacher", params={"include_tokens": True})).json()
        assert len(full["tokens"]) == 300


async def test_metrics_have_the_names_that_dashboards_use(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
        text = (await http.get("/metrics")).text
        for name in (
            "requests_total", "request_duration_seconds", "queue_duration_seconds", "compute_duration_seconds",
            "encode_duration_seconds", "queue_size", "batch_tokens", "padding_tokens_total", "shed_total",
            "cache_requests_total", "response_bytes_total", "forward_tokens_total",
        ):  # fmt: skip
            assert f"# TYPE teacher_{name} " in text, name
        assert 'teacher_requests_total{code="200",method="POST /v1/logits"} 1.0' in text


async def test_every_route_but_health_is_closed_once_a_token_is_set(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN, scrape_token=SCRAPE_TOKEN) as service:
        async with http_to(service, TOKEN) as friend:
            paths = set((await friend.get("/openapi.json")).json()["paths"]) | {"/openapi.json", "/nothing"}
            assert (await friend.post("/v1/logits", json={"sequences": []})).status_code == 200
            assert (await friend.get("/readyz")).json()["model"] == "fixture"
        assert {"/livez", "/readyz", "/metrics", "/v1/teacher", "/v1/logits"} <= paths
        async with http_to(service) as stranger, http_to(service, SCRAPE_TOKEN) as scraper:
            for path in paths - {"/livez", "/readyz"}:
                for method in ("GET", "POST"):
                    response = await stranger.request(method, path)
                    assert response.status_code == 401, path
                    assert response.headers["www-authenticate"] == "Bearer"
                    expected = 403 if path != "/metrics" else None
                    assert expected in (None, (await scraper.request(method, path)).status_code), path
            assert (await stranger.get("/livez")).json() == {"status": "alive"}
            assert (await stranger.get("/readyz")).json() == {"status": "ready"}
            assert (await scraper.get("/metrics")).status_code == 200


async def test_infinities_are_null_in_json(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(fixture_vocabulary_size=3) as service, http_to(service) as http:
        # All of the vocabulary is in the head, so nothing is left of the tail: its log is -inf.
        asked = {"sequences": [{"token_ids": [1]}], "encoding": {"kind": "top_k", "k": 3}}
        response = await http.post("/v1/logits", json=asked)
        assert json.loads(response.text, parse_constant=pytest.fail)["payloads"][0]["log_tail_mass"] == [None]
