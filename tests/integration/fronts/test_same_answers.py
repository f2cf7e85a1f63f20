"""Whoever asks a front gets the bytes, the statuses and the words that one process gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from stillhouse.client import AsyncTeacherClient
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.messages import request_to_proto
from stillhouse.request import All, CacheMode, From, LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service.fronts import arena
from teacher_service.service import TeacherService
from tests.integration.counting_backend import CountingBackend
from tests.integration.raw_calls import ask, channel_to, compute, stream, until_empty, value
from tests.waiting import until

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

ENCODINGS: tuple[Encoding, ...] = (
    Dense("float32"), Dense("bfloat16"), Hidden("float32"), Hidden("bfloat16"), TopK(7), TopK(3, "float32"),
    Sampled(20, seed=3), Candidates((2, 3, 5)), Candidates((1,), "float16"), Candidates(),
)  # fmt: skip


@asynccontextmanager
async def both(serve_teacher: ServeTeacher, *arguments: Any, **settings: Any) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels to a service of one process, and to the like with fronts."""
    async with (
        serve_teacher(*arguments, **settings) as one,
        serve_teacher(*arguments, front_processes=2, **settings) as fronts,
        channel_to(one) as plain,
        channel_to(fronts) as through,
    ):
        yield [plain, through]


def sequences_for(encoding: Encoding) -> tuple[Sequence, ...]:
    if encoding == Candidates():
        return tuple(Sequence(ids, (), All(), tuple((1, 2) for _ in ids)) for ids in ((1, 2, 3), (4, 5)))
    return (Sequence((1, 2, 3), (), All()), Sequence((4, 5, 6, 7), (), From(2)), Sequence((1, 2, 3), (), All()))


async def test_the_bytes_of_every_encoding(serve_teacher: ServeTeacher, valkey: str, tiny_llama_folder: Path) -> None:
    model = {"backend": "transformers", "model": str(tiny_llama_folder), "device": "cpu", "mode": "deterministic"}
    async with both(serve_teacher, valkey, **model) as channels:
        for encoding in ENCODINGS:
            request = LogitsRequest(sequences_for(encoding), encoding, temperature=2.0)
            modes: tuple[CacheMode, ...] = ("bypass", "refresh", "use", "use")
            for mode in modes:
                asked = LogitsRequest(request.sequences, encoding, temperature=2.0, cache_mode=mode)
                one, other = [await compute(channel, asked) for channel in channels]
                assert list(one.payloads) == list(other.payloads), encoding
                assert (one.fingerprint, one.cache_hits) == (other.fingerprint, other.cache_hits), (encoding, mode)
        stubs = [pb_grpc.TeacherServiceStub(channel) for channel in channels]
        one_told, other_told = [await stub.GetTeacher(pb.GetTeacherRequest(include_tokens=True)) for stub in stubs]
        assert one_told == other_told
        for value_type in (pb.VALUE_TYPE_UNSPECIFIED, pb.VALUE_TYPE_FLOAT32, pb.VALUE_TYPE_BFLOAT16):
            wanted = pb.GetOutputHeadRequest(value_type=value_type)
            heads = [[part async for part in stub.GetOutputHead(wanted)] for stub in stubs]
            assert heads[0] == heads[1]


def encoded(**fields: Any) -> pb.LogitsRequest:
    return pb.LogitsRequest(**{"sequences": [pb.Sequence(token_ids=[1])], "dense": pb.DenseEncoding(), **fields})


REFUSED = {
    "no encoding": pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[1])]),
    "an id beyond the vocabulary": encoded(sequences=[pb.Sequence(token_ids=[10**6])]),
    "no token": encoded(sequences=[pb.Sequence()]),
    "a temperature": encoded(temperature=-1.0),
    "too many sequences": encoded(sequences=[pb.Sequence(token_ids=[1])] * 9),
    "too many tokens": encoded(sequences=[pb.Sequence(token_ids=[1] * 33)]),
    "another teacher": encoded(expected_fingerprint="f" * 32),
    "an encoding not offered": pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[1])], hidden=pb.HiddenEncoding()),
    "a cache mode": encoded(cache_mode=9),
    "another vocabulary": encoded(vocabulary_size=10**6),
    "an answer too large": encoded(sequences=[pb.Sequence(token_ids=[1] * 32, all=pb.AllPositions())] * 4),
}  # fmt: skip


