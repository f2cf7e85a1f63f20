"""Redis killed, frozen, full, read-only, holding garbage or another's answers, while 64 clients ask.

No answer is wrong, no request lost; the service says what it has seen, and uses its cache again by itself.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.torture.faults import nonsense_on, poison, swap
from tests.torture.load import Load, load_on
from tests.torture.mix import scaled
from tests.torture.reference import Reference
from tests.torture.service_process import RedisProcess, ServiceProcess, redis_process, serving

pytestmark = pytest.mark.long

# How long the clients ask while the fault lasts.
SECONDS = 15

RECOVERY_SECONDS = 45.0


@dataclass
class Struck:
    """A service under load, and its Redis."""

    service: ServiceProcess
    redis: RedisProcess
    load: Load

    async def metric(self, name: str, **labels: str) -> float:
        return await asyncio.to_thread(self.service.metric, name, **labels)

    async def lookups(self, result: str) -> float:
        return await self.metric("teacher_cache_requests_total", result=result)

    async def writes(self, result: str) -> float:
        return await self.metric("teacher_cache_writes_total", result=result)

    async def until(self, name: str, least: float, seconds: float = RECOVERY_SECONDS, **labels: str) -> None:
        """Wait until a metric has reached a value."""
        async with asyncio.timeout(seconds):
            while await self.metric(name, **labels) < least:  # noqa: ASYNC110 - a number in another process
                await asyncio.sleep(0.05)

    async def has_cache_again(self) -> None:
        """See that the cache is used and filled again without anybody's help."""
        hits, stored = await self.lookups("hit"), await self.writes("stored")
        await self.until("teacher_cache_requests_total", hits + 30, result="hit")
        await self.until("teacher_cache_writes_total", stored + 5, result="stored")
        assert await self.metric("teacher_cache_paused") == 0
        assert await self.metric("teacher_cache_refuses_writes") == 0


@pytest.fixture(scope="module")
def place(
    reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServiceProcess, RedisProcess]]:
    """One service and its Redis for all that is done to them: each fault finds what the one before has left."""
    folder = tmp_path_factory.mktemp("struck")
    # A busy machine's 20 ms are no fault of Redis.
    flags = ("--dtype", "float32", "--cache-timeout-seconds", "0.2")
    with (
        redis_process(folder / "redis") as redis,
        serving(folder / "service", reference.folder, *flags, redis_url=redis.url) as service,
    ):
        yield service, redis


@pytest.fixture
async def struck(place: tuple[ServiceProcess, RedisProcess], reference: Reference) -> AsyncIterator[Struck]:
    """A service under load that uses its cache; at the end, every answer was right and none was lost."""
    service, redis = place
    async with load_on(service.grpc, reference, http=service.http) as load:
        one = Struck(service, redis, load)
        await one.until("teacher_cache_writes_total", await one.writes("stored") + 20, result="stored")
        await one.until("teacher_cache_requests_total", await one.lookups("hit") + 20, result="hit")
        assert load.in_flight > 0
        yield one
    load.check()
    assert service.metric("teacher_requests_total", code="INTERNAL") == 0
    await service.becomes_empty()
    redis.hears_of_no_lease()


async def test_redis_killed_and_restarted(struck: Struck) -> None:
    in_flight, errors = struck.load.in_flight, await struck.lookups("error")
    struck.redis.signal(signal.SIGKILL)
    assert in_flight > 0
    await struck.until("teacher_cache_requests_total", errors + 10, result="error")
    await struck.until("teacher_cache_paused", 1)
    await go_on(struck.load)
    struck.redis.start()
    await struck.has_cache_again()


async def test_redis_killed_again_and_again(struck: Struck) -> None:
    for _ in range(scaled(8, 2)):
        struck.redis.signal(signal.SIGKILL)
        await struck.until("teacher_cache_paused", 1)
        struck.redis.start()
        await struck.has_cache_again()


async def test_redis_frozen(struck: Struck) -> None:
    errors = await struck.lookups("error")
    struck.redis.signal(signal.SIGSTOP)
    assert struck.load.in_flight > 0
    await struck.until("teacher_cache_requests_total", errors + 10, result="error")
    await struck.until("teacher_cache_paused", 1)
    await go_on(struck.load)
    struck.redis.signal(signal.SIGCONT)
    await struck.has_cache_again()


async def test_redis_full(struck: Struck) -> None:
    await refuse_writes(struck, maxmemory="1mb", maxmemory_policy="noeviction")
    struck.redis.client.config_set("maxmemory", "0")
    await struck.has_cache_again()


async def test_redis_read_only(struck: Struck) -> None:
    hits = await struck.lookups("hit")
    refused = await struck.writes("refused")
    # A replica of nobody who answers: it serves what it has, and takes nothing.
    struck.redis.client.replicaof("127.0.0.1", 1)
    await struck.until("teacher_cache_writes_total", refused + 10, result="refused")
    await go_on(struck.load)
    assert await struck.lookups("hit") > hits
    struck.redis.client.replicaof("NO", "ONE")
    await struck.has_cache_again()


OTHER_ANSWERS = (b"+OK\r\n", b"*0\r\n", b":7\r\n", b"$-1\r\n", b"*1\r\n+x\r\n", b"+OK\r\n" * 50, b"-WHAT now\r\n")


@pytest.mark.parametrize("answers", [(random.Random(1).randbytes(500),), OTHER_ANSWERS], ids=["noise", "another_kind"])
async def test_something_else_answers_in_its_place(struck: Struck, answers: tuple[bytes, ...]) -> None:
    """Noise, or well-formed answers of another kind or length than the question's."""
    for number in range(min(scaled(len(answers), 2), len(answers))):
        struck.redis.signal(signal.SIGKILL)
        async with nonsense_on(struck.redis.port, [*answers[number:], *answers[:number]]) as heard:
            async with asyncio.timeout(RECOVERY_SECONDS):
                while not heard:  # noqa: ASYNC110 - a state in another process
                    await asyncio.sleep(0.05)
            await struck.load.until_answered(20)
        struck.redis.start()
        await struck.has_cache_again()


async def refuse_writes(struck: Struck, **config: str) -> None:
    refused = await struck.writes("refused")
    assert struck.load.in_flight > 0
    for name, value in config.items():
        struck.redis.client.config_set(name.replace("_", "-"), value)
    await struck.until("teacher_cache_writes_total", refused + 10, result="refused")
    hits = await struck.lookups("hit")
    await go_on(struck.load)
    assert await struck.lookups("hit") > hits, "what it holds is of use all the same"


@pytest.mark.parametrize("damage", [lambda redis: poison(redis, random.Random(1)), swap], ids=["poisoned", "swapped"])
async def test_redis_holds_what_is_no_answer(struck: Struck, damage: Callable[[RedisProcess], int]) -> None:
    seconds, corrupt = scaled(SECONDS, 2), await struck.lookups("corrupt")
    deadline = asyncio.get_running_loop().time() + seconds
    damaged = 0
    while asyncio.get_running_loop().time() < deadline or damaged < 100:
        assert struck.load.in_flight > 0
        damaged += await asyncio.to_thread(damage, struck.redis)
        await struck.load.until_answered(100)
    assert await struck.lookups("corrupt") > corrupt + 20
    await struck.has_cache_again()


async def go_on(load: Load) -> None:
    """Let the clients ask for a while, and see that they are answered."""
    answered = load.answered
    await asyncio.sleep(scaled(SECONDS, 1.5))
    assert load.answered > answered + 20
