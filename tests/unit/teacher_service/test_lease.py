"""A lease that was given back is let go, whether or not Redis hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis

from teacher_service.lease import Leases
from teacher_service.metrics import Metrics
from teacher_service.redis_link import RedisLink

SECONDS = 0.03
KEY = b"key"


class AwayLink(RedisLink):
    """A Redis that is away; notes what it was to be told."""

    def __init__(self) -> None:
        super().__init__("redis://127.0.0.1:1/0", Metrics(), timeout_seconds=0.01)
        self.heard: list[str] = []
        self.renewed = asyncio.Event()

    async def exchange(self, what: str, call: Callable[[Redis], Awaitable[Any]], *, num_bytes: int = 0) -> None:
        del call, num_bytes
        self.heard.append(what)
        if what == "renew":
            self.renewed.set()


async def test_what_was_given_back_while_redis_was_away_is_renewed_no_more() -> None:
    link = AwayLink()
    leases = Leases(link, Metrics(), seconds=SECONDS)
    redis = Redis()
    assert await leases.may_compute(redis, KEY, True, 30)
    async with asyncio.timeout(10):
        await link.renewed.wait()
    leases.give_back([KEY])
    await asyncio.sleep(2 * SECONDS)
    heard = len(link.heard)
    await asyncio.sleep(3 * SECONDS)
    assert "give_back" in link.heard
    assert link.heard[heard:] == []
    await leases.close()
    await link.close()
    await redis.aclose()
