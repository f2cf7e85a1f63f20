"""The service through its gRPC door, with a real Valkey behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import pytest
import redis.asyncio as redis_asyncio
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.client import AsyncTeacherClient
from stillhouse.codec import encode_payload
from stillhouse.encodings import Candidates, Dense, Hidden, TopK
from stillhouse.errors import (
    EncodingNotOfferedError,
    FingerprintMismatchError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLongError,
    TeacherUnavailableError,
    UnauthenticatedError,
)
from stillhouse.fixtures import LARGEST_HEAD, FixtureTeacher
from stillhouse.payloads import DenseLogits, TopKLogits
from stillhouse.request import All, CacheMode, LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service.backends import HiddenRows
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.embedded_redis import EmbeddedRedis
from teacher_service.service import TeacherService
from tests.integration.raw_calls import value
from tests.waiting import until

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

IDS = (3, 1, 4, 1, 5)


class GatedBackend(FixtureBackend):
    """Counts what it computes, and waits at a gate."""

    def __init__(self) -> None:
        super().__init__(64)
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.num_sequences = 0

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        self.started.set()
        assert self.gate.wait(20)
        self.num_sequences += len(sequences)
        return super().forward(sequences)


def ask(*ids: tuple[int, ...], cache_mode: CacheMode = "use", encoding: Dense | TopK | None = None) -> LogitsRequest:
    sequences = tuple(Sequence(one, (), All()) for one in ids)
    return LogitsRequest(sequences, encoding or Dense(), cache_mode=cache_mode)


def client_of(service: TeacherService, **settings: object) -> AsyncTeacherClient:
    return AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", **settings)  # type: ignore[arg-type]  # a test's shorthand


def channel_to(service: TeacherService) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}")


@pytest.fixture
async def empty_valkey(valkey: str) -> str:
    async with redis_asyncio.Redis.from_url(valkey) as redis:
        await redis.flushall()
    return valkey


async def test_the_fixture_answers_through_the_whole_service(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, client_of(service) as client:
        (payload,) = (await client.answer(ask(IDS))).payloads
        assert isinstance(payload, DenseLogits)
        assert payload.logits.argmax(dim=1).tolist() == [1, 4, 1, 5, 5]
        assert payload.logits.max() == 10.0
        description = await client.describe()
        assert (description.model, description.vocabulary_size) == ("fixture", 256)


async def test_every_encoding_equals_what_the_fixture_without_a_service_gives(serve_teacher: ServeTeacher) -> None:
    fixture = FixtureTeacher(256)
    packed = Sequence((3, 1, 4, 1, 5), (2, 3), All())
    async with serve_teacher() as service, client_of(service) as client:
        for encoding in (Dense(), Dense("bfloat16"), TopK(3), TopK(3, "float32"), Candidates((0, 4, 9))):
            request = LogitsRequest((packed, Sequence((9,))), encoding, temperature=2.0, vocabulary_size=200)
            served, expected = (await client.answer(request)).payloads, fixture.answer(request).payloads
            assert [encode_payload(one) for one in served] == [encode_payload(one) for one in expected]


async def test_a_second_ask_is_answered_by_the_cache(serve_teacher: ServeTeacher, empty_valkey: str) -> None:
    backend = GatedBackend()
    async with serve_teacher(empty_valkey, backend) as service, client_of(service) as client:
        first = await client.answer(ask(IDS, (2, 7)))
        second = await client.answer(ask((2, 7), IDS, (9,)))
        assert (first.cache_hits, second.cache_hits) == (0, 2)
        assert backend.num_sequences == 3
        assert torch.equal(second.payloads[1].logits, first.payloads[0].logits)  # type: ignore[union-attr]  # dense
        results = {r: value(service, "teacher_cache_requests_total", result=r) for r in ("hit", "miss")}
        assert results == {"hit": 2, "miss": 3}
        assert value(service, "teacher_forward_tokens_total") == len(IDS) + 2 + 1
        assert value(service, "teacher_cache_writes_total", result="stored") == 3


async def test_the_cache_survives_a_teacher_that_restarts(serve_teacher: ServeTeacher, empty_valkey: str) -> None:
    for expected_hits in (0, 1):
        backend = GatedBackend()
        async with serve_teacher(empty_valkey, backend) as service, client_of(service) as client:
            assert (await client.answer(ask(IDS))).cache_hits == expected_hits
        assert backend.num_sequences == 1 - expected_hits


async def test_another_form_of_answer_is_not_taken_for_this_one(serve_teacher: ServeTeacher, empty_valkey: str) -> None:
    async with serve_teacher(empty_valkey) as service, client_of(service) as client:
        await client.answer(ask(IDS))
        answer = await client.answer(ask(IDS, encoding=TopK(2)))
        assert answer.cache_hits == 0
        assert isinstance(answer.payloads[0], TopKLogits)


@pytest.mark.parametrize("kind", ["garbage", "truncated", "another shape"])
async def test_a_poisoned_value_is_a_miss_and_is_overwritten(
    serve_teacher: ServeTeacher, empty_valkey: str, kind: str
) -> None:
    async with serve_teacher(empty_valkey) as service, client_of(service) as client:
        right = (await client.answer(ask(IDS))).payloads[0]
        async with redis_asyncio.Redis.from_url(empty_valkey) as redis:
            (key,) = await redis.keys()
            good = await redis.get(key)
            assert isinstance(good, bytes)
            poison = {
                "garbage": b"\0" * len(good),
                "truncated": good[:-1],
                "another shape": encode_payload(DenseLogits(torch.zeros(1, 256))),
            }[kind]
            await redis.set(key, poison)
            answer = await client.answer(ask(IDS))
            assert answer.cache_hits == 0
            assert torch.equal(answer.payloads[0].logits, right.logits)  # type: ignore[union-attr]  # dense
            assert await redis.get(key) == good
        assert value(service, "teacher_cache_requests_total", result="corrupt") == 1


@pytest.mark.parametrize(("mode", "kept"), [("refresh", 1), ("bypass", 0)])
async def test_refresh_computes_anew_and_bypass_leaves_the_cache_alone(
    serve_teacher: ServeTeacher, empty_valkey: str, mode: CacheMode, kept: int
) -> None:
    backend = GatedBackend()
    async with serve_teacher(empty_valkey, backend) as service, client_of(service) as client:
        for _ in range(2):
            assert (await client.answer(ask(IDS, cache_mode=mode))).cache_hits == 0
        assert backend.num_sequences == 2
        assert (await client.answer(ask(IDS))).cache_hits == kept


async def test_without_redis_the_answers_stay_right(serve_teacher: ServeTeacher) -> None:
    with EmbeddedRedis(2**24) as embedded:
        url = embedded.url
        async with serve_teacher(url) as service, client_of(service) as client:
            right = (await client.answer(ask(IDS))).payloads[0]
            embedded.stop()
            for _ in range(5):
                answer = await client.answer(ask(IDS))
                assert answer.cache_hits == 0
                assert torch.equal(answer.payloads[0].logits, right.logits)  # type: ignore[union-attr]  # dense
            assert value(service, "teacher_cache_requests_total", result="error") == 5
            assert value(service, "teacher_cache_paused") == 1
            assert service.lifecycle.teacher.cache_state == "paused: it cannot be reached"


async def test_a_value_over_the_size_is_served_but_not_kept(serve_teacher: ServeTeacher, empty_valkey: str) -> None:
    async with serve_teacher(empty_valkey, cache_max_value_bytes=100) as service, client_of(service) as client:
        for _ in range(2):
            assert (await client.answer(ask(IDS))).cache_hits == 0
        assert value(service, "teacher_cache_writes_total", result="too_large") == 2


async def test_the_same_sequence_is_computed_once_at_a_time(serve_teacher: ServeTeacher) -> None:
    backend = GatedBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend) as service, client_of(service) as client:
        asked = [asyncio.create_task(client.answer(ask(IDS, IDS))) for _ in range(5)]
        await asyncio.to_thread(backend.started.wait, 10)
        await until(lambda: value(service, "teacher_joined_total") >= 4)
        backend.gate.set()
        answers = await asyncio.gather(*asked)
        assert backend.num_sequences == 1
        assert all(len(answer.payloads) == 2 for answer in answers)


async def test_overload_is_refused_with_a_pause_to_come_back_after(serve_teacher: ServeTeacher) -> None:
    backend = GatedBackend()
    backend.gate.clear()
    bounds = {"max_queue_sequences": 2, "max_sequences": 2}
    async with serve_teacher(None, backend, **bounds) as service, client_of(service, max_attempts=1) as client:
        held = asyncio.create_task(client.answer(ask((1,), (2,))))
        await asyncio.to_thread(backend.started.wait, 10)
        with pytest.raises(OverloadedError, match="holds 2 of at most 2 sequences") as refusal:
            await client.answer(ask((3,)))
        assert 0 < refusal.value.retry_after_seconds < 10
        assert value(service, "teacher_shed_total", reason="queue_sequences") == 1
        backend.gate.set()
        assert len((await held).payloads) == 2


async def test_what_no_teacher_could_serve_is_refused_by_field(serve_teacher: ServeTeacher) -> None:
    size = LARGEST_HEAD + 1
    async with serve_teacher(fixture_vocabulary_size=size) as service, channel_to(service) as channel:
        stub = pb_grpc.TeacherServiceStub(channel)
        for message, code, text in (
            (pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[size])], dense=pb.DenseEncoding()),
             "INVALID_ARGUMENT", f"token_ids must be below the teacher's vocabulary size {size}; got {size}"),
            (pb.LogitsRequest(sequences=[pb.Sequence()], dense=pb.DenseEncoding()),
             "INVALID_ARGUMENT", "sequences[0].token_ids must hold at least one id"),
            (pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[1])], temperature=0, dense=pb.DenseEncoding()),
             "INVALID_ARGUMENT", "temperature must be finite and above 0; got 0.0"),
            (pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[1])]), "INVALID_ARGUMENT", "encoding must be chosen"),
            (pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[1] * 9000)], dense=pb.DenseEncoding()),
             "OUT_OF_RANGE", "sequences[0].token_ids: 9000 is over this teacher's limit of 8192 tokens"),
            (pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[1])], hidden=pb.HiddenEncoding()),
             "UNIMPLEMENTED", "Hidden is not offered by this teacher; it offers Dense, TopK, Sampled, Candidates"),
            (pb.LogitsRequest(expected_fingerprint="other", dense=pb.DenseEncoding()),
             "FAILED_PRECONDITION", "expected_fingerprint is other, but this teacher's is"),
        ):  # fmt: skip
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.ComputeLogits(pb.ComputeLogitsRequest(request=message))
            assert refusal.value.code().name == code
            assert text in (refusal.value.details() or "")


async def test_the_client_raises_what_the_service_meant(serve_teacher: ServeTeacher) -> None:
    size = LARGEST_HEAD + 1
    async with serve_teacher(fixture_vocabulary_size=size) as service, client_of(service) as client:
        for request, error in (
            (ask((size,)), InvalidRequestError),
            (ask((1,) * 9000), RequestTooLongError),
            (LogitsRequest((Sequence(IDS),), Hidden()), EncodingNotOfferedError),
            (LogitsRequest((Sequence(IDS),), expected_fingerprint="0" * 32), FingerprintMismatchError),
        ):
            with pytest.raises(error):
                await client.answer(request)
        assert (await client.answer(LogitsRequest(()))).payloads == ()


async def test_an_answer_over_one_message_is_streamed(serve_teacher: ServeTeacher) -> None:
    limits = {"max_message_bytes": 2 * 2**20, "fixture_vocabulary_size": 4096}
    async with serve_teacher(**limits) as service, client_of(service) as client, channel_to(service) as channel:
        ids = tuple(range(1, 301))
        (payload,) = (await client.answer(ask(ids))).payloads
        assert isinstance(payload, DenseLogits)
        assert payload.logits.argmax(dim=1).tolist() == [*range(2, 301), 300]
        assert value(service, "teacher_requests_total", method="StreamLogits", code="OK") == 1
        stub = pb_grpc.TeacherServiceStub(channel)
        message = pb.LogitsRequest(
            sequences=[pb.Sequence(token_ids=ids, all=pb.AllPositions())], dense=pb.DenseEncoding()
        )
        with pytest.raises(grpc.aio.AioRpcError, match="ask with StreamLogits") as refusal:
            await stub.ComputeLogits(pb.ComputeLogitsRequest(request=message))
        assert refusal.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_an_answer_larger_than_the_service_holds_is_refused(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(max_answer_bytes=1000) as service, client_of(service) as client:
        with pytest.raises(RequestTooLongError, match="over this teacher's limit of 1000"):
            await client.answer(ask(IDS))


async def test_a_request_of_many_batches_is_answered_whole_and_in_order(
    serve_teacher: ServeTeacher, tiny_llama_folder: Path
) -> None:
    settings = {
        "backend": "transformers",
        "model": str(tiny_llama_folder),
        "max_batch_tokens": 64,
        "head_chunk_rows": 7,
    }
    sequences = [tuple(range(1, 2 + length)) for length in (30, 3, 70, 1, 16, 8, 64, 2)]
    async with serve_teacher(**settings) as service, client_of(service) as client:
        together = (await client.answer(ask(*sequences))).payloads
        for ids, payload in zip(sequences, together, strict=True):
            (alone,) = (await client.answer(ask(ids))).payloads
            torch.testing.assert_close(payload.logits, alone.logits, atol=1e-3, rtol=0)  # type: ignore[union-attr]  # dense
        description = await client.describe(include_tokens=True)
        assert len(description.tokens) == description.tokenizer_size == 300
        assert description.limits.max_sequence_tokens == 512


async def test_tokens_close_every_call_but_health(serve_teacher: ServeTeacher) -> None:
    token = "right-token-0123456789"
    async with serve_teacher(tokens=token, reflection=True) as service, channel_to(service) as channel:
        for method in pb.DESCRIPTOR.services_by_name["TeacherService"].methods:
            path = f"/{method.containing_service.full_name}/{method.name}"
            # Asked as unary calls, whatever they are: a refusal looks the same.
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await channel.unary_unary(path, bytes, bytes)(b"")
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED, method.name
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="stillhouse.teacher.v1.TeacherService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(UnauthenticatedError):
            async with client_of(service, token="wrong-token-0123456789") as stranger:
                await stranger.describe()
        async with client_of(service, token=token) as friend:
            assert len((await friend.answer(ask(IDS))).payloads) == 1


async def test_while_weights_load_calls_are_refused_as_unavailable(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, client_of(service, max_attempts=1) as client:
        service.lifecycle.phase = "loading"
        with pytest.raises(TeacherUnavailableError, match="loading its weights"):
            await client.describe()


async def test_draining_finishes_what_is_in_flight(serve_teacher: ServeTeacher) -> None:
    backend = GatedBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend) as service, client_of(service) as client:
        asked = asyncio.create_task(client.answer(ask(IDS)))
        await asyncio.to_thread(backend.started.wait, 10)
        closing = asyncio.create_task(service.close())
        await until(lambda: service.lifecycle.phase == "draining")
        backend.gate.set()
        assert len((await asked).payloads) == 1
        await closing
