"""Arrow answers: one stream that pyarrow alone reads, with the very values of the payload."""

from __future__ import annotations

import io
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch

from stillhouse.codec import decode_payload
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits
from stillhouse.request import All, Explicit, From, Last, LogitsRequest, Positions, Sequence
from teacher_service.http_door.requests import KINDS
from tests.integration.http.speaking import ARROW, PROBLEM, ServeTeacher, http_to

STATISTICS = ("log_normalizer", "log_tail_mass", "tempered_log_normalizer", "tempered_log_tail_mass")
POSITIONS: list[tuple[Positions, object]] = [
    (Last(), "last"),
    (All(), "all"),
    (From(1), {"from": 1}),
    (Explicit((0, 2)), {"explicit": [0, 2]}),
]
ENCODINGS: list[Encoding] = [
    *(Dense(t) for t in ("float32", "float16", "bfloat16")),
    *(Hidden(t) for t in ("float32", "bfloat16")),
    *(TopK(4, t) for t in ("float32", "float16")),
    *(Candidates((1, 9), t) for t in ("float32", "float16")),
    *(Candidates((), t) for t in ("float32", "float16")),
    Sampled(20, 3),
]
SEQUENCES = ((5, 3, 8), (40, 2, 7, 1, 250), (9, 9, 9, 9))


async def stream(http: httpx.AsyncClient, body: object) -> pa.RecordBatchStreamReader:
    response = await http.post("/v1/logits", json=body, headers={"accept": ARROW})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == ARROW
    return pa.ipc.open_stream(io.BytesIO(response.content))


async def test_every_answer_is_the_payload_to_the_bit(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        for encoding in ENCODINGS:
            # Alone as well: large answers, which go alone, are read from their bytes as they are.
            for (positions, named), sequences in [*product(POSITIONS, [SEQUENCES]), (POSITIONS[1], SEQUENCES[:1])]:
                request, body = both(encoding, positions, named, sequences)
                teacher = service.lifecycle.teacher
                async with teacher.answering(teacher.check(request)) as answer:
                    payloads = [decode_payload(data) for data in answer.payloads]
                table = (await stream(http, body)).read_all()
                at = 0
                for index, (sequence, payload) in enumerate(zip(request.sequences, payloads, strict=True)):
                    rows = table.slice(at, payload.num_positions)
                    at += payload.num_positions
                    assert rows["sequence"].to_pylist() == [index] * payload.num_positions
                    assert rows["position"].to_pylist() == list(sequence.position_indices())
                    compare(rows, payload)
                assert at == table.num_rows


def both(
    encoding: Encoding, positions: Positions, named: object, asked_about: tuple[tuple[int, ...], ...]
) -> tuple[LogitsRequest, dict[str, object]]:
    sequences, parts = [], []
    for number, ids in enumerate(asked_about):
        sequence = Sequence(ids, (), positions)
        part: dict[str, object] = {"token_ids": ids, "positions": named}
        if isinstance(encoding, Candidates) and not encoding.token_ids:
            # Another number of them for each sequence.
            own = tuple(tuple(range(row, row + 5 + number)) for row in range(sequence.num_positions))
            sequence, part = Sequence(ids, (), positions, own), {**part, "candidate_ids": own}
        sequences.append(sequence)
        parts.append(part)
    asked = {"kind": KINDS[type(encoding)], **asdict(encoding)}
    body = {"sequences": parts, "encoding": asked, "temperature": 1.5, "vocabulary_size": 290}
    return LogitsRequest(tuple(sequences), encoding, temperature=1.5, vocabulary_size=290), body


def compare(rows: pa.Table, payload: Payload) -> None:
    match payload:
        case DenseLogits(logits):
            same(rows["logits"], logits)
        case HiddenStates(hidden):
            same(rows["hidden"], hidden)
        case TopKLogits() | CandidateLogits():
            same(rows["logits"], payload.logits)
            same(rows["token_ids"], payload.token_ids.expand(payload.logits.shape))
            for name in STATISTICS:
                same(rows[name], getattr(payload, name))
        case SampledCounts():
            lengths = payload.offsets.diff().tolist()
            for name in ("token_ids", "counts"):
                assert [len(row) for row in rows[name].to_pylist()] == lengths
                same(rows[name], getattr(payload, name))
            same(rows["entropy"], payload.entropy)


def same(column: pa.ChunkedArray, tensor: torch.Tensor) -> None:
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks])
    expected = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    assert column.null_count == 0
    values = column.to_numpy()
    assert values.dtype == expected.numpy().dtype
    assert values.tobytes() == expected.numpy().tobytes()


async def test_the_schema_says_what_holds_for_all_rows(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(fixture_vocabulary_size=16) as service, http_to(service) as http:
        asked = {"sequences": [{"token_ids": [1]}], "encoding": {"kind": "sampled", "seed": 4}, "temperature": 2}
        schema = (await stream(http, asked)).schema
        found = {name.decode(): value.decode() for name, value in schema.metadata.items()}
        description = service.lifecycle.teacher.description
        assert {
            "fingerprint": description.fingerprint,
            "encoding": "sampled",
            "draws": "50",
            "seed": "4",
            "temperature": "2.0",
            "vocabulary_size": "16",
            "sequences": "1",
            "cache_hits": "0",
        }.items() <= found.items()


async def test_an_answer_to_nothing_is_a_stream_of_no_rows(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        for kind in ({"kind": "dense"}, {"kind": "top_k", "k": 2}, {"kind": "sampled"}):
            table = (await stream(http, {"sequences": [], "encoding": kind})).read_all()
            assert table.num_rows == 0
            assert table.column_names[:2] == ["sequence", "position"]


async def test_batches_are_bounded_and_small_answers_share_one(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(fixture_vocabulary_size=1000) as service, http_to(service) as http:
        ids = [index % 200 for index in range(2000)]
        large = await stream(http, {"sequences": [{"token_ids": ids, "positions": "all"}]})
        batches = list(large)
        assert len(batches) > 5
        assert max(batch.nbytes for batch in batches) < 2 * 2**20
        best = np.concatenate([batch["logits"].flatten().to_numpy().reshape(-1, 1000).argmax(1) for batch in batches])
        assert best.tolist() == [*ids[1:], ids[-1]]
        small = await stream(http, {"sequences": [{"token_ids": [1]}] * 500, "encoding": {"kind": "top_k", "k": 2}})
        assert len(list(small)) == 1


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        (f"{ARROW}", ARROW),
        (f"{ARROW}, */*", ARROW),
        (f"{ARROW}, */*;q=0.5", ARROW),
        (f"application/json;q=0.5, {ARROW};q=0.4", "application/json"),
        (f"application/json;q=0.4, {ARROW};q=0.5", ARROW),
        ("application/json;q=0, */*", ARROW),
        (f"text/html, {ARROW.upper()};Q=0.1", ARROW),
        ("text/html", PROBLEM),
        (f"{ARROW};q=0", PROBLEM),
        ("nonsense", PROBLEM),
    ],
)
async def test_accept_chooses_the_form(serve_teacher: ServeTeacher, accept: str | None, chosen: str) -> None:
    async with serve_teacher(fixture_vocabulary_size=8) as service, http_to(service) as http:
        del http.headers["accept"]
        headers: dict[str, Any] = {} if accept is None else {"accept": accept}
        response = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]}, headers=headers)
        assert response.headers["content-type"] == chosen
        assert response.status_code == (406 if chosen == PROBLEM else 200)
