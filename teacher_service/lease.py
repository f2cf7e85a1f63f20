"""One computation per key among replicas: whoever holds a key's lease computes, the others wait for the value.

A lease is a key of its own in Redis, with an end: `SET NX PX` of a token that only this process knows, given back by
compare-and-delete, and renewed while it is held, so that a long computation is not done twice and one that died is
soon taken over. A lease only saves work: with none, or with two, the answers are the same. Knows nothing of values.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence as SequenceOf
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from teacher_service.metrics import Metrics
from teacher_service.redis_link import RedisLink

_PREFIX = b"lease:"
_TOKEN_BYTES = 16

# Keys named in one script: Lua's stack bounds it far above.
_MOST_KEYS = 1000

# Two renewals may fail before a lease ends.
_RENEWALS_IN_A_LEASE = 3

# `pcall`: a value of another type, which only a foreign hand can have put there, is nobody's lease.
_IF_OURS = "for _, key in ipairs(KEYS) do if redis.pcall('get', key) == ARGV[1] then redis.call({}) end end"
_GIVE_BACK = _IF_OURS.format("'del', key")
_RENEW = _IF_OURS.format("'pexpire', key, ARGV[2]")


class Leases:
    """The leases of this process; for one event loop."""

    def __init__(self, link: RedisLink, metrics: Metrics, *, seconds: float) -> None:
        self._link = link
        self._metrics = metrics
        self.seconds = seconds
        self._milliseconds = max(1, round(1000 * seconds))
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._held: set[bytes] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._giving_back: set[asyncio.Task[None]] = set()

    def ask(self, pipeline: Pipeline, keys: SequenceOf[bytes]) -> None:
        """Add a command for each key: its lease, where nobody holds it."""
        for key in keys:
            pipeline.set(_PREFIX + key, self._token, nx=True, px=self._milliseconds)

    def ask_ends(self, pipeline: Pipeline, keys: SequenceOf[bytes]) -> None:
        """Add a command for each key: when does its lease end?"""
        for key in keys:
            pipeline.pttl(_PREFIX + key)

    async def may_compute(self, redis: Redis, key: bytes, answer: Any, milliseconds_left: Any) -> bool:
        """Return whether to compute, from what `ask` and `ask_ends` were answered; if the lease is ours, it is held."""
        if answer is True:
            self._hold(key)
            return True
        if isinstance(answer, ResponseError) or isinstance(milliseconds_left, ResponseError):
            # A full or read-only Redis gives no leases.
            return True
        if milliseconds_left == -1:
            # A lease without an end is none of ours, and would be in the way for good.
            await redis.delete(_PREFIX + key)
            return True
        return False

    def add_giving_back(self, pipeline: Pipeline, keys: SequenceOf[bytes]) -> None:
        """Add a command that gives back those of these leases that are held."""
        _add_giving_back(pipeline, self._let_go(keys), self._token)

    def give_back(self, keys: SequenceOf[bytes]) -> None:
        """Give back those of these leases that are held, soon; where Redis is away they end by themselves."""
        held = self._let_go(keys)
        if held:
            task = asyncio.create_task(self._give_back(held))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    def _let_go(self, keys: SequenceOf[bytes]) -> list[bytes]:
        """Hold these no more, whether or not Redis hears of it: one that stayed would be renewed for ever."""
        held = [key for key in keys if key in self._held]
        self._held.difference_update(held)
        return held

    async def close(self) -> None:
        """Give everything back."""
        if self._renewing is not None:
            self._renewing.cancel()
        self.give_back(tuple(self._held))
        if self._giving_back:
            await asyncio.wait(self._giving_back)

    async def _give_back(self, keys: SequenceOf[bytes]) -> None:
        async def call(redis: Redis) -> object:
            pipeline = redis.pipeline(transaction=False)
            _add_giving_back(pipeline, keys, self._token)
            return await pipeline.execute(raise_on_error=False)

        await self._link.exchange("give_back", call)

    def _hold(self, key: bytes) -> None:
        self._held.add(key)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(), name="leases")

    async def _renew(self) -> None:
        """Renew what is held until nothing is."""
        while self._held:
            await asyncio.sleep(self.seconds / _RENEWALS_IN_A_LEASE)
            held = [_PREFIX + key for key in self._held]
            for start in range(0, len(held), _MOST_KEYS):
                names = held[start : start + _MOST_KEYS]

                async def call(redis: Redis, names: SequenceOf[bytes] = names) -> object:
                    renewed: Any = redis.eval(_RENEW, len(names), *names, self._token, self._milliseconds)
                    return await renewed

                await self._link.exchange("renew", call)


def _add_giving_back(pipeline: Pipeline, keys: SequenceOf[bytes], token: bytes) -> None:
    for start in range(0, len(keys), _MOST_KEYS):
        names = [_PREFIX + key for key in keys[start : start + _MOST_KEYS]]
        pipeline.eval(_GIVE_BACK, len(names), *names, token)
