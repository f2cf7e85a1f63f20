"""What the client asks, and what it hands out."""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.codec import encode_payload
from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import (
    ConfigurationError,
    EncodingNotOfferedError,
    InvalidRequestError,
    RequestTooLongError,
    TeacherError,
)
from stillhouse.payloads import DenseLogits, Payload, TopKLogits
from stillhouse.request import All, Explicit, From, Last, Limits, LogitsRequest, Sequence
from tests.asked import every_position
from tests.integration.client.table_teacher import (
    DESCRIPTION,
    LARGE,
    SMALL,
    TABLE,
    VOCABULARY_SIZE,
    Ask,
    TableServicer,
    about,
)


def test_an_answer_is_one_payload_for_each_sequence_in_order(ask: Ask, servicer: TableServicer) -> None:
    request = LogitsRequest(
        (Sequence((1, 2, 3)), Sequence((4, 5), (), All()), Sequence((6, 7, 8), (1, 2), From(1)),
         Sequence((9, 10, 11), (), Explicit((0, 2)))),
    )  # fmt: skip
    answer = ask(request)
    rows = [payload.logits for payload in answer.payloads if isinstance(payload, DenseLogits)]
    assert [row.tolist() for row in rows] == [TABLE[ids].tolist() for ids in ([3], [4, 5], [7, 8], [9, 11])]
    assert answer.fingerprint == DESCRIPTION.fingerprint
    assert (answer.queue_seconds, answer.compute_seconds, answer.encode_seconds, answer.cache_hits) == (1, 2, 3, 1)
    assert servicer.calls == ["GetTeacher", "ComputeLogits"]


@pytest.mark.parametrize("encoding", [Dense("bfloat16"), TopK(3), TopK(2, "float32"), Candidates((0, 7))], ids=repr)
def test_every_encoding_arrives_as_it_was_made(ask: Ask, encoding: Encoding) -> None:
    answer = ask(about((1, 2), encoding=encoding, temperature=2.0, vocabulary_size=40))
    sequence = every_position(2, first_token=1)
    expected = encode_logits([TABLE[[1, 2]]], encoding, sequence=sequence, temperature=2.0, vocabulary_size=40)
    assert encode_payload(answer.payloads[0]) == encode_payload(expected)


def test_a_large_answer_comes_as_a_stream_over_grpc(ask_grpc: Ask, servicer: TableServicer) -> None:
    answer = ask_grpc(LARGE)
    assert isinstance(answer.payloads[0], DenseLogits)
    assert answer.payloads[0].logits.equal(TABLE.repeat(120, 1))
    assert servicer.calls == ["GetTeacher", "StreamLogits"]


def test_a_large_answer_comes_in_one_body_over_http(ask_http: Ask, servicer: TableServicer) -> None:
    answer = ask_http(LARGE)
    assert isinstance(answer.payloads[0], DenseLogits)
    assert answer.payloads[0].logits.equal(TABLE.repeat(120, 1))
    assert servicer.calls == ["GetTeacher", "ComputeLogits"]


def test_an_empty_batch_asks_nothing_and_has_an_empty_answer(ask: Ask, servicer: TableServicer) -> None:
    assert ask(about()).payloads == ()
    assert servicer.calls == ["GetTeacher"]


def test_more_than_the_limits_is_asked_in_parts_and_answered_whole(ask: Ask, servicer: TableServicer) -> None:
    servicer.description = dataclasses.replace(DESCRIPTION, limits=Limits(max_sequences=3, max_request_tokens=7))
    rows = [(1, 2, 3), (4, 5, 6), (7,), (8,), (9,), (10, 11, 12, 13, 14), (15, 16)]
    answer = ask(about(*rows))
    assert [payload.logits.tolist() for payload in answer.payloads if isinstance(payload, DenseLogits)] == [
        TABLE[list(row)].tolist() for row in rows
    ]
    assert [[len(part.token_ids) for part in request.sequences] for request in servicer.requests] == [
        [3, 3, 1], [1, 1, 5], [2],
    ]  # fmt: skip
    assert (answer.queue_seconds, answer.compute_seconds, answer.cache_hits) == (1, 6, 3)


