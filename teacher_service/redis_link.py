"""The way to Redis: each exchange has its time, and after several failures Redis is left alone for a while.

No fault of Redis ever reaches a caller: an exchange that fails is None. Knows nothing of what is kept there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from stillhouse.errors import ConfigurationError
from teacher_service.circuit_breaker import CircuitBreaker
from teacher_service.metrics import Metrics

# A network or a Redis slower than this is no help: at 200 MB/s a 4 MB payload takes as long as the wait for it.
_LEAST_BYTES_PER_SECOND = 200e6

_MAX_CONNECTIONS = 16

T = TypeVar("T")

logger = structlog.get_logger(__name__)


class RedisLink:
    """Connections to one Redis, and whether it is in a state to be asked; for one event loop."""

    def __init__(self, url: str, metrics: Metrics, *, timeout_seconds: float) -> None:
        """Name a Redis; nothing is sent yet.

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
        except (ValueError, TypeError) as error:
            # The URL may hold a password, so it is not repeated.
            raise ConfigurationError(f"redis_url (TEACHER_REDIS_URL) is no URL of Redis: {error}") from None
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._breaker = CircuitBreaker()
        self._connections = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._reason = ""

    @property
    def pause_reason(self) -> str | None:
        """Why Redis is left alone, in words without names or addresses; None while it is not."""
        return self._reason if self._breaker.is_open else None

    async def exchange(self, what: str, call: Callable[[Redis], Awaitable[T]], *, num_bytes: int = 0) -> T | None:
        """Make a call that moves about so many bytes, within its time; None when Redis is left alone or has failed."""
        is_try = self._breaker.is_open
        if not self._breaker.allows_call():
            return None
        seconds = self._timeout_seconds + num_bytes / _LEAST_BYTES_PER_SECOND
        try:
            async with self._connections:
                if self._breaker.is_open and not is_try:
                    return None  # it failed others while this call waited for a connection
                result = await _within(call(self._redis), seconds)
        except Exception as error:  # noqa: BLE001 - what answers may be no Redis: whatever its bytes lead to
            self._failed(what, error)
            return None
        if self._breaker.is_open:
            logger.info("cache_resumed")
        self._breaker.succeeded()
        self._metrics.cache_paused.set(0)
        return result

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _failed(self, what: str, error: Exception) -> None:
        was_open = self._breaker.is_open
        self._breaker.failed()
        self._reason = reason_of(error)
        self._metrics.cache_paused.set(self._breaker.is_open)
        if self._breaker.is_open and not was_open:
            # Only the kind of error: its text may name a path or an address.
            logger.warning("cache_paused", after=what, reason=self._reason, error=type(error).__name__)


def reason_of(error: BaseException) -> str:
    """Return what is wrong with a Redis that answered so, or did not, in words without names or addresses."""
    match error:
        case AuthenticationError() | AuthorizationError() | NoPermissionError():
            return "it refuses the user or password"
        case OutOfMemoryError():
            return "it is full"
        case ReadOnlyError():
            return "it is a read-only replica"
        case BusyLoadingError():
            return "it is loading its data"
        case RedisTimeoutError() | TimeoutError():
            return "no answer in time"
        case ResponseError():
            # Redis names kinds of errors in capitals: MISCONF, NOREPLICAS.
            name = str(error).partition(" ")[0]
            return f"it answers {name}" if name.isalpha() and name.isupper() else "it answers with an error"
        case _:
            return "it cannot be reached"


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
