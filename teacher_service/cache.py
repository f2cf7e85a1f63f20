"""What the teacher remembers: keys to payload bytes in Redis, which may forget, be slow, be full, or be gone.

No fault of Redis ever reaches a caller: a lookup that fails is a miss, a write that fails is counted, and after
several failures the cache is left alone for a while. Knows nothing of requests, and nothing of what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as SequenceOf
from typing import Any, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from stillhouse.errors import ConfigurationError
from teacher_service.circuit_breaker import CircuitBreaker
from teacher_service.metrics import Metrics
from teacher_service.runs import runs_within

# A network or a Redis slower than this is no help: at 200 MB/s a 4 MB payload takes as long as the wait for it.
_LEAST_BYTES_PER_SECOND = 200e6

# Bytes asked for or sent in one round trip: bounds what a lookup holds beside what it gives.
_GROUP_BYTES = 32 * 2**20

_MAX_CONNECTIONS = 16

S = TypeVar("S")
T = TypeVar("T")

logger = structlog.get_logger(__name__)


class AnswerCache:
    """Payload bytes in Redis, one value per key; for one event loop."""

    def __init__(
        self, url: str, metrics: Metrics, *, timeout_seconds: float, max_value_bytes: int, ttl_seconds: int
    ) -> None:
        """Name a Redis; nothing is sent yet. `ttl_seconds` 0 keeps values as long as there is room.

        Raises:
            ConfigurationError: a URL that is none of Redis.
        """
        try:
            self._redis = Redis.from_url(
                url,
                socket_connect_timeout=timeout_seconds,
                socket_read_size=2**20,
                # One try: whoever waits here could be computing.
                retry=Retry(NoBackoff(), 0),
                # Nothing but the connection itself is negotiated: each exchange would cost a round trip.
                protocol=2,
                driver_info=None,
                max_connections=_MAX_CONNECTIONS,
            )
        except ValueError as error:
            # The URL may hold a password, so it is not repeated.
            raise ConfigurationError(f"redis_url (TEACHER_REDIS_URL) is no URL of Redis: {error}") from None
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._max_value_bytes = max_value_bytes
        self._ttl_seconds = ttl_seconds or None
        self._breaker = CircuitBreaker()
        self._connections = asyncio.Semaphore(_MAX_CONNECTIONS)

    @property
    def is_paused(self) -> bool:
        """Whether Redis has failed and is left alone."""
        return self._breaker.is_open

    async def get_many(self, keys: SequenceOf[bytes], sizes: SequenceOf[int]) -> list[bytes | None] | None:
        """Look keys up, whose values have about these sizes in bytes; None in place of the list when Redis failed."""
        values: list[bytes | None] = []
        for group in runs_within(sizes, _GROUP_BYTES):
            found = await self._guarded("get", self._get_group, keys[group], sizes[group])
            if found is None:
                return None
            values += found
        return values

    async def set_many(self, items: SequenceOf[tuple[bytes, bytes]]) -> None:
        """Remember values under keys, those of a size that Redis should hold."""
        kept = [(key, value) for key, value in items if len(value) <= self._max_value_bytes]
        self._metrics.cache_writes.labels("too_large").inc(len(items) - len(kept))
        sizes = [len(value) for _, value in kept]
        for group in runs_within(sizes, _GROUP_BYTES):
            results = await self._guarded("set", self._set_group, kept[group], sizes[group])
            stored = sum(result is True for result in results or ())
            self._metrics.cache_writes.labels("stored").inc(stored)
            self._metrics.cache_writes.labels("error").inc(len(kept[group]) - stored)

    async def ping(self) -> bool:
        """Return whether Redis answers in time; used to open the connection before the first request."""
        return await self._guarded("ping", lambda _: self._redis.ping(), (), ()) is not None

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _get_group(self, keys: SequenceOf[bytes]) -> list[bytes | None]:
        # Typed for clients that decode their answers, which this one does not.
        values: Any = await self._redis.mget(keys)
        found: list[bytes | None] = values
        return found

    async def _set_group(self, items: SequenceOf[tuple[bytes, bytes]]) -> list[object]:
        pipeline = self._redis.pipeline(transaction=False)
        for key, value in items:
            pipeline.set(key, value, ex=self._ttl_seconds)
        # A full or read-only Redis refuses each of them; that is no reason to leave lookups alone.
        results: list[object] = await pipeline.execute(raise_on_error=False)
        refused = next((result for result in results if isinstance(result, ResponseError)), None)
        if refused is not None:
            logger.warning("cache_refuses_writes", reason=str(refused))
        return results

    async def _guarded(
        self, what: str, call: Callable[[SequenceOf[S]], Awaitable[T]], arguments: SequenceOf[S], sizes: SequenceOf[int]
    ) -> T | None:
        """Make one round trip within its time; None when Redis is left alone or has failed."""
        if not self._breaker.allows_call():
            return None
        seconds = self._timeout_seconds + sum(sizes) / _LEAST_BYTES_PER_SECOND
        try:
            async with self._connections:
                result = await _within(call(arguments), seconds)
        except (RedisError, OSError, TimeoutError) as error:
            was_open = self._breaker.is_open
            self._breaker.failed()
            if self._breaker.is_open and not was_open:
                logger.warning("cache_paused", after=what, reason=f"{type(error).__name__}: {error}")
            self._metrics.cache_paused.set(self._breaker.is_open)
            return None
        if self._breaker.is_open:
            logger.info("cache_resumed")
        self._breaker.succeeded()
        self._metrics.cache_paused.set(0)
        return result


async def _within(call: Awaitable[T], seconds: float) -> T:
    """Wait for a call at most so long, not counting what this event loop itself was late.

    The model's thread holds the interpreter for milliseconds at a time. An answer that lies in the socket by then
    is no fault of Redis, so a timeout that came late is followed by one more wait, as long as it was late.

    Raises:
        TimeoutError: the call has not ended; it is cancelled, which drops its connection.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(call)
    deadline = loop.time() + seconds
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            await asyncio.wait({task}, timeout=loop.time() - deadline)
        if not task.done():
            raise TimeoutError(f"no answer within {seconds:.3f} s")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
