"""What the cache remembers, as far as it is what was asked for: whole, unaltered, and of the right kind and shape.

Knows nothing of how it is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from stillhouse.errors import CodecError
from stillhouse.fingerprint import cache_keys
from stillhouse.payload_header import Header, read_header
from stillhouse.request import CacheMode, LogitsRequest, TeacherDescription
from teacher_service.batching import Computed
from teacher_service.cache import AnswerCache, Claim
from teacher_service.metrics import Metrics


class Recall:
    """The cache behind a check of everything that comes out of it."""

    def __init__(self, cache: AnswerCache, metrics: Metrics) -> None:
        self._cache = cache
        self.lease_seconds = cache.lease_seconds
        """How long a claim lasts unless it is renewed; 0 where there are none."""
        self.give_up = cache.give_up
        """Lets others compute what was claimed and not set."""
        self._count = functools.cache(metrics.cache_requests.labels)

    async def look_up(self, expected: Mapping[bytes, Header]) -> dict[bytes, bytes | memoryview]:
        """Return what is remembered of these keys, given the headers of their payloads."""
        values = await self._cache.get_many(list(expected), _sizes(expected))
        if values is None:
            self._count("error").inc(len(expected))
            return {}
        found: dict[bytes, bytes | memoryview] = {}
        for key, value in zip(expected, values, strict=True):
            if value is None:
                self._count("miss").inc()
            elif _is_payload(value, expected[key]):
                self._count("hit").inc()
                found[key] = value
            else:
                # It will be computed anew and overwritten.
                self._count("corrupt").inc()
        return found

    async def claim(self, expected: Mapping[bytes, Header]) -> dict[bytes, Claim] | None:
        """Ask to compute these keys, as `AnswerCache.claim` does; a value that comes back is the right one."""
        claims = await self._cache.claim(list(expected), _sizes(expected))
        if claims is None:
            return None
        checked = {}
        for key, claim in zip(expected, claims, strict=True):
            is_wrong = claim.value is not None and not _is_payload(claim.value, expected[key])
            checked[key] = Claim(None, claim.may_compute) if is_wrong else claim
        return checked


def keys_of(request: LogitsRequest, teacher: TeacherDescription) -> list[bytes]:
    """Return the key of each sequence of a request."""
    return cache_keys(
        teacher.fingerprint,
        request.sequences,
        request.encoding,
        temperature=request.temperature,
        vocabulary_size=request.effective_vocabulary_size(teacher.vocabulary_size),
    )


async def look_up(
    recall: Recall | None, metrics: Metrics, cache_mode: CacheMode, expected: Mapping[bytes, Header]
) -> dict[bytes, Computed]:
    """Return what a request may use of what is remembered, and count it; `recall` is None where nothing is."""
    if cache_mode != "use":
        metrics.cache_requests.labels(cache_mode).inc(len(expected))
    elif recall is not None and expected:
        found = await recall.look_up(expected)
        return {key: Computed(payload, from_cache=True) for key, payload in found.items()}
    return {}


def _is_payload(value: bytes | memoryview, expected: Header) -> bool:
    try:
        return read_header(memoryview(value).cast("B")) == expected
    except CodecError:
        return False


def _sizes(expected: Mapping[bytes, Header]) -> list[int]:
    return [header.size_bounds()[1] for header in expected.values()]