def test_the_teacher_is_described_once(servicer: TableServicer, address: str) -> None:
    with TeacherClient(address) as client:
        without = dataclasses.replace(DESCRIPTION, tokens=())
        assert client.describe() == client.describe() == without
        assert client.describe(include_tokens=True) == client.describe(include_tokens=True) == DESCRIPTION
    assert servicer.calls == ["GetTeacher"] * 2


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (about((VOCABULARY_SIZE,)), InvalidRequestError, r"sequences\[0\].token_ids must be below"),
        (about(*[(1,)] * 5, (1, 50)), InvalidRequestError, r"sequences\[5\].token_ids must be below"),
        (about((1,), encoding=TopK(51)), InvalidRequestError, "top_k.k"),
        (about((1,), vocabulary_size=51), InvalidRequestError, "vocabulary_size"),
        (about((1,), encoding=Hidden()), EncodingNotOfferedError, "Hidden"),
        (about((1,), encoding=Sampled()), EncodingNotOfferedError, "Sampled"),
        (about((1,) * 6001), RequestTooLongError, r"sequences\[0\].token_ids: 6001"),
    ],
)
def test_what_the_teacher_cannot_serve_is_refused_without_asking(
    ask: Ask, servicer: TableServicer, request_: LogitsRequest, error: type[TeacherError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(request_)
    assert servicer.calls == ["GetTeacher"]


def test_an_answer_that_would_fill_the_memory_is_refused_without_asking(ask: Ask, servicer: TableServicer) -> None:
    with pytest.raises(RequestTooLongError, match=r"1200048 bytes.*max_answer_bytes of 1000000"):
        ask(LARGE, max_answer_bytes=1_000_000)
    assert servicer.calls == ["GetTeacher"]


def test_the_token_goes_with_every_call_and_into_no_text(ask: Ask, servicer: TableServicer, address: str) -> None:
    ask(SMALL, token="s3cret")
    assert servicer.metadata["authorization"] == "Bearer s3cret"
    ask(LARGE)
    assert "authorization" not in servicer.metadata
    with TeacherClient(address, token="s3cret") as client:
        assert repr(client) == f"TeacherClient('{address}')"


@pytest.mark.parametrize(
    "ids",
    [
        [[1, 2, 3], [4]],
        [np.array([1, 2, 3], dtype=np.uint32), np.array([4])],
        [torch.tensor([1, 2, 3]), torch.tensor([4], dtype=torch.int32)],
        [np.array([1, 2, 3]).tolist(), [np.int64(4)]],
    ],
    ids=["lists", "arrays", "tensors", "numbers"],
)
def test_ids_may_be_lists_arrays_or_tensors(address: str, ids: Any) -> None:
    with TeacherClient(address) as client:
        payloads = client.logits(ids, encoding=TopK(2), positions=Last())
    assert [payload.token_ids.shape for payload in payloads if isinstance(payload, TopKLogits)] == [(1, 2), (1, 2)]


def test_a_tensor_is_a_batch_of_its_rows(address: str) -> None:
    batch = torch.tensor([[1, 2], [3, 4]])

    async def run() -> tuple[Payload, ...]:
        async with AsyncTeacherClient(address) as client:
            return await client.logits(batch)

    with TeacherClient(address) as client:
        answers = client.logits(batch), asyncio.run(run())
    for payloads in answers:
        assert [p.logits.tolist() for p in payloads if isinstance(p, DenseLogits)] == [
            TABLE[[1, 2]].tolist(), TABLE[[3, 4]].tolist(),
        ]  # fmt: skip


@pytest.mark.parametrize("ids", [torch.tensor([[1.5, 2.0]]), [["1"]], torch.tensor([[[1]]])], ids=str)
def test_what_is_no_row_of_integers_is_refused(address: str, ids: Any) -> None:
    with TeacherClient(address) as client, pytest.raises((InvalidRequestError, TypeError)):
        client.logits(ids)


def test_several_threads_may_share_a_client(address: str) -> None:
    with TeacherClient(address) as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda token: client.logits([[token]]), range(20)))
    for token, (payload,) in enumerate(answers):
        assert isinstance(payload, DenseLogits)
        assert payload.logits.equal(TABLE[[token]])


@pytest.mark.parametrize("address_", ["", "localhost", "ftp://host:8001", "host:"])
@pytest.mark.parametrize("kind", [TeacherClient, AsyncTeacherClient])
def test_an_address_that_would_be_misread_is_refused(address_: str, kind: type[TeacherClient]) -> None:
    with pytest.raises(ConfigurationError, match="address must be host:port"):
        kind(address_)


@pytest.mark.parametrize("option", ["timeout_seconds", "max_attempts", "max_answer_bytes", "max_message_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_every_bound_is_positive_and_finite(option: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=option):
        TeacherClient("host:1", **{option: value})  # type: ignore[arg-type]  # any of the bounds
