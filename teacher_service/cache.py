"""What the teacher remembers: keys to payload bytes in Redis, which may forget, be slow, be full, or be gone.

A lookup that fails is a miss, and a write that fails is counted. What a value is stands in `stillhouse.cached_values`.
Knows nothing of requests, and nothing of what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from stillhouse.cached_values import cached_value, payload_in
from stillhouse.runs import runs_within
from teacher_service.circuit_breaker import CircuitBreaker
from teacher_service.joining import Joined
from teacher_service.lease import Leases
from teacher_service.metrics import Metrics
from teacher_service.redis_link import RedisLink, reason_of

# Bytes asked for or sent in one round trip: bounds what a lookup holds beside what it gives.
_GROUP_BYTES = 32 * 2**20

# While one answer is read, Redis makes the next; more at once would only be smaller.
_MAX_LOOK_UPS = 2

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of the wish to compute: a value that is there by now, or else whether to compute it here."""

    value: bytes | memoryview | None
    may_compute: bool


class AnswerCache:
    """Payload bytes in Redis, one value per key; for one event loop."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        timeout_seconds: float,
        max_value_bytes: int,
        ttl_seconds: int,
        lease_seconds: float = 0.0,
    ) -> None:
        """Name a Redis; nothing is sent yet.

        `ttl_seconds` 0 keeps values as long as there is room; `lease_seconds` 0 is for a Redis that no other replica
        uses.

        Raises:
            ConfigurationError: a URL that is none of Redis.
        """
        self._link = RedisLink(url, metrics, timeout_seconds=timeout_seconds)
        self._look_ups = Joined(self._get, max_bytes=_GROUP_BYTES, max_trips=_MAX_LOOK_UPS)
        self._leases = Leases(self._link, metrics, seconds=lease_seconds) if lease_seconds else None
        self._metrics = metrics
        self.max_value_bytes = max_value_bytes
        self._ttl_seconds = ttl_seconds or None
        self._writes = CircuitBreaker()
        self._refusal: str | None = None

    @property
    def state(self) -> str:
        """`on`, or `paused` (Redis is left alone) or `refusing writes` (it only reads), each with the reason."""
        if self._link.pause_reason is not None:
            return f"paused: {self._link.pause_reason}"
        return "on" if self._refusal is None else f"refusing writes: {self._refusal}"

    @property
    def lease_seconds(self) -> float:
        """How long a lease lasts; 0 where there are none."""
        return 0.0 if self._leases is None else self._leases.seconds

    async def get_many(self, keys: SequenceOf[bytes], sizes: SequenceOf[int]) -> list[bytes | memoryview | None] | None:
        """Look keys up, whose values have about these sizes in bytes.

        Returns:
            A value for each, `cached_values.FOREIGN` in place of one that is another key's; None in place of all when
            Redis failed.
        """
        values: list[bytes | memoryview | None] = []
        for group in runs_within(sizes, _GROUP_BYTES):
            found = await self._look_ups.ask(keys[group], sum(sizes[group]))
            if found is None:
                return None
            values += found
        return values

    async def claim(self, keys: SequenceOf[bytes], sizes: SequenceOf[int]) -> list[Claim] | None:
        """Ask to compute the values of these keys, unless they are there by now or another replica computes them.

        Whoever may compute a key sets it, or gives the claim up. None when Redis failed: nothing is claimed then.
        """
        claims: list[Claim] = []
        for group in runs_within(sizes, _GROUP_BYTES):
            found = await self._link.exchange("claim", partial(self._claim, keys[group]), num_bytes=sum(sizes[group]))
            if found is None:
                self.give_up(keys)
                return None
            claims += found
        return claims

    def give_up(self, keys: SequenceOf[bytes]) -> None:
        """Let others compute what was claimed and not set."""
        if self._leases is not None:
            self._leases.give_back(keys)

    async def set_many(self, items: SequenceOf[tuple[bytes, bytes | memoryview]]) -> None:
        """Remember values under keys, those of a size that Redis should hold, and give their claims back."""
        kept = [(key, value) for key, value in items if len(value) <= self.max_value_bytes]
        count = self._metrics.cache_writes.labels
        count("too_large").inc(len(items) - len(kept))
        sizes = [len(value) for _, value in kept]
        for group in runs_within(sizes, _GROUP_BYTES):
            if not self._writes.allows_call():
                count("refused").inc(len(kept[group]))
                continue
            results = await self._link.exchange("set", partial(self._set, kept[group]), num_bytes=sum(sizes[group]))
            if results is None:
                count("error").inc(len(kept[group]))
                continue
            refused = [result for result in results[: len(kept[group])] if isinstance(result, RedisError)]
            count("stored").inc(len(kept[group]) - len(refused))
            count("refused").inc(len(refused))
            self._note_refusal(refused[0] if refused else None)
        self.give_up([key for key, _ in items])

    async def ping(self) -> bool:
        """Return whether Redis answers in time; used to open the connection before the first request."""
        return await self._link.exchange("ping", _ping) is not None

    async def close(self) -> None:
        """Give up every claim and close the connections."""
        if self._leases is not None:
            await self._leases.close()
        await self._link.close()

    async def _get(self, keys: SequenceOf[bytes], num_bytes: int) -> list[bytes | memoryview | None] | None:
        return await self._link.exchange("get", partial(_get, keys), num_bytes=num_bytes)

    async def _claim(self, keys: SequenceOf[bytes], redis: Redis) -> list[Claim]:
        leases = self._leases if self._refusal is None else None
        pipeline = redis.pipeline(transaction=False)
        # In this order: whoever gives a lease back has set the value before, so that it is seen here.
        if leases is not None:
            leases.ask(pipeline, keys)
        pipeline.mget(keys)
        if leases is not None:
            leases.ask_ends(pipeline, keys)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        found = results[len(keys) if leases is not None else 0]
        if isinstance(found, RedisError):
            raise found
        values = [payload_in(key, value) for key, value in zip(keys, found, strict=True)]
        if leases is None:
            return [Claim(value, may_compute=True) for value in values]
        asked = zip(keys, values, results[: len(keys)], results[len(keys) + 1 :], strict=True)
        return [Claim(value, await leases.may_compute(redis, key, *answers)) for key, value, *answers in asked]

    async def _set(self, items: SequenceOf[tuple[bytes, bytes | memoryview]], redis: Redis) -> list[object]:
        pipeline = redis.pipeline(transaction=False)
        for key, value in items:
            pipeline.set(key, cached_value(key, value), ex=self._ttl_seconds)
        if self._leases is not None:
            self._leases.add_giving_back(pipeline, [key for key, _ in items])
        results: list[object] = await pipeline.execute(raise_on_error=False)
        return results

    def _note_refusal(self, error: RedisError | None) -> None:
        """Learn whether Redis takes writes; a full or read-only one still answers lookups."""
        if error is None:
            if self._refusal is not None:
                logger.info("cache_takes_writes_again")
            self._writes.succeeded()
            self._refusal = None
        else:
            reason = reason_of(error)
            if self._refusal != reason:
                logger.warning("cache_refuses_writes", reason=reason)
            self._writes.failed()
            self._refusal = reason
        self._metrics.cache_refuses_writes.set(error is not None)


async def _get(keys: SequenceOf[bytes], redis: Redis) -> list[bytes | memoryview | None]:
    # Typed for clients that decode their answers, which this one does not.
    values: Any = await redis.mget(keys)
    return [payload_in(key, value) for key, value in zip(keys, values, strict=True)]


async def _ping(redis: Redis) -> object:
    answer: Any = redis.ping()
    return await answer
