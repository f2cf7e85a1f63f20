"""`GetOutputHead`: the bytes that a caller rebuilds logits with, in chunks, shared while they are sent."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import grpc
import pytest
import torch

from stillhouse.chunks import CHUNK_BYTES
from stillhouse.fixtures import LARGEST_HEAD
from stillhouse.head_codec import decode_output_head
from stillhouse.payloads import OutputHead
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service import head_bytes
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.service import TeacherService

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

VOCABULARY_SIZE, HIDDEN_SIZE = 1500, 300
HEAD = OutputHead(
    torch.randn(VOCABULARY_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)),
    torch.arange(VOCABULARY_SIZE, dtype=torch.float32),
    scale=0.5,
    soft_cap=30.0,
)


class BackendWithHead(FixtureBackend):
    """The fixture with a head that it does not use."""

    def output_head(self) -> OutputHead:
        return HEAD


async def fetch(
    service: TeacherService, value_type: pb.ValueType.ValueType = pb.VALUE_TYPE_UNSPECIFIED, expected: str = ""
) -> list[pb.GetOutputHeadResponse]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        request = pb.GetOutputHeadRequest(value_type=value_type, expected_fingerprint=expected)
        return [part async for part in pb_grpc.TeacherServiceStub(channel).GetOutputHead(request)]


@pytest.mark.parametrize(
    ("value_type", "dtype"),
    [
        (pb.VALUE_TYPE_UNSPECIFIED, torch.float32),
        (pb.VALUE_TYPE_FLOAT32, torch.float32),
        (pb.VALUE_TYPE_BFLOAT16, torch.bfloat16),
    ],
)
async def test_the_head_arrives_whole_in_chunks(
    serve_teacher: ServeTeacher, value_type: pb.ValueType.ValueType, dtype: torch.dtype
) -> None:
    async with serve_teacher(None, BackendWithHead(VOCABULARY_SIZE)) as service:
        fingerprint = service.lifecycle.teacher.description.fingerprint
        parts = await fetch(service, value_type, fingerprint)
        data = b"".join(part.data for part in parts)
        starts = [part.offset for part in parts]
        assert starts == [sum(len(part.data) for part in parts[:index]) for index in range(len(parts))]
        assert all(part.total_bytes == len(data) and part.fingerprint == fingerprint for part in parts)
        assert max(len(part.data) for part in parts) <= CHUNK_BYTES
        head = decode_output_head(bytearray(data))
        assert torch.equal(head.weight, HEAD.weight.to(dtype))
        assert head.bias is not None
        assert HEAD.bias is not None
        assert torch.equal(head.bias, HEAD.bias.to(dtype))
        assert (head.scale, head.soft_cap) == (0.5, 30.0)


async def test_a_teacher_without_a_head_does_not_offer_it(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(fixture_vocabulary_size=LARGEST_HEAD + 1) as service:
        with pytest.raises(grpc.aio.AioRpcError, match="does not offer HIDDEN") as refusal:
            await fetch(service)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("value_type", "expected", "error"),
    [
        (pb.VALUE_TYPE_FLOAT16, "", "InvalidRequestError"),
        (99, "", "InvalidRequestError"),
        (pb.VALUE_TYPE_FLOAT32, "0" * 32, "FingerprintMismatchError"),
    ],
)
async def test_what_cannot_be_given_is_refused_by_name(
    serve_teacher: ServeTeacher, value_type: pb.ValueType.ValueType, expected: str, error: str
) -> None:
    async with serve_teacher(None, BackendWithHead(VOCABULARY_SIZE)) as service:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await fetch(service, value_type, expected)
        assert error in [value for _, value in cast("Any", refusal.value.trailing_metadata())]


async def test_callers_at_one_time_share_one_encoding_and_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    encodings = []

    def counted(_: OutputHead, value_type: str) -> list[bytes | memoryview]:
        encodings.append(value_type)
        return [b"head" * 10]

    monkeypatch.setattr(head_bytes, "encode_output_head", counted)
    shelf = head_bytes.HeadBytes(HEAD, "float16")
    together = await asyncio.gather(*(shelf.get(None) for _ in range(5)))
    assert len({id(one) for one in together}) == 1
    assert encodings == ["float32"]
    del together
    await asyncio.sleep(0)  # until the loop has let go of what `gather` gave
    gc.collect()
    assert (await shelf.get("float32")).num_bytes == 40
    assert encodings == ["float32", "float32"]
