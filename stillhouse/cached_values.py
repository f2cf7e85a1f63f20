"""What Redis holds under the key of an answer: both halves, for the service that remembers and for who fills it.

A value is the bytes of a payload and then its key, so that the bytes of one answer that come to lie under the key of
another are seen. The key is `fingerprint.cache_key`. Knows nothing of Redis.
"""

from __future__ import annotations

from typing import Final

FOREIGN: Final = b""
"""Stands for a value that is none of its key's; no payload is empty."""


def cached_value(key: bytes, payload: bytes | memoryview) -> bytes:
    """Return what is kept under a key."""
    return b"".join((payload, key))


def payload_in(key: bytes, value: bytes | None) -> bytes | memoryview | None:
    """Return the payload that a value holds, as a view of it; `FOREIGN` for one of another key, None for none."""
    if value is None:
        return None
    return memoryview(value)[: -len(key)] if value.endswith(key) else FOREIGN
