"""Answers that leave piece by piece: each is made in a thread when the caller has room for it.

So what an answer takes in memory beside its payloads is a piece, however slowly it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from teacher_service.answering import HeadToSend

PIECE_BYTES = 2**20
"""About how much is made, and sent, at once."""

NO_BODY = "stillhouse.no_body"
"""Set in the scope of a request that asks for the headers alone."""


class PiecewiseResponse(Response):
    """An answer made of pieces. One of a single piece is sent with its length, longer ones in chunks."""

    def __init__(
        self, pieces: Iterable[bytes | memoryview], media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._pieces = iter(gathered(pieces))
        self.media_type = media_type
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers(headers)
        if headers is None or "content-length" not in headers:
            del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        del receive
        # Two pieces before the first byte leaves: until then, what goes wrong can still be told.
        piece, following = await asyncio.to_thread(lambda: (next(self._pieces, b""), next(self._pieces, None)))
        if following is None:
            self.headers["content-length"] = str(len(piece))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope.get(NO_BODY):
            piece, following = b"", None
        while following is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece, following = following, await asyncio.to_thread(next, self._pieces, None)
        await send({"type": "http.response.body", "body": piece, "more_body": False})


class HeadResponse(Response):
    """An output head's bytes, each chunk sent as soon as the caller has room for it."""

    def __init__(self, head: HeadToSend, media_type: str, headers: Mapping[str, str]) -> None:
        self._head = head
        self.media_type = media_type
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({**headers, "content-length": str(head.num_bytes)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        del receive
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not scope.get(NO_BODY):
            async for _, data in self._head.chunks():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def gathered(parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about `PIECE_BYTES`: small parts joined, none empty."""
    held: list[bytes | memoryview] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)
