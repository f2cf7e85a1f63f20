"""What hidden states are rebuilt with: fetched once, and never a wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.encodings import ValueType
from stillhouse.errors import (
    CodecError,
    EncodingNotOfferedError,
    FingerprintMismatchError,
    InvalidRequestError,
    RequestTooLongError,
    StillhouseError,
    StreamError,
    TeacherUnavailableError,
)
from stillhouse.payloads import OutputHead
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from tests.integration.client.table_teacher import HEAD, OFFERS_HIDDEN, TableServicer, fail

FetchHead = Callable[..., OutputHead]
Parts = list[pb.GetOutputHeadResponse]


@pytest.fixture
def servicer() -> TableServicer:
    return TableServicer(OFFERS_HIDDEN)


@pytest.fixture(params=["sync over gRPC", "asyncio over gRPC", "sync over HTTP", "asyncio over HTTP"])
def fetch(request: pytest.FixtureRequest, address: str, http_address: str) -> FetchHead:
    kind, _, way = request.param.partition(" over ")
    address = address if way == "gRPC" else http_address

    def fetch_sync(value_type: ValueType | None = None, **options: Any) -> OutputHead:
        with TeacherClient(address, **options) as client:
            return client.output_head(value_type)

    def fetch_asyncio(value_type: ValueType | None = None, **options: Any) -> OutputHead:
        async def run() -> OutputHead:
            async with AsyncTeacherClient(address, **options) as client:
                return await client.output_head(value_type)

        return asyncio.run(run())

    return fetch_sync if kind == "sync" else fetch_asyncio


def test_it_arrives_as_the_teacher_has_it(fetch: FetchHead) -> None:
    head = fetch()
    assert head.bias is not None
    assert HEAD.bias is not None
    assert torch.equal(head.weight, HEAD.weight)
    assert torch.equal(head.bias, HEAD.bias)
    assert torch.equal(fetch("bfloat16").weight, HEAD.weight.bfloat16())


def test_threads_that_ask_together_fetch_it_once(servicer: TableServicer, address: str) -> None:
    with TeacherClient(address) as client, ThreadPoolExecutor(8) as pool:
        heads = list(pool.map(lambda _: client.output_head(), range(16)))
        client.output_head("bfloat16")
    assert all(head is heads[0] for head in heads)
    assert servicer.calls == ["GetTeacher", "GetOutputHead", "GetOutputHead"]


async def test_tasks_that_ask_together_fetch_it_once(servicer: TableServicer, address: str) -> None:
    async with AsyncTeacherClient(address) as client:
        heads = await asyncio.gather(*(client.output_head() for _ in range(16)))
    assert all(head is heads[0] for head in heads)
    assert servicer.calls == ["GetTeacher", "GetOutputHead"]


def test_one_larger_than_the_bound_is_not_asked_for(fetch: FetchHead, servicer: TableServicer) -> None:
    with pytest.raises(RequestTooLongError, match="max_head_bytes of 700"):
        fetch(max_head_bytes=700)
    assert servicer.calls == ["GetTeacher"]


def test_a_teacher_without_one_and_a_value_type_that_it_has_not_are_not_asked(
    fetch: FetchHead, servicer: TableServicer
) -> None:
    with pytest.raises(InvalidRequestError, match="float16"):
        fetch("float16")
    servicer.description = replace(OFFERS_HIDDEN, hidden_size=0)
    with pytest.raises(EncodingNotOfferedError):
        fetch()
    assert "GetOutputHead" not in servicer.calls


def flip(parts: Parts) -> Parts:
    data = bytearray(parts[1].data)
    data[7] ^= 16
    return [parts[0], pb.GetOutputHeadResponse(offset=1000, data=bytes(data), fingerprint=parts[0].fingerprint)]


def renamed(parts: Parts) -> Parts:
    for part in parts:
        part.fingerprint = "bb" * 16
    return parts


def longer(parts: Parts) -> Parts:
    parts[0].total_bytes = 2**40
    return parts


@pytest.mark.parametrize(
    ("alter", "error"),
    [
        (flip, CodecError),
        (renamed, FingerprintMismatchError),
        (longer, StreamError),
        (lambda parts: parts[:1], StreamError),
        (lambda parts: parts[1:], StreamError),
        (lambda parts: [*parts, parts[-1]], StreamError),
        (lambda _: [], StreamError),
    ],
    ids=["flipped", "another teacher's", "too long", "cut off", "begun late", "twice", "empty"],
)
def test_a_damaged_one_is_refused(
    fetch: FetchHead, servicer: TableServicer, alter: Callable[[Parts], Parts], error: type[StillhouseError]
) -> None:
    servicer.alter_head = alter
    with pytest.raises(error):
        fetch("float32")


def test_one_that_came_damaged_is_fetched_again(fetch: FetchHead, servicer: TableServicer) -> None:
    def damage_once(parts: Parts) -> Parts:
        servicer.alter_head = list
        return flip(parts)

    servicer.alter_head = damage_once
    servicer.faults = [lambda _: None, fail(TeacherUnavailableError("loading"))]
    assert torch.equal(fetch("float32").weight, HEAD.weight)
    assert servicer.calls == ["GetTeacher"] + ["GetOutputHead"] * 3