async def test_the_statuses_of_what_is_refused(serve_teacher: ServeTeacher) -> None:
    bounds = {
        "max_sequences": 8,
        "max_sequence_tokens": 32,
        "max_answer_bytes": 1_000_000,
        "fixture_vocabulary_size": 30_000,
    }
    async with both(serve_teacher, **bounds) as channels:
        for name, message in REFUSED.items():
            statuses = [await status(channel, message) for channel in channels]
            assert statuses[0] == statuses[1], name
            assert statuses[0][0] is not grpc.StatusCode.OK, name


async def status(channel: grpc.aio.Channel, message: pb.LogitsRequest) -> tuple[Any, ...]:
    call = pb_grpc.TeacherServiceStub(channel).ComputeLogits(pb.ComputeLogitsRequest(request=message))
    code, details = await call.code(), await call.details()
    trailers = [pair for pair in await call.trailing_metadata() or () if pair[0] != "x-request-id"]
    return code, details, sorted(trailers)


class Faulty(CountingBackend):
    """A backend with a fault of its own."""

    def forward(self, sequences: Any) -> Any:
        del sequences
        raise RuntimeError("/a/folder/of/ours is broken")


async def test_the_status_of_a_fault(serve_teacher: ServeTeacher) -> None:
    async with both(serve_teacher, None, Faulty()) as channels:
        message = request_to_proto(ask((1, 2)))
        statuses = [await status(channel, message) for channel in channels]
        assert statuses[0] == statuses[1]
        assert statuses[0][0] is grpc.StatusCode.INTERNAL


async def test_the_status_of_a_full_queue_has_a_pause(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    bounds = {"max_queue_sequences": 2, "max_sequences": 2, "front_processes": 2}
    async with serve_teacher(None, backend, **bounds) as service, channel_to(service) as channel:
        waiting = [compute(channel, ask((one,))) for one in (1, 2)]
        await until(lambda: value(service, "teacher_queue_size") >= 2)
        code, details, trailers = await status(channel, request_to_proto(ask((3,))))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "sequences in the queue" in details
        assert dict(trailers)["stillhouse-error"] == "OverloadedError"
        assert int(dict(trailers)["grpc-retry-pushback-ms"]) > 0
        backend.gate.set()
        await asyncio.gather(*waiting)
        await service.metrics.refresh()
        assert value(service, "teacher_shed_total", reason="queue_sequences") == 1


@pytest.mark.parametrize("arena_bytes", [2**20, 2**26], ids=["more than is shared", "all of it is shared"])
async def test_large_answers_come_whole(
    serve_teacher: ServeTeacher, arena_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena, "ARENA_BYTES", arena_bytes)
    monkeypatch.setattr(arena.Arena.__init__, "__defaults__", (arena_bytes,))
    settings = {"fixture_vocabulary_size": 30_000, "front_processes": 1}
    async with serve_teacher(**settings) as service, channel_to(service) as channel:
        asked = [ask(*(tuple(range(10 * n, 10 * n + 16)) for n in range(start, start + 3))) for start in range(6)]

        async def all_of(request: LogitsRequest) -> bytes:
            return b"".join([part.chunk.data async for part in stream(channel, request)])

        got = await asyncio.gather(*map(all_of, asked))
        expected = [b"".join((await compute(channel, request)).payloads) for request in asked]
        assert list(map(len, got)) == [len(one) for one in expected]
        assert got == expected
        (front,) = service._doors.fronts._living.values()  # type: ignore[union-attr]  # it has fronts
        await until(lambda: not front._arena.taken_bytes)


async def test_a_client_never_learns_that_there_are_fronts(serve_teacher: ServeTeacher, valkey: str) -> None:
    async with serve_teacher(valkey, front_processes=2, fixture_vocabulary_size=1000) as service:
        async with AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", timeout_seconds=20) as client:
            requests = [ask(tuple(range(one, one + 5)), encoding=TopK(4)) for one in range(40)]
            first = await asyncio.gather(*map(client.answer, requests))
            again = await asyncio.gather(*map(client.answer, requests))
        assert [answer.cache_hits for answer in again] == [1] * 40
        assert len(first) == 40
        await until_empty(service)
        assert value(service, "teacher_cache_requests_total", result="hit") == 40
        assert value(service, "teacher_cache_requests_total", result="miss") == 40
        assert value(service, "teacher_requests_total", method="ComputeLogits", code="OK") == 80
        assert value(service, "teacher_response_bytes_total", encoding="TopK") > 0
