"""64 clients in a mix for a minute: no wrong answer, none lost, memory that stays, and a queue within its bound."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.torture.load import load_on, watching
from tests.torture.mix import scaled
from tests.torture.reference import Reference
from tests.torture.service_process import RedisProcess, serving

SECONDS = 60
# Before memory is compared, each kind of request has come, and the allocators have what they need.
WARM_UP_SECONDS = 8

# Fewer than 64 clients with up to 4 sequences each would put there, so that the bound is met.
MAX_QUEUE_SEQUENCES = 48
MAX_QUEUE_TOKENS = 2048
BOUNDS = (
    *("--max-queue-sequences", str(MAX_QUEUE_SEQUENCES), "--max-sequences", "16"),
    *("--max-queue-tokens", str(MAX_QUEUE_TOKENS), "--max-request-tokens", "1024"),
)


async def soak(folder: Path, reference: Reference, redis: RedisProcess, seconds: float, warm_up: float) -> float:
    """Return the peak memory of the second half over that of the first."""
    flags = ("--dtype", "float32", *BOUNDS)
    with serving(folder, reference.folder, *flags, redis_url=redis.url) as service:
        async with load_on(service.grpc, reference, http=service.http) as load:
            await asyncio.sleep(warm_up)
            with watching(service) as samples:
                await asyncio.sleep(seconds)
        load.check()
        assert max(samples.queue_size) <= MAX_QUEUE_SEQUENCES
        assert max(samples.queue_tokens) <= MAX_QUEUE_TOKENS
        assert max(samples.requests_in_flight) > 16
        assert service.metric("teacher_shed_total") > 0, "the bound was never met"
        assert load.cache_hits > 0
        assert service.metric("teacher_queue_size") == 0
        assert service.metric("teacher_queue_tokens") == 0
        assert service.metric("teacher_requests_total", code="INTERNAL") == 0
        redis.hears_of_no_lease()
        return samples.growth()


@pytest.mark.long
async def test_a_mix_of_64_clients_for_a_minute(reference: Reference, redis: RedisProcess, tmp_path: Path) -> None:
    growth = await soak(tmp_path, reference, redis, scaled(SECONDS, 6), WARM_UP_SECONDS)
    assert growth <= 1.1


async def test_a_mix_of_64_clients_for_a_moment(reference: Reference, redis: RedisProcess, tmp_path: Path) -> None:
    await soak(tmp_path, reference, redis, 2, 1)
