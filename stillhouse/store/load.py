"""Fills the Redis of a teacher service from a store, so that a live service answers from it: a warm start.

The keys and values are those that the service itself would write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stillhouse.cached_values import cached_value
from stillhouse.codec import encode_payload
from stillhouse.encoding_text import format_encoding
from stillhouse.encodings import Dense
from stillhouse.errors import ConfigurationError, StoreError
from stillhouse.fingerprint import cache_key
from stillhouse.store.reader import Store

if TYPE_CHECKING:
    from redis import Redis

MAX_VALUE_BYTES: Final = 512 * 2**20
"""Redis holds no longer strings."""

GROUP_BYTES: Final = 8 * 2**20
"""Sent in one round trip."""

TIMEOUT_SECONDS: Final = 30.0


@dataclass(slots=True)
class Loaded:
    """How many answers were sent, their bytes, and how many are longer than Redis can hold."""

    answers: int = 0
    bytes: int = 0
    too_large: int = 0


def load(
    address: str | Path | Store,
    redis_url: str,
    *,
    ttl_seconds: int = 0,
    progress: Callable[[int, int], None] | None = None,
    options: dict[str, Any] | None = None,
) -> Loaded:
    """Send every answer of a store to a Redis.

    Args:
        address: of the store, or of one share of a split one.
        redis_url: redis://, rediss:// or unix://, as the service's own `TEACHER_REDIS_URL`.
        ttl_seconds: how long Redis keeps them; 0 is as long as it has room.
        progress: called with the answers sent, and those in all.
        options: for fsspec's file system.

    Raises:
        StoreError: no store, a damaged one, or answers that are not the teacher's own; Redis that cannot be reached,
            refuses, or is full.
        ConfigurationError: no URL of Redis.
    """
    store = address if isinstance(address, Store) else Store(address, allow_partial=True, options=options)
    plan = store.manifest.plan
    if plan.derived_from not in (None, format_encoding(Dense("float32"))):
        raise StoreError(
            f"{store.address} was derived from {plan.derived_from} answers: a service must not pass these off as what "
            "its teacher said; load the store that it was derived from"
        )
    from redis.exceptions import RedisError

    loaded = Loaded()
    parts = [part for part in (store.train, store.held_out) if part is not None]
    total = sum(part.num_held for part in parts)
    redis = _connect(redis_url)
    try:
        for group in _groups(_values(store, loaded)):
            pipeline = redis.pipeline(transaction=False)
            for key, value in group:
                pipeline.set(key, value, ex=ttl_seconds or None)
            pipeline.execute()
            loaded.answers += len(group)
            loaded.bytes += sum(len(value) for _, value in group)
            if progress is not None:
                progress(loaded.answers + loaded.too_large, total)
    except RedisError as error:
        raise StoreError(
            f"Redis took {loaded.answers} of {total} answers and then none: {error}; what it has is sound. Give it "
            "memory, or the right to write, and load again"
        ) from error
    finally:
        redis.close()
    return loaded


def _values(store: Store, loaded: Loaded) -> Iterator[tuple[bytes, bytes]]:
    plan = store.manifest.plan
    for part in (store.train, store.held_out):
        for row in part or ():
            payload = encode_payload(row.payload)
            if len(payload) > MAX_VALUE_BYTES:
                loaded.too_large += 1
                continue
            key = cache_key(
                plan.teacher.fingerprint,
                row.sequence,
                store.encoding,
                temperature=plan.temperature,
                vocabulary_size=plan.vocabulary_size,
            )
            yield key, cached_value(key, payload)


def _groups(values: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    group: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in values:
        group.append((key, value))
        size += len(value)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _connect(url: str) -> Redis:
    from redis import Redis

    try:
        return Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, protocol=2)
    except (ValueError, TypeError) as error:
        # The URL may hold a password, so it is not repeated.
        raise ConfigurationError(f"redis_url is no URL of Redis: {error}") from None
