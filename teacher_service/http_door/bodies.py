"""Request bodies, read whole within a bound: each, all that are in flight together, and in time.

Knows nothing of what they mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

from stillhouse.errors import OverloadedError, RequestTooLongError

# All bodies in flight, as a multiple of the largest one: what is read from JSON takes several times its bytes.
_BODIES_TOGETHER = 8

# For a whole body. A caller that sends a byte now and then must not hold a place for long.
_BODY_SECONDS = 60.0

# What is read of a body that is refused, as a multiple of the largest one, and for how long.
_DISCARDED_BODIES = 4
_DISCARD_SECONDS = 5.0

_RETRY_AFTER_SECONDS = 1.0


# Where a scope keeps them once they are read.
_HEADERS = "stillhouse.headers"


class CallerGone(Exception):  # noqa: N818 - no fault: nobody is left to be told of one
    """The caller closed the connection before its answer was whole."""


class Body:
    """The body of one request, as it comes."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._is_asked_for = header(scope, "expect") is not None
        self._has_ended = False
        self.announced_bytes = content_length(scope)
        self.received_bytes = 0

    async def next(self) -> bytes | None:
        """Return its next bytes; None after the last.

        Raises:
            CallerGone: it ended early.
        """
        if self._has_ended:
            return None
        # To receive is to ask for it.
        self._is_asked_for = False
        message = await self._receive()
        if message["type"] != "http.request":
            self._has_ended = True
            raise CallerGone
        self._has_ended = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        self.received_bytes += len(chunk)
        return chunk

    async def discard(self, max_bytes: int) -> bool:
        """Read on and forget, within a bound, so that a caller that writes before it reads sees why it was refused.

        Returns whether nothing is left to come.
        """
        if self._has_ended:
            return True
        if self._is_asked_for or (self.announced_bytes or 0) > max_bytes:
            return False
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while self.received_bytes <= max_bytes:
                    if await self.next() is None:
                        return True
        except (TimeoutError, CallerGone):
            pass
        return False


class Bodies:
    """Reads the bodies of one service; for one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0

    @property
    def max_discarded_bytes(self) -> int:
        """How much of a body that is refused is read all the same."""
        return self._max_bytes * _DISCARDED_BODIES

    @asynccontextmanager
    async def read(self, body: Body) -> AsyncIterator[bytes]:
        """Give a body whole, and count its bytes for as long as the block runs.

        Raises:
            RequestTooLongError: it is over the limit; nothing is read where its length says so.
            OverloadedError: too much is in flight already.
            HTTPException: it did not come in time (408).
            CallerGone: it ended early.
        """
        if body.announced_bytes is not None and body.announced_bytes > self._max_bytes:
            raise self._too_long(f"content-length: {body.announced_bytes}")
        before = body.received_bytes
        try:
            yield await self._whole(body)
        finally:
            self._held -= body.received_bytes - before

    async def _whole(self, body: Body) -> bytes:
        chunks = []
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while (chunk := await body.next()) is not None:
                    self._held += len(chunk)
                    if body.received_bytes > self._max_bytes:
                        raise self._too_long(f"body: more than {self._max_bytes} bytes")
                    if self._held > self._max_bytes * _BODIES_TOGETHER:
                        raise OverloadedError(
                            f"the bodies in flight are over this teacher's limit of "
                            f"{self._max_bytes * _BODIES_TOGETHER} bytes; come again later",
                            _RETRY_AFTER_SECONDS,
                        )
                    chunks.append(chunk)
        except TimeoutError:
            raise HTTPException(408, f"the body did not come whole within {_BODY_SECONDS:g} s") from None
        return b"".join(chunks)

    def _too_long(self, what: str) -> RequestTooLongError:
        return RequestTooLongError(
            f"{what} is over this teacher's limit of {self._max_bytes} bytes (max_http_body_bytes); send several "
            "requests, or ask over gRPC"
        )


def content_length(scope: Scope) -> int | None:
    """Return the length of a body as its header gives it; None where it is sent in chunks."""
    length = header(scope, "content-length")
    if length is None or not length.isdecimal():
        return None if header(scope, "transfer-encoding") else 0
    # More digits than any length has would take long to read.
    return int(length[:20])


def header(scope: Scope, name: str) -> str | None:
    """Return a request's header, or None; of several the first."""
    return headers_of(scope).get(name)


def headers_of(scope: Scope) -> dict[str, str]:
    """Return a request's headers by their names in lower case; of several of a name the first."""
    read: dict[str, str] | None = scope.get(_HEADERS)
    if read is None:
        pairs = reversed(scope["headers"])
        read = scope[_HEADERS] = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in pairs}
    return read
