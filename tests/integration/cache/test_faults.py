"""Whatever happens to Redis: right answers, a state that says what is wrong, and a return by itself."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import redis.asyncio as redis_asyncio

from stillhouse.client import AsyncTeacherClient
from stillhouse.codec import encode_payload
from stillhouse.fixtures import FixtureTeacher
from stillhouse.request import CacheMode, LogitsRequest
from teacher_service.service import TeacherService
from tests.integration.cache.valkey_process import ValkeyProcess
from tests.integration.counting_backend import VOCABULARY_SIZE, CountingBackend
from tests.integration.raw_calls import ask, value

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]
Strike = Callable[[ValkeyProcess, redis_asyncio.Redis], Awaitable[object]]


@dataclass(frozen=True)
class Fault:
    strike: Strike
    mend: Strike
    state: str
    gauge: str


async def freeze(valkey: ValkeyProcess, _: redis_asyncio.Redis) -> None:
    valkey.freeze()


async def thaw(valkey: ValkeyProcess, _: redis_asyncio.Redis) -> None:
    valkey.thaw()


async def kill(valkey: ValkeyProcess, _: redis_asyncio.Redis) -> None:
    await asyncio.to_thread(valkey.stop)


async def restart(valkey: ValkeyProcess, _: redis_asyncio.Redis) -> None:
    await asyncio.to_thread(valkey.start)


def config(**settings: object) -> Strike:
    async def strike(_: ValkeyProcess, redis: redis_asyncio.Redis) -> None:
        for name, setting in settings.items():
            await redis.config_set(name.replace("_", "-"), str(setting))

    return strike


async def follow(_: ValkeyProcess, redis: redis_asyncio.Redis) -> None:
    await redis.replicaof("127.0.0.1", "1")


async def lead(_: ValkeyProcess, redis: redis_asyncio.Redis) -> None:
    await redis.replicaof("NO", "ONE")


async def ask_a_password(_: ValkeyProcess, redis: redis_asyncio.Redis) -> None:
    await redis.config_set("requirepass", "another-password")
    await redis.client_kill_filter(_type="normal", skipme=True)


FAULTS = {
    "frozen": Fault(freeze, thaw, "paused: no answer in time", "paused"),
    "gone": Fault(kill, restart, "paused: it cannot be reached", "paused"),
    "full": Fault(config(maxmemory=1), config(maxmemory=0), "refusing writes: it is full", "refuses_writes"),
    "read-only": Fault(follow, lead, "refusing writes: it is a read-only replica", "refuses_writes"),
    "without replicas": Fault(
        config(min_replicas_to_write=1), config(min_replicas_to_write=0),
        "refusing writes: it answers NOREPLICAS", "refuses_writes",
    ),
    "with a password": Fault(
        ask_a_password, config(requirepass=""), "paused: it refuses the user or password", "paused"
    ),
}  # fmt: skip


def client_of(service: TeacherService) -> AsyncTeacherClient:
    return AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", max_attempts=1)


async def answers_are_right(client: AsyncTeacherClient, *requests: LogitsRequest) -> int:
    """Check answers against those of the fixture without a service; return the cache hits."""
    hits = 0
    for request in requests:
        answer = await client.answer(request)
        expected = FixtureTeacher(VOCABULARY_SIZE).answer(request).payloads
        assert [encode_payload(one) for one in answer.payloads] == [encode_payload(one) for one in expected]
        hits += answer.cache_hits
    return hits


async def cache_detail(service: TeacherService) -> str:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{service.http_port}/readyz")
        assert answer.status_code == 200
        return str(answer.json()["cache"])


async def keys_of(redis: redis_asyncio.Redis) -> list[bytes]:
    keys: Any = await redis.keys()  # typed for clients that decode their answers
    found: list[bytes] = keys
    return found


async def read(redis: redis_asyncio.Redis, key: bytes) -> bytes:
    value: Any = await redis.get(key)
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_fault_of_redis(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess, fault: Fault) -> None:
    numbers = iter(range(1, VOCABULARY_SIZE))
    async with (
        serve_teacher(own_valkey.url, CountingBackend()) as service,
        client_of(service) as client,
        # Opened before any fault, so that it can mend one.
        redis_asyncio.Redis.from_url(own_valkey.url, single_connection_client=True) as redis,
    ):
        await answers_are_right(client, known := ask((1, 2, 3)))
        assert await answers_are_right(client, known) == 1
        assert await cache_detail(service) == "on"

        await redis.ping()
        await fault.strike(own_valkey, redis)
        for _ in range(5):
            await answers_are_right(client, known, ask((next(numbers), 5)))
        assert await cache_detail(service) == fault.state
        assert value(service, f"teacher_cache_{fault.gauge}") == 1
        # It is left alone: nobody waits for it any more.
        started = time.monotonic()
        await answers_are_right(client, *[ask((next(numbers), 6)) for _ in range(5)])
        assert time.monotonic() - started < 1.0

        await fault.mend(own_valkey, redis)
        async with asyncio.timeout(20):
            while await cache_detail(service) != "on":
                await answers_are_right(client, ask((next(numbers), 7), cache_mode="refresh"))
                await asyncio.sleep(0.1)
        assert value(service, f"teacher_cache_{fault.gauge}") == 0
        await answers_are_right(client, again := ask((9, 8)))
        assert await answers_are_right(client, again) == 1


async def test_a_poisoned_cache_gives_no_wrong_answer(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess) -> None:
    lots = random.Random(7)
    requests = [ask((number, number + 1)) for number in range(1, 31)]
    async with (
        serve_teacher(own_valkey.url, CountingBackend()) as service,
        client_of(service) as client,
        redis_asyncio.Redis.from_url(own_valkey.url) as redis,
    ):
        await answers_are_right(client, *requests)
        values = {key: await read(redis, key) for key in await keys_of(redis)}
        assert len(values) == len(requests)
        others = list(values.values())
        for number, (key, own) in enumerate(values.items()):
            flipped = bytearray(own)
            flipped[lots.randrange(len(own))] ^= 1 << lots.randrange(8)
            poisons: list[bytes] = [os.urandom(len(own)), b"", own[: lots.randrange(len(own))], bytes(flipped)]
            # The last: a valid answer of the same shape to another question.
            poisons.append(others[number - 1])
            await redis.set(key, poisons[number % len(poisons)])
        assert await answers_are_right(client, *requests) == 0
        assert value(service, "teacher_cache_requests_total", result="corrupt") == len(requests)
        assert await answers_are_right(client, *requests) == len(requests)


async def test_a_value_of_another_type_is_overwritten(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess) -> None:
    request = ask((1, 2, 3))
    async with (
        serve_teacher(own_valkey.url, CountingBackend()) as service,
        client_of(service) as client,
        redis_asyncio.Redis.from_url(own_valkey.url) as redis,
    ):
        await answers_are_right(client, request)
        (key,) = await keys_of(redis)
        await redis.delete(key)
        await redis.rpush(key, "a", "list")
        assert await answers_are_right(client, request) == 0
        assert await answers_are_right(client, request) == 1


async def test_a_lease_without_an_end_keeps_nobody_waiting(
    serve_teacher: ServeTeacher, own_valkey: ValkeyProcess
) -> None:
    request = ask((1, 2, 3))
    async with (
        serve_teacher(own_valkey.url, CountingBackend(), cache_lease_seconds=600) as service,
        client_of(service) as client,
        redis_asyncio.Redis.from_url(own_valkey.url) as redis,
    ):
        await answers_are_right(client, request)
        (key,) = await keys_of(redis)
        await redis.delete(key)
        await redis.set(b"lease:" + key, "poison")
        async with asyncio.timeout(5):
            assert await answers_are_right(client, request) == 0
        assert await redis.exists(b"lease:" + key) == 0


async def test_a_value_lives_as_long_as_its_setting(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess) -> None:
    async with (
        serve_teacher(own_valkey.url, CountingBackend(), cache_ttl_seconds=100) as service,
        client_of(service) as client,
        redis_asyncio.Redis.from_url(own_valkey.url) as redis,
    ):
        await answers_are_right(client, ask((1, 2, 3)))
        (key,) = await keys_of(redis)
        assert 90 < await redis.ttl(key) <= 100


@pytest.mark.parametrize("mode", ["use", "refresh", "bypass"])
async def test_what_each_cache_mode_reads_and_writes(
    serve_teacher: ServeTeacher, own_valkey: ValkeyProcess, mode: CacheMode
) -> None:
    backend = CountingBackend()
    async with (
        serve_teacher(own_valkey.url, backend) as service,
        client_of(service) as client,
        redis_asyncio.Redis.from_url(own_valkey.url) as redis,
    ):
        await answers_are_right(client, ask((1, 2), cache_mode=mode))
        assert len(await redis.keys()) == (mode != "bypass")
        await answers_are_right(client, ask((1, 2)))
        (key,) = await keys_of(redis)
        before = backend.num_tokens
        await redis.set(key, b"old")
        assert await answers_are_right(client, ask((1, 2), cache_mode=mode)) == 0
        assert backend.num_tokens - before == 2
        assert (await redis.get(key) == b"old") is (mode == "bypass")
