"""JSON answers: every encoding, readable by a person with curl."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from stillhouse.client import AsyncTeacherClient
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, SampledCounts, TopKLogits
from stillhouse.request import Explicit, LogitsRequest, Sequence
from tests.integration.http.speaking import ServeTeacher, http_to

STATISTICS = ("log_normalizer", "log_tail_mass", "tempered_log_normalizer", "tempered_log_tail_mass")
IDS = (5, 3, 8, 40)

ENCODINGS: list[tuple[Encoding, dict[str, object]]] = [
    (Dense(), {"kind": "dense"}),
    (Dense("bfloat16"), {"kind": "dense", "value_type": "bfloat16"}),
    (Hidden("float32"), {"kind": "hidden", "value_type": "float32"}),
    (TopK(4, "float32"), {"kind": "top_k", "k": 4, "value_type": "float32"}),
    (Sampled(20, 7), {"kind": "sampled", "draws": 20, "seed": 7}),
    (Candidates((1, 9, 200)), {"kind": "candidates", "token_ids": [1, 9, 200]}),
]


async def ask(http: httpx.AsyncClient, **body: object) -> dict[str, Any]:
    response = await http.post("/v1/logits", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    answer: dict[str, Any] = response.json()
    return answer


async def test_logits_come_as_json(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(fixture_vocabulary_size=6) as service, http_to(service) as http:
        body = await ask(http, sequences=[{"token_ids": [1, 4], "positions": "all"}])
        (payload,) = body["payloads"]
        assert payload == {"kind": "dense", "positions": [0, 1], "logits": [[0, 0, 0, 0, 10, 0]] * 2}
        assert body["fingerprint"] == service.lifecycle.teacher.description.fingerprint
        assert (await ask(http, sequences=[]))["payloads"] == []


async def test_every_encoding_says_what_its_payload_holds(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client,
    ):
        for encoding, asked in ENCODINGS:
            request = LogitsRequest((Sequence(IDS, (), Explicit((0, 2))),), encoding, temperature=2.0)
            (payload,) = (await client.answer(request)).payloads
            sequences = [{"token_ids": IDS, "positions": {"explicit": [0, 2]}}]
            (shown,) = (await ask(http, sequences=sequences, encoding=asked, temperature=2.0))["payloads"]
            assert (shown["kind"], shown["positions"]) == (asked["kind"], [0, 2])
            match payload:
                case DenseLogits(logits):
                    equal(shown["logits"], logits)
                case HiddenStates(hidden):
                    equal(shown["hidden"], hidden)
                case TopKLogits() | CandidateLogits():
                    assert shown["token_ids"] == payload.token_ids.tolist()
                    for name in ("logits", *STATISTICS):
                        equal(shown[name], getattr(payload, name))
                    assert shown["temperature"] == 2.0
                case SampledCounts():
                    rows = payload.offsets.tolist()
                    for row, (start, end) in enumerate(pairwise(rows)):
                        assert shown["token_ids"][row] == payload.token_ids[start:end].tolist()
                        assert shown["counts"][row] == payload.counts[start:end].tolist()
                        assert sum(shown["counts"][row]) == shown["draws"] == 20
                    equal(shown["entropy"], payload.entropy)


def equal(shown: list[Any], tensor: torch.Tensor) -> None:
    """Numbers in JSON read as the very same float32."""
    assert torch.equal(torch.tensor(shown, dtype=torch.float32), tensor.float())


async def test_candidates_can_differ_from_position_to_position(
    serve_teacher: ServeTeacher, tiny_llama_folder: Path
) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        sequences = [{"token_ids": IDS[:2], "positions": "all", "candidate_ids": [[1, 7], [3, 299]]}]
        (own,) = (await ask(http, sequences=sequences, encoding={"kind": "candidates"}))["payloads"]
        (dense,) = (await ask(http, sequences=[{"token_ids": IDS[:2], "positions": "all"}]))["payloads"]
        assert own["token_ids"] == [[1, 7], [3, 299]]
        for row, ids in enumerate(own["token_ids"]):
            assert own["logits"][row] == [dense["logits"][row][one] for one in ids]


async def test_log_probabilities_stand_beside_logits(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        sequences = [{"token_ids": IDS, "positions": "all"}]
        (dense,) = (await ask(http, sequences=sequences))["payloads"]
        logits = torch.tensor(dense["logits"], dtype=torch.float64)
        for encoding in (
            {"kind": "top_k", "k": 5, "value_type": "float32"},
            {"kind": "candidates", "token_ids": [2, 3]},
        ):
            (shown,) = (await ask(http, sequences=sequences, encoding=encoding, temperature=0.5))["payloads"]
            ids = torch.tensor(shown["token_ids"]).expand(len(IDS), -1)
            for name, temperature in (("log_probabilities", 1.0), ("tempered_log_probabilities", 0.5)):
                expected = (logits / temperature).log_softmax(1).gather(1, ids)
                torch.testing.assert_close(
                    torch.tensor(shown[name], dtype=torch.float64), expected, atol=1e-5, rtol=1e-5
                )
            covered = torch.tensor(shown["log_probabilities"]).exp().sum(1)
            tail = torch.tensor(shown["log_tail_mass"]).exp()
            torch.testing.assert_close(covered + tail, torch.ones(len(IDS)), atol=1e-5, rtol=0)


async def test_tokens_stand_beside_ids_on_demand(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        tokens = service.lifecycle.teacher.description.tokens
        spaced = next(index for index, token in enumerate(tokens) if token.startswith("Ġ") and len(token) > 2)
        for encoding in (
            {"kind": "top_k", "k": 3},
            {"kind": "sampled"},
            {"kind": "candidates", "token_ids": sorted({0, spaced})},
        ):
            sequences = [{"token_ids": [spaced, 9], "positions": "all"}]
            (shown,) = (await ask(http, sequences=sequences, encoding=encoding, include_tokens=True))["payloads"]
            assert shown["input_tokens"] == [tokens[spaced], tokens[9]]
            assert shown["input_texts"][0] == " " + tokens[spaced][1:]
            flat_ids = [shown["token_ids"]] if encoding["kind"] == "candidates" else shown["token_ids"]
            flat_tokens = [shown["tokens"]] if encoding["kind"] == "candidates" else shown["tokens"]
            assert [[tokens[one] for one in row] for row in flat_ids] == flat_tokens
            assert "tokens" not in (await ask(http, sequences=sequences, encoding=encoding))["payloads"][0]


async def test_the_cache_is_used_as_asked(serve_teacher: ServeTeacher, valkey: str) -> None:
    async with serve_teacher(valkey, fixture_vocabulary_size=777) as service, http_to(service) as http:
        for mode, hits in (("use", 0), ("use", 1), ("refresh", 0), ("bypass", 0), ("use", 1)):
            assert (await ask(http, sequences=[{"token_ids": [7]}], cache_mode=mode))["cache_hits"] == hits, mode


async def test_positions_and_segments_are_read(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        sequences = [
            {"token_ids": [1, 2, 3], "segment_lengths": [1, 2], "positions": {"from": 1}},
            {"token_ids": [1, 2, 3]},
        ]
        body = await ask(http, sequences=sequences, encoding={"kind": "top_k", "k": 1})
        assert [payload["positions"] for payload in body["payloads"]] == [[1, 2], [2]]


async def test_infinities_are_null(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(fixture_vocabulary_size=3) as service, http_to(service) as http:
        # All of the vocabulary is in the head, so nothing is left of the tail: its log is -inf.
        asked = {"sequences": [{"token_ids": [1]}], "encoding": {"kind": "top_k", "k": 3}}
        response = await http.post("/v1/logits", json=asked)
        assert json.loads(response.text, parse_constant=pytest.fail)["payloads"][0]["log_tail_mass"] == [None]


async def test_a_large_answer_comes_in_pieces_and_whole(serve_teacher: ServeTeacher) -> None:
    ids = [index % 200 for index in range(2000)]
    async with serve_teacher(fixture_vocabulary_size=1000) as service, http_to(service) as http:
        sequences = [{"token_ids": ids, "positions": "all"}]
        response = await http.post("/v1/logits", json={"sequences": sequences})
        assert response.headers["transfer-encoding"] == "chunked"
        rows = response.json()["payloads"][0]["logits"]
        assert [max(range(1000), key=row.__getitem__) for row in rows] == [*ids[1:], ids[-1]]
