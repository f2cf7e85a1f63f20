"""64 clients in a mix for a minute: no wrong answer, none lost, memory that stays, and a queue within its bound."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.torture.load import load_on, watching
from tests.torture.mix import scaled
from tests.torture.reference import Reference
from tests.torture.service_process import (
    BOUNDS,
    MAX_QUEUE_SEQUENCES,
    MAX_QUEUE_TOKENS,
    RedisProcess,
    ServiceProcess,
    serving,
)

SECONDS = 60
# Before memory is compared, each kind of request has come, and the allocators have what they need.
WARM_UP_SECONDS = 8


async def soak(
    service: ServiceProcess, reference: Reference, redis: RedisProcess, seconds: float, warm_up: float
) -> float:
    """Return the peak memory of the second half over that of the first."""
    async with load_on(service.grpc, reference, http=service.http) as load:
        await asyncio.sleep(warm_up)
        with watching(service) as samples:
            await asyncio.sleep(seconds)
    load.check()
    assert max(samples.queue_size) <= MAX_QUEUE_SEQUENCES
    assert max(samples.queue_tokens) <= MAX_QUEUE_TOKENS
    assert max(samples.requests_in_flight) > 8
    assert service.metric("teacher_shed_total") > 0, "the bound was never met"
    assert load.cache_hits > 0
    assert service.metric("teacher_queue_size") == 0
    assert service.metric("teacher_queue_tokens") == 0
    assert service.metric("teacher_requests_total", code="INTERNAL") == 0
    redis.hears_of_no_lease()
    return samples.growth()


@pytest.mark.long
async def test_a_mix_of_64_clients_for_a_minute(reference: Reference, redis: RedisProcess, tmp_path: Path) -> None:
    with serving(tmp_path, reference.folder, "--dtype", "float32", *BOUNDS, redis_url=redis.url) as service:
        growth = await soak(service, reference, redis, scaled(SECONDS, 6), scaled(WARM_UP_SECONDS, 4))
    assert growth <= 1.1


async def test_a_mix_of_64_clients_for_a_moment(
    reference: Reference, bounded: tuple[ServiceProcess, RedisProcess]
) -> None:
    await soak(bounded[0], reference, bounded[1], 2, 1)
