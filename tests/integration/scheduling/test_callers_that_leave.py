"""Work whose caller has gone never reaches the model, wherever it was when the caller left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial

import grpc
import httpx
import pytest
import redis.asyncio as redis_asyncio

from stillhouse.fingerprint import cache_key
from stillhouse.request import LogitsRequest
from teacher_service.service import TeacherService
from tests.integration.cache.valkey_process import ValkeyProcess
from tests.integration.counting_backend import VOCABULARY_SIZE, CountingBackend
from tests.integration.raw_calls import ask, channel_to, compute, stream, value
from tests.waiting import until

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]


@pytest.fixture(params=[0, 2], ids=["one process", "two fronts"])
def serve_teacher(request: pytest.FixtureRequest, serve_teacher: ServeTeacher) -> ServeTeacher:
    """With and without front processes."""
    return partial(serve_teacher, front_processes=request.param)


async def code_of(call: grpc.aio.UnaryUnaryCall) -> str:  # type: ignore[type-arg]  # generic to its stubs alone
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call
    return (await call.code()).name


async def test_a_deadline_that_passes_in_the_queue(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend) as service, channel_to(service) as channel:
        first = compute(channel, ask((1,) * 10))
        await asyncio.to_thread(backend.started.wait, 10)
        late = [compute(channel, ask((2,) * length), timeout=0.3) for length in (20, 30)]
        assert [await code_of(call) for call in late] == ["DEADLINE_EXCEEDED"] * 2
        await until(lambda: value(service, "teacher_queue_tokens") == 10)
        backend.gate.set()
        await first
        await compute(channel, ask((3,) * 5))
    assert backend.batches == [[10], [5]]


async def test_a_cancelled_call_and_a_cancelled_stream_in_the_queue(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend) as service, channel_to(service) as channel:
        first = compute(channel, ask((1,) * 10))
        await asyncio.to_thread(backend.started.wait, 10)
        gone, gone_too, stays = (
            compute(channel, ask((2,) * 20)),
            stream(channel, ask((3,) * 30)),
            compute(channel, ask((4,) * 40)),
        )
        await until(lambda: value(service, "teacher_queue_tokens") == 100)
        gone.cancel()
        gone_too.cancel()
        await until(lambda: value(service, "teacher_queue_tokens") == 50)
        backend.gate.set()
        await asyncio.gather(first, stays)
    assert backend.batches == [[10], [40]]


async def test_an_http_caller_that_hangs_up_in_the_queue(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend) as service, channel_to(service) as channel, httpx.AsyncClient() as http:
        first = compute(channel, ask((1,) * 10))
        await asyncio.to_thread(backend.started.wait, 10)
        body = {"sequences": [{"token_ids": [2] * 20}], "encoding": {"kind": "dense"}}
        url = f"http://127.0.0.1:{service.http_port}/v1/logits"
        asked = asyncio.create_task(http.post(url, json=body, timeout=30))
        await until(lambda: value(service, "teacher_queue_tokens") == 30)
        asked.cancel()
        await until(lambda: value(service, "teacher_queue_tokens") == 10)
        backend.gate.set()
        await first
    assert backend.batches == [[10]]


async def test_one_of_two_who_wait_for_the_same_answer(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend) as service, channel_to(service) as channel:
        first = compute(channel, ask((1,) * 10))
        await asyncio.to_thread(backend.started.wait, 10)
        gone = compute(channel, ask((2,) * 20))
        await until(lambda: value(service, "teacher_queue_tokens") == 30)
        stays = compute(channel, ask((2,) * 20))
        await until(lambda: value(service, "teacher_joined_total") == 1)
        gone.cancel()
        backend.gate.set()
        await asyncio.gather(first, stays)
    assert backend.batches == [[10], [20]]


async def test_between_the_lookup_and_the_queue(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess) -> None:
    backend = CountingBackend()
    settings = {"cache_timeout_seconds": 20.0}
    async with serve_teacher(own_valkey.url, backend, **settings) as service, channel_to(service) as channel:
        own_valkey.freeze()
        gone = compute(channel, ask((1,) * 10))
        await until(lambda: value(service, "teacher_queue_tokens") == 10)
        gone.cancel()
        await until(lambda: value(service, "teacher_queue_tokens") == 0)
        own_valkey.thaw()
        await compute(channel, ask((2,) * 5))
    assert backend.batches == [[5]]


async def test_while_another_replica_holds_the_lease(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess) -> None:
    backend = CountingBackend()
    async with serve_teacher(own_valkey.url, backend) as service, channel_to(service) as channel:
        key = key_of(service, request := ask((1,) * 10))
        async with redis_asyncio.Redis.from_url(own_valkey.url) as redis:
            await redis.set(b"lease:" + key, b"another replica", px=60_000)
            call = compute(channel, request)
            await until(lambda: value(service, "teacher_cache_requests_total", result="miss") == 1)
            await asyncio.sleep(0.05)
            call.cancel()
            await until(lambda: value(service, "teacher_queue_tokens") == 0)
            await redis.delete(b"lease:" + key)
        await asyncio.sleep(0.3)  # longer than the longest pause between two polls
        await compute(channel, ask((2,) * 5))
    assert backend.batches == [[5]]


async def test_nothing_stays_counted_after_a_crowd_has_left(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend(seconds=0.01)
    async with serve_teacher(None, backend, max_batch_tokens=20) as service, channel_to(service) as channel:
        calls = [compute(channel, ask((n % 60 + 1,) * (n % 13 + 1)), timeout=0.02 * (n % 9 + 1)) for n in range(150)]
        codes = {await code_of(call) for call in calls}
        assert codes <= {"OK", "DEADLINE_EXCEEDED"}
        for gauge in ("queue_tokens", "queue_size", "held_bytes", "requests_in_flight"):
            await until(lambda gauge=gauge: value(service, f"teacher_{gauge}") == 0)  # type: ignore[misc]  # mypy cannot type it


def key_of(service: TeacherService, request: LogitsRequest) -> bytes:
    return cache_key(
        service.lifecycle.teacher.description.fingerprint,
        request.sequences[0],
        request.encoding,
        temperature=request.temperature,
        vocabulary_size=VOCABULARY_SIZE,
    )
